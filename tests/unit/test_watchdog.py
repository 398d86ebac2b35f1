"""The program that ends a process which makes no progress, however it hangs."""

import signal
import subprocess
import sys
import time

import psutil
import pytest

from sae_core.watchdog import beat, watched

PROGRAM = """
import os, signal, sys, time
from pathlib import Path
from sae_core import watchdog
watchdog.BEAT_SECONDS = 0.0
with watchdog.watched(1.0, Path(sys.argv[1])):
    for _ in range(12):
        watchdog.beat()
        time.sleep(0.1)
    print("lives", flush=True)
    {hang}
"""


def ended(tmp_path, hang):
    """The exit code of a process that beats for longer than it may rest, then hangs; and what is said about it."""
    file = tmp_path / "hangs" / "7"
    done = subprocess.run([sys.executable, "-c", PROGRAM.format(hang=hang), file], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "lives\n", done.stderr
    return done.returncode, file.read_text() if file.exists() else ""


@pytest.mark.parametrize("hang", ["time.sleep(60)", "os.kill(os.getpid(), signal.SIGSTOP)"])
def test_what_hangs_is_ended_and_said(tmp_path, hang):
    assert ended(tmp_path, hang) == (-signal.SIGKILL, "a process made no step for 1 s and was ended")


def test_what_ends_is_left_alone(tmp_path):
    assert ended(tmp_path, "pass") == (0, "")


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
    with watched(30.0, tmp_path / "file"):
        started = time.perf_counter()
        for _ in range(10_000):
            beat()
        assert time.perf_counter() - started < 1
