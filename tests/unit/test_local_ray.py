import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from sae_core.errors import ConfigError
from sweeps.execution import guard, local_ray
from sweeps.execution.local_ray import LocalRay

WRITER = "import sys, time; file = open(sys.argv[1], 'w'); print('open', flush=True); time.sleep(60)"
READER = "import sys, time; file = open(sys.argv[1]); print('open', flush=True); time.sleep(60)"


@pytest.fixture
def base(monkeypatch):
    """Where directories for Ray are made. Not pytest's, whose path is too long for the sockets of Ray."""
    with tempfile.TemporaryDirectory(dir="/tmp") as base:
        monkeypatch.setattr(tempfile, "tempdir", base)
        yield Path(base)


@pytest.fixture
def with_file():
    """Starts a process that has a file open; ended at the end."""
    processes = []

    def start(program, path):
        process = subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE)
        processes.append(process)
        assert process.stdout.readline() == b"open\n"
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def guarding(directory, program, results="", stall_seconds="0"):
    command = [sys.executable, "-I", guard.__file__, str(directory), str(results), stall_seconds, sys.executable, "-c", program]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_what_writes_into_the_directory_ends_with_the_launch(base, with_file):
    directory = base / "session"
    directory.mkdir()
    results = base / "results"
    (results / "runs").mkdir(parents=True)
    for name in (".record.json.ab12cd_9", "record.json"):
        (results / "runs" / name).touch()
    guardian = guarding(directory, "import time; time.sleep(60)", results)
    writer = with_file(WRITER, directory / "raylet.log")
    reader = with_file(READER, directory / "raylet.log")  # somebody who looks at the log
    other = with_file(WRITER, base / "log")
    assert writer.pid in guard.writers(directory)
    guardian.stdin.close()  # as when the launch dies
    assert guardian.wait(20) == 0
    guardian.stdout.close()
    assert writer.wait(10) == -signal.SIGKILL
    assert reader.poll() is None and other.poll() is None
    assert not directory.exists()
    assert [path.name for path in (results / "runs").iterdir()] == ["record.json"]


@pytest.mark.slow
def test_what_is_stopped_for_long_is_ended(base, with_file):
    (base / "results").mkdir()
    guardian = guarding(base, "import time; time.sleep(60)", base / "results", "0.5")
    writer = with_file(WRITER, base / "raylet.log")
    writer.send_signal(signal.SIGSTOP)
    assert writer.wait(20) == -signal.SIGKILL
    assert (base / "results" / ".hangs.tmp" / str(writer.pid)).read_text() == "a process was stopped for 0.5 s and was ended"
    guardian.communicate()
    assert not list(base.rglob(".hangs.tmp"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("print('INFO x.py:1 -- Some died:\\nINFO x.py:1 --   gcs_server [exit code=-9]\\nThe rest ends')", "gcs_server [exit code=-9]"),
        ("raise SystemExit('ValueError: abc')", "ValueError: abc"),
        ("raise SystemExit(3)", "exit code 3"),
    ],
)
def test_the_end_of_ray_is_reported(base, program, reason):
    guardian = guarding(base, program)
    assert guardian.stdout.read() == reason  # to its end, while the guard waits for the launch
    assert guardian.poll() is None
    guardian.communicate()


@pytest.mark.slow
def test_directories_of_killed_launches_are_removed(base, with_file):
    left, young, theirs = base / "sae-ray-left", base / "sae-ray-young", base / "others"
    for path in (left, young, theirs):
        path.mkdir()
    writer = with_file(WRITER, left / "log")
    for path in (left, theirs):
        os.utime(path, (0, 0))
    made = local_ray._new_directory()
    assert made.parent == base
    assert made.stat().st_mode & 0o777 == 0o700
    assert writer.wait(10) == -signal.SIGKILL
    assert not left.exists()
    assert young.exists() and theirs.exists()


def test_ray_needs_a_directory_with_a_short_path(base, monkeypatch):
    long = base / ("x" * 20)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    made = local_ray._new_directory()
    assert made.parent == Path("/tmp")
    made.rmdir()
    monkeypatch.setattr(tempfile, "mkdtemp", lambda **_: Path("/nothing/there").stat())
    with pytest.raises(ConfigError, match=r"a directory for temporary files must be writable: \[Errno 2\] No such file"):
        local_ray._new_directory()


def test_ray_is_not_imported_before_it_is_started(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", object())
    monkeypatch.delenv(local_ray.LOOPBACK, raising=False)
    with pytest.raises(ConfigError, match="but it is already imported"):
        LocalRay({}).start()


def test_names_of_sockets_are_short_enough():
    # <base>/sae-sweep-12345678/ray/session_2026-11-30_05-45-03_590797_4194304/sockets/plasma_store
    rest = len("/sae-sweep-12345678/ray/session_2026-11-30_05-45-03_590797_4194304/sockets/plasma_store")
    assert local_ray.LONGEST_BASE + rest <= 107
