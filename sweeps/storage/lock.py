"""One launch per results directory at a time, on every file system. Nobody waits: a second launch is refused."""

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from sae_core.errors import ConfigError, border
from sae_core.files import write_json

LOCK = ".lock"
"""Locked with `flock` during a launch."""
HOLDER = ".lock.holder"
"""Names the launch, on file systems that have no locks."""
_SETTLED_S = 0.5
"""Of two launches that take the place of a dead one within this time, the later one gets it."""


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold a directory for one launch; who dies no longer holds it. It is made, and removed again if nothing was written to it.

    Raises:
        ConfigError: another launch is under way, or the directory cannot be written to.
    """
    made: list[Path] = []
    writable = f"a results directory must be writable, but got {str(directory)!r}", "Choose another with `--results`."
    try:
        with border(*writable):
            file = _open(directory, made)
        with file:
            with border(*writable):
                holder = _hold(file, directory)
            try:
                yield
            finally:
                if holder is not None:
                    (directory / HOLDER).unlink(missing_ok=True)
                if made:
                    _remove_if_empty(directory)
    finally:
        for path in made:
            with suppress(OSError, ValueError):
                path.rmdir()


def _open(directory: Path, made: list[Path]) -> TextIOWrapper:
    """The open file to lock. Directories that are made for it are appended to `made`, deepest first."""
    made += [path for path in (directory, *directory.parents) if not path.exists()]
    directory.mkdir(parents=True, exist_ok=True)
    return (directory / LOCK).open("a")


def _hold(file: TextIOWrapper, directory: Path) -> dict[str, Any] | None:
    """Take the lock. Returns the content of the file that does for it where the file system has no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            raise _busy(directory, "another launch") from None
        return _hold_by_name(directory)
    with suppress(FileNotFoundError):
        if os.path.samestat(os.fstat(file.fileno()), (directory / LOCK).stat()):
            return None
    raise _busy(directory, "another launch that has just ended")  # it removed the directory, which was empty


def _hold_by_name(directory: Path) -> dict[str, Any]:
    """Hold a directory by a file that only one launch can create, and that names it."""
    file = directory / HOLDER
    mine = {"host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid()), "since": _now()}
    try:
        with file.open("x", encoding="utf-8") as new:
            json.dump(mine, new)
        return mine
    except FileExistsError:
        holder = _read_holder(file)
    if holder is None or holder["host"] != mine["host"] or _is_alive(holder):
        raise _busy(directory, _name(holder), f" If it has died, delete {str(file)!r}.")
    write_json(file, mine, checksum=False)
    time.sleep(_SETTLED_S)
    if (holder := _read_holder(file)) != mine:
        raise _busy(directory, _name(holder))
    return mine


def _read_holder(file: Path) -> dict[str, Any] | None:
    """None where the file cannot be read: it is just being written, or was cut off."""
    try:
        holder = dict(json.loads(file.read_text(encoding="utf-8")))
        return holder if isinstance(holder["host"], str) and isinstance(holder["pid"], int) else None
    except Exception:
        return None


def _is_alive(holder: dict[str, Any]) -> bool:
    """Whether a process of this host still runs, and is not another one that got its id."""
    try:
        os.kill(holder["pid"], 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    now = _started(holder["pid"])
    return now is None or now == holder.get("started")


def _started(pid: int) -> str | None:
    """When a process began, in ticks since the start of the machine; None where the system does not say."""
    try:
        # The name of the program, in brackets, may hold spaces.
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def _busy(directory: Path, who: str, remedy: str = "") -> ConfigError:
    return ConfigError(
        f"a sweep must be launched once at a time, but {who} is writing to {str(directory)!r}. Wait until it has ended, or stop it.{remedy}"
    )


def _name(holder: dict[str, Any] | None) -> str:
    return "another launch" if holder is None else f"process {holder['pid']} of {holder['host']!r}, since {holder.get('since')},"


def _remove_if_empty(directory: Path) -> None:
    """Remove the lock of a directory that holds nothing else: whoever has opened it meanwhile sees that it is gone."""
    with suppress(OSError):
        if {path.name for path in directory.iterdir()} <= {LOCK}:
            (directory / LOCK).unlink()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
