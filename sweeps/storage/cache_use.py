"""Who uses a cache of activations, which sweeps share.

    .lock            shared by the launches of this machine that use the cache; of one alone while it is cleaned or removed
    .users/<sweep>   the last launch of that sweep which used the cache, and what the activations are of

A launch of another node, whose locks may not be seen here, is known by its sweep's lease.
"""

import errno
import fcntl
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from sae_core.errors import DamagedFileError
from sae_core.files import read_json, write_json
from sweeps.storage.lease import Holder, Lease
from sweeps.storage.leftovers import remove_temporary
from sweeps.storage.lock import may_be_held

LOCK = ".lock"
USERS = ".users"


@dataclass(frozen=True, slots=True)
class User:
    """A sweep that used a cache."""

    directory: Path
    """results/<sweep>; it may be gone."""
    launch: str
    source: dict[str, Any]
    """ActivationsConfig, as JSON."""
    used_at: float
    """Begin of that launch: seconds since 1970."""

    def holder(self) -> Holder | None:
        """The launch, if it seems to be running."""
        holder = may_be_held(self.directory)
        return holder if holder is not None and holder.launch == self.launch else None


@contextmanager
def held(caches: Iterable[tuple[Path, Mapping[str, Any]]], lease: Lease) -> Iterator[None]:
    """Use caches. What killed launches left in them is removed before, and what this one left after, if nobody else uses them.

    Args:
        caches: each with the config of its source, in JSON.
        lease: of the launch.
    """
    with ExitStack() as stack:
        for cache, source in caches:
            stack.enter_context(_held(cache, source, lease))
        yield


def users(cache: Path) -> list[User]:
    """The sweeps that used a cache."""
    found = []
    for file in sorted((cache / USERS).glob("[!.]*")):
        with suppress(DamagedFileError, OSError, KeyError):
            content = read_json(file)
            found.append(User(cache.parent.parent / file.name, content["launch"], content["source"], file.stat().st_mtime))
    return found


def try_alone(file: TextIOWrapper) -> bool:
    """Lock a cache for oneself. False where a launch of this machine uses it; true also where the file system has no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EAGAIN, errno.EACCES)
    return True


@contextmanager
def _held(cache: Path, source: Mapping[str, Any], lease: Lease) -> Iterator[None]:
    with _shared_lock(cache) as file:
        _clean(cache, file, lease)
        write_json(cache / USERS / lease.path.parent.name, {"launch": lease.holder.launch, "source": dict(source)})
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_SH)
        try:
            yield
        finally:
            _clean(cache, file, lease)  # what an interrupt kept from being removed
            with suppress(OSError):
                if {path.name for path in cache.iterdir()} <= {LOCK, USERS}:  # nothing came of the launch
                    for path in (*(cache / USERS).iterdir(), cache / LOCK):
                        path.unlink()
                    (cache / USERS).rmdir()
                    cache.rmdir()


def _clean(cache: Path, file: TextIOWrapper, lease: Lease) -> None:
    if try_alone(file) and not any(user.holder() for user in users(cache) if user.launch != lease.holder.launch):
        remove_temporary(cache)


def _shared_lock(cache: Path) -> TextIOWrapper:
    """The lock of a cache, shared; a removal under way is waited for."""
    while True:
        with suppress(FileNotFoundError):  # removed meanwhile
            cache.mkdir(parents=True, exist_ok=True)
            file = (cache / LOCK).open("a")
            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_SH)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), (cache / LOCK).stat()):
                    return file
            file.close()
