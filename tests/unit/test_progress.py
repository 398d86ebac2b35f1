import io

import pytest
from rich.console import Console

from sweeps.execution.progress import SweepProgress


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def plain(clock):
    return SweepProgress(Console(file=io.StringIO(), width=60), clock)


@pytest.fixture
def live(clock):
    return SweepProgress(Console(file=io.StringIO(), width=100, force_terminal=True), clock)


def said(progress):
    return progress.console.file.getvalue().splitlines()


def test_plain_lines(plain, clock):
    with plain:
        plain.stage("train", 2_000_000, "tokens")
        clock.now += 9.9
        plain.advance_to(10_000, "0 of 24 SAEs done")  # too soon after the first line
        clock.now += 0.1
        plain.advance_to(500_000, "6 of 24 SAEs done")
        clock.now += 9.0
        plain.advance_to(600_000)
        clock.now += 3_661.0
        plain.advance_to(1_000_000)
        clock.now += 1.0
        assert plain.end_stage("24 SAEs") == 3_681.0
    assert said(plain) == [
        "train: 2,000,000 tokens",
        # 500,000 in 10 seconds; three times as much is left.
        "train:  25%, 50,000 tokens/s, 0:00:30 left, 6 of 24 SAEs done",
        "train:  50%, 272 tokens/s, 1:01:20 left",
        "train: 24 SAEs in 1:01:21",
    ]


def test_time_left_is_unknown_at_first(plain, clock):
    plain.stage("harvest", 1_000, "tokens")
    clock.now += 20
    plain.advance_to(0)
    clock.now += 20
    plain.advance_to(19)
    clock.now += 10
    plain.advance_to(20)
    assert said(plain)[1:] == [
        "harvest:   0%, no tokens yet, ? left",
        "harvest:   2%, 28 tokens/min, ? left",
        "harvest:   2%, 24 tokens/min, 0:40:50 left",
    ]


def test_each_stage_counts_its_own_time(plain, clock):
    plain.stage("harvest", 10, "tokens")
    clock.now += 5
    plain.end_stage("done")
    plain.stage("train", 10, "tokens")
    clock.now += 2
    assert plain.end_stage("done") == 2.0


def test_runs_have_no_plain_lines(plain):
    plain.stage("train", 10, "tokens")
    plain.runs({"topk-1": 0.5})
    assert said(plain) == ["train: 10 tokens"]


def test_bars(live, clock):
    with live:
        live.stage("train", 2_000, "tokens")
        clock.now += 10
        live.advance_to(500, "1 of 3 SAEs done")
        live.runs({"topk-1": 0.5, "topk-2": 0.25})
        stage, first, second = live.bars.tasks
        assert (stage.description, stage.percentage, stage.fields["rate"]) == ("[bold]train", 25.0, "50 tokens/s  1 of 3 SAEs done")
        assert [(bar.description, bar.percentage) for bar in (first, second)] == [("  topk-1", 50.0), ("  topk-2", 25.0)]
        live.runs({"topk-1": 1.0, "topk-2": 0.75, "topk-3": 1.0})
        assert [bar.description for bar in live.bars.tasks if bar.visible] == ["[bold]train", "  topk-2"]
        live.end_stage("3 SAEs")
        assert live.bars.tasks == []
    assert any("train: 3 SAEs in 0:00:10" in line for line in said(live))


def test_results_go_elsewhere():
    assert SweepProgress().console.stderr


def test_paths_are_not_wrapped(plain):
    plain.note("x" * 200)
    assert said(plain) == ["x" * 200]
