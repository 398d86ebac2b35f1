"""Temporary files of launches that were killed: removed by the next launch, unless a living one may be writing them."""

import fcntl
import re
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

LOCK = ".lock"
"""File in a cache of activations, locked by the launches that use it."""
OLD_SECONDS = 3600.0
"""Age from which a temporary file in a cache that others use is left over."""
_TEMPORARY = re.compile(
    r"\.ray-.*"  # what Ray Tune writes
    r"|\..*\.tmp"
    # `files.written_whole`: the name of one of our files, and eight random characters.
    r"|\..+\.(json|jsonl|yaml|csv|parquet|safetensors|html|md|png|svg|log|pt|txt)\.[a-z0-9_]{8}"
)


def remove_temporary(directory: Path, *, older_than: float = 0.0) -> None:
    """Remove what has the name of a temporary file, at any depth.

    Args:
        older_than: seconds since it was last written to.
    """
    latest = time.time() - older_than
    for path in [path for path in directory.rglob(".*") if _TEMPORARY.fullmatch(path.name)]:
        with suppress(OSError):  # somebody else's, or gone
            if path.lstat().st_mtime > latest:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()


@contextmanager
def held(caches: Iterable[Path]) -> Iterator[None]:
    """Use caches of activations, which sweeps share; what killed launches left in them is removed."""
    with ExitStack() as stack:
        for cache in caches:
            stack.enter_context(_held(cache))
        yield


@contextmanager
def _held(cache: Path) -> Iterator[None]:
    cache.mkdir(parents=True, exist_ok=True)
    try:
        with (cache / LOCK).open("a") as file:
            age = OLD_SECONDS
            with suppress(OSError):  # others use the cache, or the file system has no locks
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                age = 0.0
            remove_temporary(cache, older_than=age)
            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_SH)
            yield
    finally:
        with suppress(OSError):
            if {path.name for path in cache.iterdir()} == {LOCK}:  # nothing came of the launch
                (cache / LOCK).unlink()
                cache.rmdir()
