"""Evaluators of a plugin in a launch: columns of the table, failures that are said and lose no run, values measured again when edited."""

import json
from pathlib import Path

import pytest
from inline import launch
from small_sweep import small_sweep

from analysis.table import load_table
from sae_core.errors import ConfigError

PLUGIN = '''
import torch
from sae_core.metrics.evaluators import evaluator
from sae_core.records import MetricSpec

@evaluator(MetricSpec("mean_norm", "Mean norm of the latents", "", "none"), MetricSpec("n_heldout", "Rows", "", "max"))
def norms(sae, heldout):
    """Norms of the latents."""
    x = torch.cat([chunk.x for chunk in heldout.chunks()])
    return {"mean_norm": sae.encode(x).norm(dim=1).mean() * FACTOR, "n_heldout": len(x)}

@evaluator(MetricSpec("fragile", "Fails on TopK", "", "none"))
def fragile(sae, heldout):
    if sae.config.architecture == "topk":
        raise RuntimeError("no TopK here")
    return {"fragile": float("nan")}
'''


@pytest.fixture(autouse=True)
def _without_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("analysis.report.write_report", lambda *_: None)


def table_of(directory: Path, text: str = PLUGIN.replace("FACTOR", "1"), **changes):
    (directory / "mine.py").write_text(text)
    done = launch(small_sweep(plugins=[str(directory / "mine.py")], **changes), results=directory / "results")
    assert (done.failed, done.missing) == ({}, [])
    return done.directory, load_table(done.directory).set_index("run_id")


def test_their_numbers_are_columns_and_a_failure_loses_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory, table = table_of(tmp_path)
    assert (table.n_heldout == 6_000).all() and (table.mean_norm > 0).all() and table.fragile.isna().all()
    assert (table.status == "finished").all() and table.fvu.notna().all()
    assert "evaluator 'fragile' failed: RuntimeError: no TopK here" in capsys.readouterr().err
    records = [json.loads(path.read_text()) for path in sorted(directory.glob("runs/*/record.json"))]
    errors = {record["architecture"]: record["evaluator_errors"] for record in records}
    assert errors == {"topk": {"fragile": "RuntimeError: no TopK here"}, "standard": {}}
    assert {spec["name"] for spec in records[0]["metric_specs"]} >= {"mean_norm", "n_heldout", "fragile", "fvu"}
    _, edited = table_of(tmp_path, PLUGIN.replace("FACTOR", "2"))
    assert edited.mean_norm.tolist() == pytest.approx((2 * table.mean_norm).tolist())
    assert edited.train_seconds.equals(table.train_seconds), "nothing is trained again"


def test_a_search_has_them_as_objectives(tmp_path: Path) -> None:
    search = {"trials": 2, "objectives": ["n_heldout", "fvu"], "sampler": "random"}
    _, table = table_of(tmp_path, PLUGIN.replace("FACTOR", "1"), search=search)
    assert (table.n_heldout == 6_000).all() and len(table) == 2
    with pytest.raises(ConfigError, match=r"direction .* but got 'mean_norm'"):
        table_of(tmp_path, PLUGIN.replace("FACTOR", "1"), search=search | {"objectives": ["mean_norm", "fvu"]})


def test_a_column_that_the_table_has_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="columns of their own, but got \\['seed'\\]"):
        table_of(tmp_path, PLUGIN.replace("FACTOR", "1").replace('"fragile"', '"seed"'))
    with pytest.raises(ConfigError, match="columns of its own, but got \\['fvu'\\] for 'fragile'"):
        table_of(tmp_path, PLUGIN.replace("FACTOR", "1").replace('"fragile"', '"fvu"'))
