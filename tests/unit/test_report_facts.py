"""What a report says once, though several files hold it."""

from pathlib import Path

import pytest
from fake_results import metrics_at, record_of, write_sweep

from analysis.report import write_report
from analysis.report.facts import stages_of
from analysis.results import read_sweeps

_NOON = "2026-01-01T12:00:00+00:00"


@pytest.mark.slow
def test_that_there_is_nothing_to_compare_is_said_once(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "one", [record_of("topk", 8, metrics_at(8, 0.1, 0.1))])
    text = (write_report([sweep], tmp_path / "report").parent / "report.md").read_text()
    assert text.count("nothing to compare it with") == 1


@pytest.mark.parametrize(("started", "total"), [([_NOON, _NOON], 12.0), ([_NOON, "2026-01-01T14:00:00+00:00"], 24.0)])
def test_the_time_of_a_launch_is_counted_once(started: list[str], total: float, tmp_path: Path) -> None:
    """A copy of a sweep holds the same launch."""
    stages = [{"stage": "train", "seconds": 12.0, "launch": 0}]
    records = [record_of("topk", 8, metrics_at(8, 0.1, 0.1))]
    sweeps = [write_sweep(tmp_path / str(index), records, stages=stages, launches=[{"started_at": at}]) for index, at in enumerate(started)]
    assert sum(seconds for *_, seconds in stages_of(read_sweeps(sweeps))) == total
