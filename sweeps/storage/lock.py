"""One launch per results directory at a time. A second launch is refused, it does not wait.

Two launches of one machine see each other by `flock`, which ends with its process. Between nodes, and on file systems without locks, the
lease counts (`lease.py`); it is always written, since no program can know whether a file system's locks reach other nodes.
"""

import errno
import fcntl
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from io import TextIOWrapper
from pathlib import Path

from sae_core.errors import ConfigError, border
from sweeps.storage import lease
from sweeps.storage.lease import Holder, Lease

log = logging.getLogger(__name__)

LOCK = ".lock"
"""Locked with `flock` during a launch."""
HOLDER = ".lock.holder"
"""Exists during a launch, and names it: its lease."""


@contextmanager
def locked(directory: Path, lost: Callable[[], None] = lambda: None) -> Iterator[Lease]:
    """Hold a directory for one launch; a process that dies no longer holds it. It is created, and removed if nothing was written to it.

    Args:
        lost: called from another thread if the directory can no longer be held: then nothing more may be written.

    Raises:
        ConfigError: another launch holds it, or it cannot be written to.
        LeaseLostError: an interrupt came from `lost`.
    """
    with ExitStack() as at_end:
        with border(f"a results directory must be writable, but got {str(directory)!r}", "Choose another with `--results`."):
            created = [path for path in (directory, *directory.parents) if not path.exists()]
            at_end.callback(_remove_empty, created)
            directory.mkdir(parents=True, exist_ok=True)
            file = at_end.enter_context((directory / LOCK).open("a"))
            held = _take(directory, lost, has_locks=_flock(file, directory))
            held.keep()
            at_end.callback(held.end)
        try:
            yield held
        except KeyboardInterrupt:
            held.check()
            raise
        finally:
            if created and {path.name for path in directory.iterdir()} <= {LOCK, HOLDER}:
                (directory / LOCK).unlink(missing_ok=True)  # while it is held: whoever has opened it sees that it is gone


def may_be_held(directory: Path) -> Holder | None:
    """Who seems to hold a directory: whose lease is there, unless its process has certainly ended. It does not wait."""
    try:
        holder, _ = lease.read_lease(directory / HOLDER)
        with (directory / LOCK).open("a") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return None
    except OSError:
        return holder
    return None if _ended(holder, has_locks=True) else holder


def _ended(holder: Holder | None, *, has_locks: bool) -> bool:
    """Whether the process behind a lease is no more, given that its lock is free: certain only on the same running system."""
    return has_locks and holder is not None and holder.boot == lease.boot()


def _flock(file: TextIOWrapper, directory: Path) -> bool:
    """Take the lock. False where the file system has none."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            return False
        with suppress(FileNotFoundError):
            raise _busy(directory, lease.read_lease(directory / HOLDER)[0]) from None
        raise _busy(directory, None) from None
    with suppress(FileNotFoundError):
        if os.path.samestat(os.fstat(file.fileno()), (directory / LOCK).stat()):
            return True
    raise _busy(directory, "another launch that has just ended")


def _take(directory: Path, lost: Callable[[], None], *, has_locks: bool) -> Lease:
    """Take the lease, also one that is no longer held: where that is not certain, it is watched until it is."""
    ours = Lease(directory / HOLDER, lost)
    if ours.create():
        return ours
    with suppress(FileNotFoundError):
        holder, seen = lease.read_lease(ours.path)
        if not _ended(holder, has_locks=has_locks):
            name = holder or "another launch"
            log.warning("%s may be held by %s: waiting for up to %.0f s for a sign of it", directory, name, lease.DEAD_SECONDS)
            if lease.is_renewed(ours.path, seen):
                raise _busy(directory, holder)
        if ours.replace(seen):
            return ours
        raise _busy(directory, None)
    if ours.create():
        return ours
    raise _busy(directory, None)


def _busy(directory: Path, holder: Holder | str | None) -> ConfigError:
    return ConfigError(
        f"only one launch at a time may write to a sweep, but {holder or 'another launch'} is writing to {str(directory)!r}. "
        "Wait until it has ended, or stop it."
    )


def _remove_empty(directories: list[Path]) -> None:
    for path in directories:
        with suppress(OSError, ValueError):
            path.rmdir()
