"""A launch, steered and stopped: by commands from elsewhere, or by its budget."""

import threading
import time

import pytest
from inline import launch
from small_sweep import DEFINITION, small_sweep
from typer.testing import CliRunner

from sae_core.orders import Orders
from sae_core.trainable import _Reporter
from sweeps.cli import app
from sweeps.execution.budget import Budget
from sweeps.storage.progress_file import read_progress
from sweeps.storage.store import Store

LONG = {"activations": {**DEFINITION["activations"], "train_tokens": 100_000}, "architectures": {"topk": {"k": [2, 4]}}}


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr("sae_core.orders.LOOK_SECONDS", 0.02)
    monkeypatch.setattr("sae_core.trainable.REPORT_SECONDS", 0.05)


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def until(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture
def paused(monkeypatch):
    """Training goes on after its hundredth step once this is set. Else it might be over before the pause, which comes within that step."""
    paused, report = threading.Event(), _Reporter.__call__

    def report_and_wait(reporter, learners):
        report(reporter, learners)
        assert learners[0].step < 100 or paused.wait(60)

    monkeypatch.setattr(_Reporter, "__call__", report_and_wait)
    yield paused
    paused.set()


@pytest.mark.slow
def test_a_launch_is_paused_resumed_and_stopped(tmp_path, paused):
    store, sweep = Store(tmp_path / "small"), small_sweep(**LONG)
    first, second = (run.run_id for run in sweep.runs())
    results = []
    thread = threading.Thread(target=lambda: results.append(launch(sweep, results=tmp_path)))
    thread.start()
    until(lambda: (now := read_progress(store.paths.progress)) and now.groups and now.groups[0].fraction > 0)
    assert call("pause", store.directory).exit_code == 0
    paused.set()
    until(lambda: store.paths.run(second).checkpoint.exists())
    assert "paused: launch 1, train:" in call("status", store.directory).stdout
    assert call("stop", store.directory, first).exit_code == 0
    assert f"{first}  missing   stopped: the next launch resumes it" in call("status", store.directory).stdout
    assert call("stop", store.directory).exit_code == 0
    thread.join(timeout=60)
    (stopped,) = results
    assert (stopped.stopped, stopped.interrupted, set(stopped.missing)) == ("`sae-sweep stop`", False, {first, second})
    done = launch(sweep, results=tmp_path)
    assert (done.stopped, done.finished) == ("", 2)


@pytest.mark.slow
def test_a_budget_of_tokens_counts_this_launch_and_the_same_command_resumes(tmp_path):
    sweep, spent = small_sweep(**LONG), []
    for _ in range(20):
        done = launch(sweep, results=tmp_path, max_tokens=60_000)
        spent.append(done.stopped)
        if not done.stopped:
            break
        assert done.stopped == "`--max-tokens 60000` is reached"
        assert done.missing
    assert (done.finished, done.missing) == (2, [])
    assert len(spent) > 1


def test_hours(tmp_path):
    with Budget(tmp_path / "orders.json", hours=0.01 / 3600) as budget:
        until(lambda: budget.reason)
    assert budget.reason == f"`--max-hours {0.01 / 3600:g}` is reached"
    assert Orders.read(tmp_path / "orders.json").sweep == "stop"
    with Budget(tmp_path / "other.json", hours=1e9, tokens=10) as budget:
        budget.spend(10)
        assert not budget.reason
        budget.spend(11)
    assert budget.reason == "`--max-tokens 10` is reached"


@pytest.mark.parametrize("option", [{"max_hours": 0.0}, {"max_hours": float("nan")}, {"max_tokens": 0}])
def test_a_budget_is_positive(tmp_path, option):
    with pytest.raises(ValueError, match=next(iter(option))):
        launch(small_sweep(**LONG), results=tmp_path, **option)
