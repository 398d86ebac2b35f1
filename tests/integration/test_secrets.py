"""Tokens and keys of the environment appear nowhere: not in results, not in what is printed."""

import pytest
from inline import launch
from small_sweep import DIVERGING, small_sweep

SECRETS = {
    name: f"secret-of-{name.lower()}-2f9c1e"
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "RAY_AUTH_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
}


def leaks(text):
    return [name for name, value in SECRETS.items() if value in text]


@pytest.mark.parametrize("error", [None, RuntimeError("boom")])
def test_no_secret_is_written_or_printed(tmp_path, monkeypatch, capfd, caplog, error):
    """Where runs succeed, diverge, or a trial fails with a traceback."""
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    if error:
        monkeypatch.setattr("sae_core.training.loop.Learner.train_step", lambda *_: (_ for _ in ()).throw(error))
        monkeypatch.setattr("analysis.report.write_report", lambda *_: None)
    sweep = small_sweep(architectures={"topk": {"k": 2}, "gated": DIVERGING})
    done = launch(sweep, results=tmp_path)
    assert done.finished == (0 if error else 1)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"record.json", "sweep.json", "table.csv"} <= {path.name for path in files}
    for path in files:
        assert leaks(path.read_bytes().decode(errors="replace")) == [], path
    printed = capfd.readouterr()
    assert leaks(printed.out + printed.err + caplog.text) == []
