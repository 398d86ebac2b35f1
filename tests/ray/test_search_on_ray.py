"""A small search and a grid with early stopping through real Ray Tune. What needs no Ray: tests/integration/test_launch_search.py."""

import pandas as pd
import pytest
from small_sweep import left_in, small_sweep, times_written

from sweeps.execution.launcher import launch


@pytest.fixture(autouse=True)
def _without_report(monkeypatch):
    monkeypatch.setattr("analysis.report.write_report", lambda *_: None)


def search_of(trials):
    return small_sweep(
        name="searched",
        train={"batch_size": 256, "lr": {"low": 1e-3, "high": 3e-2, "log": True}},
        target_l0={"low": 2, "high": 8, "log": True},
        architectures={"topk": {}, "standard": {}},
        search={"trials": trials},
    )


def test_a_search_that_is_made_longer(cluster, results):
    first = launch(search_of(2), results=results)
    assert (first.finished, first.failed, first.missing) == (2, {}, [])
    before = times_written(first.directory / "runs")
    longer = launch(search_of(4), results=results)
    assert (longer.finished, longer.failed, longer.missing) == (4, {}, [])
    after = times_written(first.directory / "runs")
    assert {path: after[path] for path in before} == before
    table = pd.read_csv(longer.directory / "table.csv")
    assert table.fvu.between(0, 1.5).all()
    assert left_in(longer.directory) == {"search"}


def test_a_grid_with_early_stopping(cluster, results):
    """Which runs stop depends on who is first; that some do, that none is lost, and that every sparsity level is left, does not."""
    rates = [3e-5, 1e-4, 1e-3, 4e-3, 1e-2]
    sweep = small_sweep(
        name="stopped", train={"batch_size": 256, "lr": rates}, architectures={"topk": {"k": [2, 4]}}, early_stopping={"rungs": [0.2, 0.5]}
    )
    done = launch(sweep, results=results)
    assert (done.finished + len(done.pruned), done.failed, done.missing) == (10, {}, [])
    assert done.pruned
    assert done.tokens_spent < done.tokens_asked
    table = pd.read_csv(done.directory / "table.csv")
    assert set(table[table.status == "finished"].sparsity_value) == {2, 4}
    for run_id in done.pruned:
        assert {path.name for path in (done.directory / "runs" / run_id).iterdir()} == {"config.json", "record.json", "history.jsonl"}
