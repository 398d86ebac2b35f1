"""The program that ends a process which is stopped or makes no progress, however it hangs."""

import signal
import subprocess
import sys
import textwrap
import time

import psutil
import pytest

from sae_core.watchdog import beat, expected, watched

PROGRAM = """
import ctypes, os, signal, sys, time
from pathlib import Path
from sae_core import watchdog
watchdog.BEAT_SECONDS = 0.1
with watchdog.watched(0.6, Path(sys.argv[1])):
{work}
"""
STOP = "os.kill(os.getpid(), signal.SIGSTOP)"
HOLD_LOCK = "ctypes.PyDLL(None).sleep(60)"
STEP = """
with watchdog.expected():
    for _ in range(8):
        watchdog.beat()
        time.sleep(0.1)
    with watchdog.expected(False):
        time.sleep(0.8)
    watchdog.beat()
    {hang}
"""


def ended(tmp_path, work):
    """The exit code of a process that works while it is watched, and what is said about it."""
    file = tmp_path / "hangs" / "7"
    command = [sys.executable, "-c", PROGRAM.format(work=textwrap.indent(work, "    ")), file]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == ""
    return done.returncode, file.read_text() if file.exists() else ""


@pytest.mark.slow
def test_where_steps_are_expected_one_must_come(tmp_path):
    assert ended(tmp_path, STEP.format(hang="time.sleep(60)")) == (-signal.SIGKILL, "a process made no step for 0.6 s and was ended")


@pytest.mark.slow
@pytest.mark.parametrize("work", [STOP, HOLD_LOCK, STEP.format(hang=STOP)], ids=["stopped", "lock", "stopped in a step"])
def test_a_process_must_live_at_any_moment(tmp_path, work):
    assert ended(tmp_path, work) == (-signal.SIGKILL, "a process was stopped, or held Python's lock, for 0.6 s and was ended")


@pytest.mark.slow
def test_what_takes_its_time_or_ends_is_left_alone(tmp_path):
    assert ended(tmp_path, f"time.sleep(0.8)\n{STEP.format(hang='pass')}\ntime.sleep(0.8)") == (0, "")


def test_nothing_is_left_after_the_block(tmp_path):
    with watched(30.0, tmp_path / "file"):
        beat()
        assert "watchdog.py" in " ".join(" ".join(child.cmdline()) for child in psutil.Process().children())
    beat()
    assert not [child for child in psutil.Process().children() if "watchdog.py" in " ".join(child.cmdline())]
    assert not (tmp_path / "file").exists()


def test_zero_watches_nothing(tmp_path):
    before = len(psutil.Process().children())
    with watched(0.0, tmp_path / "file"):
        assert len(psutil.Process().children()) == before


def test_a_beat_costs_next_to_nothing(tmp_path):
    with watched(30.0, tmp_path / "file"), expected():
        started = time.perf_counter()
        for _ in range(10_000):
            beat()
        assert time.perf_counter() - started < 1
