from types import SimpleNamespace

import pytest
from inline import launch
from small_sweep import small_sweep

from sae_core.activations import shards
from sweeps.execution import stages
from sweeps.storage.store import Store


@pytest.fixture(autouse=True)
def _without_report(monkeypatch):
    monkeypatch.setattr("analysis.report.write_report", lambda *_: None)


@pytest.mark.slow
def test_evaluation_on_different_nodes_is_noted(tmp_path, monkeypatch):
    nodes = [{"versions": {"torch": "2.6", "ray": "2.60"}, "hardware": "A"}, {"versions": {"torch": "2.7"}, "hardware": "B"}]
    monkeypatch.setattr("sweeps.execution.workers.provenance", SimpleNamespace(node=lambda: nodes.pop(0)))
    launch(small_sweep(architectures={"topk": {"k": 2}}), results=tmp_path)
    (record,) = Store(tmp_path / "small").records().values()
    assert record.eval_versions == {"torch": "2.6, 2.7", "ray": "2.60, none"}
    assert record.eval_hardware == "A; B"


@pytest.mark.slow
def test_rows_that_hold_most_of_the_variance_are_noted(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(stages, "LARGE_OUTLIER_SHARE", -1.0)
    launch(small_sweep(architectures={"topk": {"k": 2}}), results=tmp_path)
    (cache,) = (tmp_path / ".activations").iterdir()
    assert shards.read_manifest(cache).outlier_rows == 0
    assert "harvest: 0 of 20,000 rows hold 0% of the variance, as attention sinks do." in capsys.readouterr().err
