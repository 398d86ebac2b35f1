import dataclasses
import io
import threading
import time

import pytest
from rich.console import Console

from sweeps.execution.progress import SweepProgress
from sweeps.execution.view import renderable
from sweeps.execution.watch import watch
from sweeps.storage.progress_file import GroupProgress, Progress, read_progress, running_progress, write_progress


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


def test_groups_have_no_plain_lines(plain):
    plain.stage("train", 10, "tokens")
    plain.group(GroupProgress(1, ["topk-1"], 0.5))
    assert said(plain) == ["train: 10 tokens"]


def filled(progress, clock):
    """A launch in the middle of its training."""
    progress.capacity = lambda: (2, 4)
    progress.stage("train", 2_000, "tokens")
    clock.now += 10
    progress.advance_to(500, "1 of 3 SAEs done")
    progress.group(GroupProgress(1, ["topk-1"]))
    progress.group(GroupProgress(2, ["topk-2", "topk-3"], 0.25, "gpu-1", 40.0, [0.5, 0.75], [16.0, 32.0], 30.0))
    progress.fail("relu-1", "DivergedError: nan")
    return progress


SHOWN = [
    "2 of 4 slots in use on 2 nodes, 1 failed",
    "group 1: topk-1, 0%",
    "group 2 on gpu-1: 2 SAEs, 25%, 40 tokens/s, loss 0.5 to 0.75, L0 16 to 32, 0:00:30 left",
    "failed: relu-1: DivergedError: nan",
]


def test_what_is_shown(live, clock):
    with live:
        shown = renderable(filled(live, clock).now())
        live.console.print(shown)
        live.end_group(1)
        assert [group.number for group in live.now().groups] == [2]
        live.end_stage("3 SAEs")
        assert live.now().groups == []
    text = "\n".join(said(live))
    for part in ["25%", "50 tokens/s", "1 of 3 SAEs done", "0:00:30 left", *SHOWN, "train: 3 SAEs in 0:00:10"]:
        assert part in text, part


def test_a_failure_is_told_once(plain, clock):
    filled(plain, clock).fail("relu-1", "DivergedError: nan")
    assert said(plain).count("train: relu-1 failed: DivergedError: nan") == 1


@pytest.mark.slow
def test_another_terminal_sees_the_same(plain, clock, tmp_path, monkeypatch):
    monkeypatch.setattr("sweeps.execution.progress.SECONDS", 0.01)
    file, console = tmp_path / "progress.json", Console(file=io.StringIO(), width=200)
    with plain:
        filled(plain, clock).publish(file, 3)
        progress = running_progress(file)
        assert dataclasses.replace(progress, beat=0, written_at="") == dataclasses.replace(plain.now(), beat=0, written_at="")
        watcher = threading.Thread(target=watch, args=(file, console))
        watcher.start()
        while not console.file.getvalue():
            time.sleep(0.01)
    watcher.join(timeout=5)
    assert not watcher.is_alive()  # it has seen the end of the launch
    told = [line.strip() for line in console.file.getvalue().splitlines()]
    assert told == ["train:  25%, 50 tokens/s, 0:00:30 left, 1 of 3 SAEs done", *SHOWN]
    ended = read_progress(file)
    assert (ended.launch, bool(ended.ended_at), ended.groups, ended.slots_in_use) == (3, True, [], 0)
    assert running_progress(file) is None


@pytest.mark.slow
def test_a_launch_that_was_killed_does_not_run(tmp_path, monkeypatch):
    monkeypatch.setattr("sweeps.storage.progress_file.SILENT_SECONDS", 0.3)
    file = tmp_path / "progress.json"
    assert running_progress(file) is None
    write_progress(file, Progress(launch=1, beat=7))
    assert running_progress(file) is None
    file.write_text(file.read_text().replace("7", "8"))  # damaged: for the eye only, so no reason to stop
    assert running_progress(file) is None


def test_a_disk_that_is_full_does_not_stop_a_launch(plain, tmp_path):
    with plain:
        (tmp_path / "progress.json").mkdir()
        plain.publish(tmp_path / "progress.json", 1)


def test_results_go_elsewhere():
    assert SweepProgress().console.stderr


def test_paths_are_not_wrapped(plain):
    plain.note("x" * 200)
    assert said(plain) == ["x" * 200]
