"""Searches and early stopping in this process, from `launch` to the report. The same through Ray: tests/ray."""

import json

import pandas as pd
import pytest
from inline import launch
from small_sweep import result_of, small_sweep, times_written

from sae_core.errors import ConfigError
from sweeps.execution.progress import SweepProgress
from sweeps.storage.store import Store

LR = {"low": 1e-3, "high": 3e-2, "log": True}


@pytest.fixture(autouse=True)
def _without_report(monkeypatch):
    monkeypatch.setattr("analysis.report.write_report", lambda *_: None)


def search_of(trials=4, **changes):
    sections = {
        "train": {"batch_size": 256, "lr": LR},
        "target_l0": {"low": 2, "high": 8, "log": True},
        "architectures": {"topk": {}, "standard": {}},
        "search": {"trials": trials, "points_to_evaluate": [{"architectures": "topk", "train.lr": 4e-3, "target_l0": 4}]},
    }
    return small_sweep(**{**sections, **changes})


def test_a_search_is_extended_and_then_done(tmp_path, progress):
    first = launch(search_of(2), results=tmp_path, progress=progress)
    assert progress.stages == ["harvest", "search", "report"]
    assert (first.finished, first.failed, first.missing) == (2, {}, [])
    before = times_written(tmp_path / "small" / "runs")
    longer = launch(search_of(4), results=tmp_path)
    assert longer.finished == 4
    after = times_written(tmp_path / "small" / "runs")
    assert {path: after[path] for path in before} == before
    table = pd.read_csv(tmp_path / "small" / "table.csv")
    assert set(table.status) == {"finished"}
    assert table.fvu.notna().all()
    assert ((table.lr == 4e-3) & (table.l0.round(6) == 4)).any()
    facts = json.loads((tmp_path / "small" / "sweep.json").read_text())
    assert {entry["run_id"] for entry in facts["runs"]} == set(table.run_id)

    progress.stages.clear()
    assert launch(search_of(4), results=tmp_path, progress=progress).finished == 4
    assert progress.stages == ["report"]


def test_a_damaged_study_trains_nothing_again(tmp_path, caplog):
    first = launch(search_of(3), results=tmp_path)
    (study,) = (first.directory / "search").iterdir()
    study.write_bytes(study.read_bytes().replace(b"0.00", b"0.01", 1))
    before = times_written(first.directory / "runs")
    again = launch(search_of(4), results=tmp_path)
    assert (again.finished, again.failed, again.missing) == (4, {}, [])
    after = times_written(first.directory / "runs")
    assert {path: after[path] for path in before} == before
    assert len(list((first.directory / "runs").iterdir())) == 4
    assert (study.with_name(f"{study.name}.damaged")).is_file()
    assert "was renamed to" in caplog.text


def test_a_searched_run_is_that_of_a_grid(tmp_path):
    search = launch(search_of(1), results=tmp_path / "search")
    grid = launch(small_sweep(train={"batch_size": 256, "lr": 4e-3}, target_l0=4, architectures={"topk": {}}), results=tmp_path / "grid")
    (one,), (other,) = (list((done.directory / "runs").iterdir()) for done in (search, grid))
    assert one.name == other.name
    assert result_of(one) == result_of(other)


def test_an_interrupted_search_loses_no_finished_trial(tmp_path):
    class Interrupted(SweepProgress):
        def group(self, group):
            if group.fraction and len(list(tmp_path.glob("small/runs/*/record.json"))) == 3:
                raise KeyboardInterrupt

    interrupted = launch(search_of(4), results=tmp_path, progress=Interrupted())
    assert (interrupted.interrupted, interrupted.finished, len(interrupted.missing)) == (True, 3, 0)
    before = times_written(tmp_path / "small" / "runs")
    done = launch(search_of(4), results=tmp_path)
    assert (done.interrupted, done.finished, done.missing) == (False, 4, [])
    after = times_written(tmp_path / "small" / "runs")
    assert {path: after[path] for path in before if "record" in path.name} == {
        path: written for path, written in before.items() if "record" in path.name
    }


def test_interrupted_before_the_first_trial(tmp_path, progress, monkeypatch):
    def interrupt(name, *_, **__):
        if name == "search":
            raise KeyboardInterrupt

    monkeypatch.setattr(progress, "stage", interrupt)
    monkeypatch.setattr(progress, "end_stage", lambda summary: 0.0)
    monkeypatch.setattr(progress, "advance_to", lambda *_, **__: None)
    done = launch(search_of(2), results=tmp_path, progress=progress)
    assert (done.interrupted, done.finished, done.missing) == (True, 0, [])


def test_seeds_of_a_point_are_trained_together(tmp_path):
    done = launch(search_of(2, seeds=[0, 1]), results=tmp_path)
    assert done.finished == 4
    table = pd.read_csv(tmp_path / "small" / "table.csv")
    assert sorted(table.groupby("setting_hash").size()) == [2, 2]


RATES = [3e-4, 1e-3, 4e-3, 1e-2]


def grid(**changes):
    return small_sweep(**{"train": {"batch_size": 256, "lr": RATES}, "architectures": {"topk": {"k": [2, 4]}}, **changes})


def test_a_grid_with_early_stopping_spends_less_and_ends_as_well(tmp_path, progress):
    full = launch(grid(), results=tmp_path / "full")
    stopped = launch(grid(early_stopping={}), results=tmp_path / "stopped", progress=progress)
    assert stopped.finished + len(stopped.pruned) == full.finished == 8
    assert stopped.pruned and stopped.failed == {} and stopped.missing == []
    assert full.tokens_spent == full.tokens_asked == stopped.tokens_asked > 1.3 * stopped.tokens_spent
    # Both sparsity levels are still there: the denser one stops nobody of the sparser.
    table = pd.read_csv(stopped.directory / "table.csv")
    assert set(table[table.status == "finished"].sparsity_value) == {2, 4}
    for run_id, reason in stopped.pruned.items():
        assert reason.startswith("StoppedEarly: dominated at ")
        assert progress.trained[run_id] == 1.0
    for run in Store(stopped.directory).records().values():
        if run.status == "finished":
            assert result_of(stopped.directory / "runs" / run.run_id) == result_of(full.directory / "runs" / run.run_id)


def test_pruned_runs_are_never_trained_again(tmp_path, progress):
    first = launch(grid(early_stopping={}), results=tmp_path)
    before = times_written(tmp_path / "small" / "runs")
    again = launch(grid(early_stopping={}), results=tmp_path, progress=progress)
    assert (again.pruned, progress.stages) == (first.pruned, ["report"])
    assert times_written(tmp_path / "small" / "runs") == before


def test_a_search_with_early_stopping(tmp_path):
    done = launch(search_of(8, early_stopping={"l0_band": 4}), results=tmp_path)
    assert done.pruned
    assert done.finished + len(done.pruned) == 8


def test_a_search_in_the_directory_of_another_sweep(tmp_path):
    launch(grid(), results=tmp_path)
    other = {**search_of().activations, "d_in": 8}
    with pytest.raises(ConfigError, match="d_in is 16 there and 8 here"):
        launch(search_of(activations=other), results=tmp_path)
