"""docs/crosscoders.md runs, in order and in one directory; with fewer tokens."""

import contextlib
import re
from pathlib import Path

import pytest
from documents import ROOT, blocks
from tiny_model import write_text
from typer.testing import CliRunner

from sae_core.errors import ConfigError
from sae_core.sae.base import SparseAutoencoder
from sae_core.sae.saebench import for_saebench
from sweeps.cli import app

PAGE = ROOT / "docs" / "crosscoders.md"

pytestmark = pytest.mark.slow


def test_the_definition_is_trained_and_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("analysis.report.write_report", lambda *_: None)
    (definition,) = blocks(PAGE, "yaml")
    smaller = {"train_tokens: 1_000_000": "train_tokens: 4_096", "eval_tokens: 100_000": "eval_tokens: 500", "d_sae: 4096": "d_sae: 64"}
    smaller |= {"dataset: demo": f"dataset: {write_text(tmp_path / 'text.jsonl', n_train=40, n_heldout=8)}"}
    smaller |= {"target_l0: [32, 64]": "target_l0: 32", "batch_size: 1024": "batch_size: 256", "  standard: {}\n": ""}
    for old, new in smaller.items():
        assert old in definition
        definition = definition.replace(old, new)
    (tmp_path / "together.yaml").write_text(definition)
    for line in (line for text in blocks(PAGE, "bash") for line in text.splitlines()):
        program, *arguments = line.split()
        assert program == "sae-sweep"
        inline = ["--executor", "inline"] if arguments[0] == "run" else []
        with contextlib.chdir(tmp_path):
            done = CliRunner().invoke(app, [*arguments, *inline])
        assert done.exit_code == 0, f"{line}\n{done.output}"
    (folder,) = (path.parent for path in (tmp_path / "crosscoders").glob("*/cfg.json"))
    assert SparseAutoencoder.from_pretrained(folder).parts == {f"blocks.{layer}.hook_mlp_out": 128 for layer in range(4)}
    card = (tmp_path / "crosscoders" / "README.md").read_text()
    assert "metadata.crosscoder_parts" in card and "for_saebench" not in card and "- crosscoder\n" in card
    with pytest.raises(ConfigError, match="is a crosscoder"):
        for_saebench(folder)


def test_one_crosscoder_in_python(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = blocks(PAGE, "python")
    with contextlib.chdir(tmp_path):
        exec(compile(code, str(PAGE), "exec"), {})
    said = capsys.readouterr().out
    early, late = map(float, re.findall(r"FVU (\S+)", said))
    share = float(re.findall(r"mean (\S+)", said)[0])
    assert early < 0.3 and late < 0.3 and 0.3 < share < 0.7
