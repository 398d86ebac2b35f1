import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sweeps.execution import ray_session
from sweeps.execution.ray_session import Session

WRITER = "import sys, time; file = open(sys.argv[1], 'w'); print('open', flush=True); time.sleep(60)"
READER = "import sys, time; file = open(sys.argv[1]); print('open', flush=True); time.sleep(60)"


@pytest.fixture
def base(tmp_path, monkeypatch):
    """Where sessions are made."""
    monkeypatch.setattr(ray_session, "bases", lambda: [tmp_path])
    return tmp_path


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


def gone(path, seconds=10):
    end = time.monotonic() + seconds
    while path.exists() and time.monotonic() < end:
        time.sleep(0.02)
    return not path.exists()


def test_what_writes_into_a_session_ends_with_it(base, with_file):
    session = Session()
    session.ray.mkdir()
    writer = with_file(WRITER, session.ray / "log")
    reader = with_file(READER, session.ray / "log")  # somebody who looks at the log
    other = with_file(WRITER, base / "log")
    assert session.directory.stat().st_mode & 0o777 == 0o700
    assert set(ray_session.writers(session.directory)) == {writer.pid, os.getpid()}
    session.close()
    assert writer.wait(10) == -signal.SIGKILL
    assert reader.poll() is None
    assert other.poll() is None
    assert not session.directory.exists()


def test_a_session_ends_with_the_process_that_made_it(base, with_file):
    program = f"""
import time
from pathlib import Path
from sweeps.execution import ray_session
ray_session.bases = lambda: [Path({str(base)!r})]
print(ray_session.Session().directory, flush=True)
time.sleep(60)
"""
    owner = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    directory = Path(owner.stdout.readline().strip())
    writer = with_file(WRITER, directory / "log")
    owner.kill()
    owner.communicate()
    assert writer.wait(10) == -signal.SIGKILL
    assert gone(directory)


def test_sessions_whose_owner_and_guard_died_are_removed(base, with_file):
    living = Session()
    dead = base / f"{ray_session.PREFIX}dead"
    dead.mkdir()
    (dead / "lock").touch()
    being_made, theirs = base / f"{ray_session.PREFIX}new", base / "others"
    being_made.mkdir()
    theirs.mkdir()
    writer = with_file(WRITER, dead / "log")
    ray_session.remove_left_over()
    assert writer.wait(10) == -signal.SIGKILL
    assert not dead.exists()
    assert living.directory.exists() and being_made.exists() and theirs.exists()
    os.utime(being_made, (0, 0))
    ray_session.remove_left_over()
    assert not being_made.exists()
    living.close()


def test_children_and_whether_they_live():
    process = subprocess.Popen(["sleep", "60"])
    while not ray_session.children(os.getpid(), ("sleep",)):  # it has its name once it was executed
        time.sleep(0.01)
    assert ray_session.children(os.getpid(), ("sleep", "awake")) == {"sleep": process.pid}
    assert ray_session.is_alive(process.pid)
    process.kill()
    while ray_session.is_alive(process.pid):
        time.sleep(0.01)
    assert ray_session.children(os.getpid(), ("sleep",)) == {"sleep": process.pid}
    process.wait()
    assert ray_session.children(os.getpid(), ("sleep",)) == {}
    assert not ray_session.is_alive(process.pid)


@pytest.mark.parametrize("base", ["/tmp/" + "x" * 75, "/nothing/there", "relative", "/proc", "/tmp/\0"])
def test_directories_that_cannot_hold_a_session(monkeypatch, base):
    Path("/tmp").joinpath("x" * 75).mkdir(exist_ok=True)
    monkeypatch.setattr(os, "environ", {"TMPDIR": base})
    assert Path(base) not in ray_session.bases()
    Path("/tmp").joinpath("x" * 75).rmdir()


def test_a_session_needs_a_directory(monkeypatch):
    monkeypatch.setattr(ray_session, "bases", list)
    with pytest.raises(FileNotFoundError, match="no directory for temporary files has a short path and 64 MiB of free space"):
        Session()


def test_names_of_sockets_are_short_enough():
    # <base>/sae-sweep-12345678/ray/session_2026-11-30_05-45-03_590797_4194304/sockets/plasma_store
    rest = len("/sae-sweep-12345678/ray/session_2026-11-30_05-45-03_590797_4194304/sockets/plasma_store")
    assert ray_session.LONGEST_BASE + rest <= 107
