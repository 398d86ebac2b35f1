import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from sweeps.execution import stages
from sweeps.execution.progress import SweepProgress
from sweeps.execution.stages import _harvest, _where
from sweeps.planning.inputs import SharedActivations


def test_where_runs_were_evaluated():
    first = {"versions": {"torch": "2.6", "ray": "2.60"}, "hardware": "A, 2 cores", "arithmetic": {"device": "cpu"}}
    second = {"versions": {"torch": "2.7"}, "hardware": "B, 4 cores", "arithmetic": {"device": "cuda"}}
    assert _where([first, first]) == {
        "eval_versions": first["versions"],
        "eval_hardware": "A, 2 cores",
        "eval_arithmetic": {"device": "cpu"},
    }
    assert _where([second, first, second]) == {
        "eval_versions": {"torch": "2.6, 2.7", "ray": "2.60, none"},
        "eval_hardware": "A, 2 cores; B, 4 cores",
        "eval_arithmetic": {"device": "cpu, cuda"},
    }


@pytest.mark.parametrize("share", [0.4, 0.97])
def test_rows_that_hold_most_of_the_variance_are_told_of(tmp_path, monkeypatch, share):
    manifest = SimpleNamespace(n_tokens=20_000, d_in=8, outlier_rows=12, outlier_share=share)
    monkeypatch.setattr(stages, "is_complete", lambda *_: True)
    monkeypatch.setattr(stages, "finish_harvest", lambda *_: manifest)
    source = SimpleNamespace(n_shards=lambda cache: 1, config=SimpleNamespace(train_tokens=20_000))
    one = SharedActivations(source, tmp_path, "abc", {}, facts={"d_vocab": 7})
    progress = SweepProgress(Console(file=io.StringIO(), width=400))
    _harvest(one, SimpleNamespace(rest=lambda: None), progress)
    assert one.facts == {"d_vocab": 7, "outlier_rows": 12, "outlier_share": share}
    told = "harvest: 12 of 20,000 rows hold 97% of the variance, as attention sinks do." in progress.console.file.getvalue()
    assert told == (share > 0.5)
