"""One sweep, disturbed in every way we know, one after the other: what comes out is what an undisturbed one gives, to the last bit.

Each test takes the sweep up where the one before stopped it; alone, a test starts it.
"""

import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from contextlib import contextmanager

import psutil
import pytest
from commands import wait_until
from long_sweep import sweep_of
from small_sweep import results_of, times_written

from sweeps.execution.launcher import launch

CHECKPOINT_SECONDS = 0.05
COMMAND = f"""
import functools, sweeps.cli, sweeps.execution.launcher
sweeps.execution.launcher.launch = functools.partial(sweeps.execution.launcher.launch, checkpoint_seconds={CHECKPOINT_SECONDS})
sweeps.execution.launcher._write_report = lambda *_, **__: None
sweeps.cli.main()
"""
"""`sae-sweep` with frequent checkpoints, and without the seconds that the report of an interrupted sweep takes."""
MARK = "SAE_SWEEP_TEST_PROCESS"


@contextmanager
def running(definition, results):
    """`sae-sweep run` in a session of its own, as a terminal starts it; its processes are marked, and gone at the end."""
    mark = uuid.uuid4().hex
    arguments = [sys.executable, "-c", COMMAND, "run", str(definition), "--results", str(results)]
    process = subprocess.Popen(arguments, env={**os.environ, MARK: mark}, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        yield process, mark
    finally:
        kill_all(mark)
        process.stderr.close()


def marked(mark):
    """Living processes that descend from the one that was given this mark."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def kill_all(mark):
    """All at once, as when the machine goes down."""
    for process in marked(mark):
        process.kill()


def new_checkpoint(directory, since):
    return any(path.stat().st_mtime > since for path in directory.glob("runs/*/checkpoint.safetensors"))


@pytest.fixture(scope="module")
def directory(undisturbed, results):
    """The disturbed sweep's results. Its activations are those of the undisturbed one."""
    sweep = sweep_of("disturbed")
    (results / "disturbed.yaml").write_text(sweep.to_yaml())
    return results / "disturbed"


@pytest.mark.parametrize(
    ("interrupt", "exit_code"),
    [
        pytest.param(lambda process, mark: os.killpg(process.pid, signal.SIGINT), 130, id="Ctrl-C"),
        pytest.param(lambda process, mark: process.terminate(), 130, id="SIGTERM"),
        pytest.param(lambda process, mark: kill_all(mark), -signal.SIGKILL, id="SIGKILL"),
    ],
)
def test_interrupted(directory, results, interrupt, exit_code):
    finished = {path: written for path, written in times_written(directory).items() if path.name == "record.json"}
    started = time.time()
    with running(results / "disturbed.yaml", results) as (process, mark):
        wait_until(lambda: new_checkpoint(directory, started) or process.poll() is not None)
        interrupt(process, mark)
        assert process.wait(60) == exit_code, process.stderr.read()
        if exit_code == 130:
            said = process.stderr.read()
            assert said.endswith("Interrupted. What is finished is kept; the same command resumes.\n")
            assert "Traceback" not in said
        wait_until(lambda: not marked(mark), 30)
    after = times_written(directory)
    assert {path: after[path] for path in finished} == finished


def test_a_worker_is_killed(directory, undisturbed, results, monkeypatch):
    """In the launch that goes to the end: the trial of a dead process is tried again, and the sweep is as if nothing had happened."""
    monkeypatch.setattr("analysis.report.write_report", lambda *_: None)
    killed = []
    killer = threading.Thread(target=lambda: killed.append(kill_a_trial(directory, time.time())))
    killer.start()
    done = launch(sweep_of("disturbed"), results=results, checkpoint_seconds=CHECKPOINT_SECONDS)
    killer.join()
    assert killed and not psutil.pid_exists(killed[0])
    assert (done.finished, done.missing, done.failed) == (undisturbed.finished, [], undisturbed.failed)
    assert results_of(directory) == results_of(undisturbed.directory)


def kill_a_trial(directory, since):
    """Kill the process of a trial in training; returns its id."""
    wait_until(lambda: new_checkpoint(directory, since))

    def trials():
        return [process for process in psutil.Process().children(recursive=True) if "ImplicitFunc" in " ".join(process.cmdline())]

    victim = wait_until(trials)[0]
    victim.kill()
    return victim.pid
