"""`sae-sweep run` as a process that tests interrupt, kill and look at."""

import os
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from sweeps.execution import guard, local_ray


class Command:
    """A running `sae-sweep`, and what it has said so far."""

    def __init__(self, arguments, environment, directory, program=("-m", "sweeps.cli"), cwd=None):
        self.directory = directory
        self.process = subprocess.Popen(
            [sys.executable, *program, *map(str, arguments)],
            env={**os.environ, **environment},
            cwd=cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.lines = []
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.end()

    def _read(self):
        for line in self.process.stderr:
            self.lines.append(line)

    @property
    def said(self):
        return "".join(self.lines)

    def wait_for(self, start, seconds=120):
        """Wait until a line begins with `start`."""
        wait_until(lambda: any(line.startswith(start) for line in self.lines) or self.process.poll() is not None, seconds)
        assert any(line.startswith(start) for line in self.lines), self.said

    def ends(self, seconds=60):
        """Its exit code."""
        code = self.process.wait(seconds)
        self.reader.join(10)
        return code

    def sessions(self):
        """The directories of its local Rays."""
        return list(self.directory.glob(f"{local_ray.PREFIX}*/"))

    def trains(self):
        """Whether there is a trial."""
        return any("ImplicitFunc" in line for line in self.ray_processes().values())

    def watched(self, name):
        """The process id of a worker with this name that has a watchdog; None where there is none yet."""
        for pid, line in self.ray_processes().items():
            with suppress(psutil.Error):
                if name in line and any("watchdog.py" in " ".join(child.cmdline()) for child in psutil.Process(pid).children()):
                    return pid
        return None

    def part(self, name):
        """The process id of a part of its local Ray."""
        return next(pid for pid, line in self.ray_processes().items() if f"/{name} " in line)

    def end(self):
        """End it, and its children, if it runs."""
        if self.process.poll() is None:
            for process in psutil.Process(self.process.pid).children(recursive=True):
                with suppress(psutil.Error):
                    process.kill()
            self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        self.process.stderr.close()

    def ray_processes(self):
        """What its local Rays consist of, but itself: process id -> command line."""
        lines = {}
        for pid in {pid for directory in self.sessions() for pid in guard.writers(directory)} - {self.process.pid}:
            with suppress(psutil.Error):  # it has just ended
                lines[pid] = " ".join(psutil.Process(pid).cmdline())
        return lines


def wait_until(happens, seconds=300):
    """The first true value of `happens()`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := happens():
            return value
        time.sleep(0.02)
    return pytest.fail(f"did not happen within {seconds} s: {happens}")


@contextmanager
def running(*arguments, **environment):
    """`sae-sweep` with arguments and further environment; gone at the end."""
    # Not pytest's, whose path is too long for the sockets of Ray.
    with (
        tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as directory,
        Command(arguments, {"TMPDIR": directory, **environment}, Path(directory)) as command,
    ):
        yield command
