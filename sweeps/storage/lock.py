"""One launch per results directory at a time. A second launch is refused, it does not wait."""

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from io import TextIOWrapper
from pathlib import Path

from sae_core.errors import ConfigError, border

LOCK = ".lock"
"""Locked with `flock` during a launch."""
HOLDER = ".lock.holder"
"""Exists during a launch, and names it, on file systems without locks."""


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold a directory for one launch; a process that dies no longer holds it. It is created, and removed if nothing was written to it.

    Raises:
        ConfigError: another launch holds it, or it cannot be written to.
    """
    with ExitStack() as at_end:
        with border(f"a results directory must be writable, but got {str(directory)!r}", "Choose another with `--results`."):
            created = [path for path in (directory, *directory.parents) if not path.exists()]
            at_end.callback(_remove_empty, created)
            directory.mkdir(parents=True, exist_ok=True)
            file = at_end.enter_context((directory / LOCK).open("a"))
            holder = _lock(file, directory)
            if holder:
                at_end.callback(holder.unlink, missing_ok=True)
        try:
            yield
        finally:
            if created and {path.name for path in directory.iterdir()} <= {LOCK, HOLDER}:
                (directory / LOCK).unlink(missing_ok=True)  # while it is held: whoever has opened it sees that it is gone


def _lock(file: TextIOWrapper, directory: Path) -> Path | None:
    """Take the lock. Returns the file that replaces it where the file system has no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            raise _busy(directory, "another launch") from None
        return _create_holder(directory)
    with suppress(FileNotFoundError):
        if os.path.samestat(os.fstat(file.fileno()), (directory / LOCK).stat()):
            return None
    raise _busy(directory, "another launch that has just ended")


def _create_holder(directory: Path) -> Path:
    path = directory / HOLDER
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
    except FileExistsError:
        name = path.read_text(encoding="utf-8", errors="replace").strip() or "another launch"
        raise _busy(directory, name, f" If it has died, delete {str(path)!r}.") from None
    return path


def _busy(directory: Path, holder: str, remedy: str = "") -> ConfigError:
    return ConfigError(
        f"only one launch at a time may write to a sweep, but {holder} is writing to {str(directory)!r}. "
        f"Wait until it has ended, or stop it.{remedy}"
    )


def _remove_empty(directories: list[Path]) -> None:
    for path in directories:
        with suppress(OSError, ValueError):
            path.rmdir()
