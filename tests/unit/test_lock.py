import errno
import fcntl
import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time

import pytest

from sae_core.errors import ConfigError
from sweeps.storage import lease
from sweeps.storage.lock import HOLDER, LOCK, locked, may_be_held

BUSY = "only one launch at a time .* but {} is writing to '{}'"


@pytest.fixture
def no_locks(monkeypatch):
    """A file system on which `flock` fails."""

    def flock(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)


@pytest.fixture
def own_locks(monkeypatch):
    """Nodes that do not see each other's locks: whoever asks is on another one."""
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    monkeypatch.setattr(lease, "boot", lambda: secrets.token_hex(8))


@pytest.fixture(params=["locks", "no_locks", "own_locks"])
def file_system(request):
    if request.param != "locks":
        request.getfixturevalue(request.param)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    for name, seconds in (("BEAT_SECONDS", 0.05), ("DEAD_SECONDS", 0.6), ("LOST_SECONDS", 0.4), ("_POLL_SECONDS", 0.05)):
        monkeypatch.setattr(lease, name, seconds)


@pytest.mark.usefixtures("file_system")
def test_a_second_launch_is_refused_and_a_later_one_is_not(tmp_path):
    for _ in range(2):
        with locked(tmp_path):
            (tmp_path / "file").touch()
            with pytest.raises(ConfigError, match=BUSY.format(f"process {os.getpid()} on .*", tmp_path)), locked(tmp_path):
                pass
            assert may_be_held(tmp_path).pid == os.getpid()
        assert may_be_held(tmp_path) is None
    assert {path.name for path in tmp_path.iterdir()} == {"file", LOCK}


@pytest.mark.usefixtures("file_system")
def test_directories_made_for_nothing_are_removed(tmp_path):
    directory = tmp_path / "results" / "small"
    for _ in range(2):
        with pytest.raises(ConfigError, match="no such model"), locked(directory):
            raise ConfigError("no such model")
        assert list(tmp_path.iterdir()) == []
    with locked(directory):
        (directory / "sweep.json").touch()
    assert {path.name for path in directory.iterdir()} == {LOCK, "sweep.json"}
    with locked(directory):  # it was there before
        (directory / "sweep.json").unlink()
    assert directory.is_dir()


def test_what_the_checks_wrote_beside_it_stays(tmp_path):
    with locked(tmp_path / "results" / "small"):
        (tmp_path / "results" / ".activations").mkdir()
    assert [path.name for path in (tmp_path / "results").iterdir()] == [".activations"]


HOLDING = """
import fcntl, sys, time
from pathlib import Path
from sweeps.storage import lease, lock
lease.BEAT_SECONDS = 0.05
if sys.argv[2] == "another node":  # whose locks do not reach this one
    lease.boot = lambda: "another"
    fcntl.flock = lambda *_: None
with lock.locked(Path(sys.argv[1])) as held:
    print("held", flush=True)
    while not held.reason:
        time.sleep(0.05)
    print(held.reason, flush=True)
"""


@pytest.fixture
def holding():
    """Starts processes that hold a directory; gone at the end."""
    processes = []

    def start(directory, node):
        process = subprocess.Popen([sys.executable, "-c", HOLDING, str(directory), node], stdout=subprocess.PIPE, text=True)
        processes.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in processes:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_killed_launch_on_this_machine_holds_nothing(tmp_path, holding):
    process = holding(tmp_path, "this machine")
    with pytest.raises(ConfigError, match=BUSY.format(f"process {process.pid} on .*", tmp_path)), locked(tmp_path):
        pass
    process.kill()
    process.wait()
    assert (tmp_path / HOLDER).exists()
    assert may_be_held(tmp_path) is None
    began = time.monotonic()
    with locked(tmp_path):
        assert time.monotonic() - began < lease.DEAD_SECONDS / 2  # it is not waited for


@pytest.mark.slow
def test_a_launch_on_another_node_is_seen_until_it_is_dead(tmp_path, holding, caplog):
    process = holding(tmp_path, "another node")
    with pytest.raises(ConfigError, match=BUSY.format(f"process {process.pid} on .*", tmp_path)), locked(tmp_path):
        pass
    assert may_be_held(tmp_path).pid == process.pid
    process.kill()
    process.wait()
    with locked(tmp_path) as held:
        assert lease.read_lease(tmp_path / HOLDER)[0].launch == held.holder.launch
    assert f"{tmp_path} may be held by process {process.pid}" in caplog.text


