import errno
import fcntl
import json
import os
import subprocess
import sys

import pytest

from sae_core.errors import ConfigError
from sweeps.storage import lock
from sweeps.storage.lock import HOLDER, LOCK, locked


@pytest.fixture(params=[None, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL])
def without_locks(request, monkeypatch):
    """A file system on which `flock` fails; and one on which it works."""
    if request.param is not None:

        def flock(*_):
            raise OSError(request.param, os.strerror(request.param))

        monkeypatch.setattr(fcntl, "flock", flock)
        monkeypatch.setattr(lock, "_SETTLED_S", 0.01)


def no_flock(monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.setattr(lock, "_SETTLED_S", 0.01)


@pytest.mark.usefixtures("without_locks")
def test_a_second_launch_is_refused_and_a_later_one_is_not(tmp_path):
    for _ in range(2):
        with locked(tmp_path):
            (tmp_path / "file").touch()
            with pytest.raises(ConfigError, match=f"once at a time, but .* is writing to '{tmp_path}'"), locked(tmp_path):
                pass
    assert not (tmp_path / HOLDER).exists()


@pytest.mark.usefixtures("without_locks")
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


def holder(directory, **changes):
    mine = {"host": lock.socket.gethostname(), "pid": os.getpid(), "started": lock._started(os.getpid()), "since": "noon"}
    (directory / HOLDER).write_text(json.dumps({**mine, **changes}))


def test_the_holder_is_named(tmp_path, monkeypatch):
    no_flock(monkeypatch)
    holder(tmp_path)
    remedy = f"Wait until it has ended, or stop it. If it has died, delete '{tmp_path / HOLDER}'."
    with pytest.raises(ConfigError, match=rf"process {os.getpid()} of '.+', since noon, is writing to .*{remedy}"), locked(tmp_path):
        pass


@pytest.mark.parametrize(
    "content", ["", "{", "[]", json.dumps({"host": "elsewhere", "pid": 1}), json.dumps({"host": 1, "pid": 1}), json.dumps({"pid": "x"})]
)
def test_who_cannot_be_looked_at_may_live(tmp_path, monkeypatch, content):
    no_flock(monkeypatch)
    (tmp_path / HOLDER).write_text(content)
    with pytest.raises(ConfigError, match=rf"If it has died, delete '.*{HOLDER}'"), locked(tmp_path):
        pass


@pytest.mark.parametrize("changes", [{}, {"pid": 10**12}, {"pid": os.getpid(), "started": "an earlier process with the same id"}])
def test_a_dead_holder_is_overtaken(tmp_path, monkeypatch, changes):
    no_flock(monkeypatch)
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    holder(tmp_path, **{"pid": process.pid, **changes})
    with locked(tmp_path):
        assert json.loads((tmp_path / HOLDER).read_text())["pid"] == os.getpid()
    assert not (tmp_path / HOLDER).exists()


def test_of_two_that_overtake_a_dead_one_the_later_gets_it(tmp_path, monkeypatch):
    no_flock(monkeypatch)
    holder(tmp_path, pid=10**12)
    monkeypatch.setattr(lock.time, "sleep", lambda _: holder(tmp_path, pid=77))
    with pytest.raises(ConfigError, match=r"process 77 of .* is writing"), locked(tmp_path):
        pass
    assert json.loads((tmp_path / HOLDER).read_text())["pid"] == 77


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
