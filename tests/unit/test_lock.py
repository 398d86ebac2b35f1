import errno
import fcntl
import os

import pytest

from sae_core.errors import ConfigError
from sweeps.storage.lock import HOLDER, LOCK, locked


@pytest.fixture
def no_locks(monkeypatch):
    """A file system on which `flock` fails."""

    def flock(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)


@pytest.fixture(params=["locks", "no_locks"])
def file_system(request):
    if request.param == "no_locks":
        request.getfixturevalue("no_locks")


@pytest.mark.usefixtures("file_system")
def test_a_second_launch_is_refused_and_a_later_one_is_not(tmp_path):
    for _ in range(2):
        with locked(tmp_path):
            (tmp_path / "file").touch()
            with pytest.raises(ConfigError, match=f"only one launch at a time .* but .* is writing to '{tmp_path}'"), locked(tmp_path):
                pass
    assert not (tmp_path / HOLDER).exists()


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


@pytest.mark.usefixtures("no_locks")
@pytest.mark.parametrize(("content", "holder"), [("process 7 on node-3", "process 7 on node-3"), ("", "another launch")])
def test_without_locks_the_holder_is_named_and_how_to_replace_a_dead_one(tmp_path, content, holder):
    (tmp_path / HOLDER).write_text(content)
    remedy = f"Wait until it has ended, or stop it. If it has died, delete '{tmp_path / HOLDER}'."
    with pytest.raises(ConfigError, match=rf"but {holder} is writing to .*{remedy}"), locked(tmp_path):
        pass
    assert (tmp_path / HOLDER).read_text() == content


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