@pytest.mark.slow
def test_a_launch_that_slept_for_too_long_stops_and_leaves_the_next_one_alone(tmp_path, holding):
    process = holding(tmp_path, "another node")
    process.send_signal(signal.SIGSTOP)
    with locked(tmp_path) as held:
        process.send_signal(signal.SIGCONT)
        assert process.stdout.readline() == "another launch has taken it\n"
        assert process.wait(10) == 0
        time.sleep(0.2)
        held.check()


@pytest.mark.usefixtures("own_locks")
@pytest.mark.parametrize("jump", [-1e9, 1e9])
def test_a_clock_that_jumps_changes_nothing(tmp_path, monkeypatch, jump):
    real = time.time
    with locked(tmp_path) as held:
        monkeypatch.setattr(time, "time", lambda: real() + jump)
        os.utime(tmp_path / HOLDER, (real() + jump,) * 2)
        with pytest.raises(ConfigError, match=BUSY.format(".*", tmp_path)), locked(tmp_path):
            pass
        held.check()


def test_who_loses_the_lease_is_told_and_removes_nothing(tmp_path):
    lost = threading.Event()
    with pytest.raises(lease.LeaseLostError, match="another launch has taken it"), locked(tmp_path, lost.set):
        (tmp_path / HOLDER).write_text(json.dumps({"launch": "x", "host": "node-3", "pid": 7, "boot": "y", "beat": "0"}))
        assert lost.wait(10)
        raise KeyboardInterrupt
    assert lease.read_lease(tmp_path / HOLDER)[0].host == "node-3"


@pytest.mark.slow
def test_a_lease_that_cannot_be_written_to_is_given_up(tmp_path, monkeypatch):
    lost = threading.Event()
    with locked(tmp_path, lost.set) as held:
        monkeypatch.setattr(os, "pwrite", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "Input/output error")))
        assert lost.wait(10)
        with pytest.raises(lease.LeaseLostError, match=r"could not be written to for .* Input/output error"):
            held.check()


def test_a_lease_that_somebody_deleted_is_written_again(tmp_path):
    with locked(tmp_path) as held:
        (tmp_path / HOLDER).unlink()
        end = time.monotonic() + 10
        while not (tmp_path / HOLDER).exists() and time.monotonic() < end:
            time.sleep(0.02)
        assert lease.read_lease(tmp_path / HOLDER)[0] == held.holder


@pytest.mark.usefixtures("own_locks")
@pytest.mark.parametrize("content", ["process 7 on node-3", "", "[]", '{"launch": 1}'])
@pytest.mark.slow
def test_a_file_that_names_nobody_is_a_lease_of_a_dead_launch(tmp_path, content):
    (tmp_path / HOLDER).write_text(content)
    with locked(tmp_path) as held:
        held.check()


@pytest.mark.usefixtures("own_locks")
@pytest.mark.slow
def test_of_many_launches_that_find_a_dead_one_one_gets_the_directory(tmp_path):
    (tmp_path / HOLDER).write_text("dead")
    got, refused, done = [], [], threading.Event()

    def launch():
        try:
            with locked(tmp_path) as held:
                got.append(held)
                done.wait(10)
                held.check()
        except ConfigError:
            refused.append(1)

    threads = [threading.Thread(target=launch) for _ in range(8)]
    for thread in threads:
        thread.start()
    while len(refused) + len(got) < 8:
        time.sleep(0.02)
    time.sleep(0.3)
    done.set()
    for thread in threads:
        thread.join()
    assert (len(got), len(refused), got[0].reason) == (1, 7, "")
    assert {path.name for path in tmp_path.iterdir()} == {LOCK}


def test_a_lock_that_was_removed_meanwhile_is_none(tmp_path, monkeypatch):
    directory = tmp_path / "small"
    real = fcntl.flock

    def flock(file, operation):
        (directory / LOCK).unlink()  # by a launch that was refused, just after we opened it
        real(file, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(ConfigError, match=f"another launch that has just ended is writing to '{directory}'"), locked(directory):
        pass


def test_a_directory_that_cannot_be_written_to(tmp_path):
    (tmp_path / LOCK).mkdir()
    told = rf"must be writable, but got '{tmp_path}': .*Is a directory.*\. Choose another with `--results`"
    with pytest.raises(ConfigError, match=told), locked(tmp_path):
        pass
