"""Temporary files of launches that were killed: removed by the guard of their Ray, or by the next launch, unless one may be writing them.

    python leftovers.py DIRECTORY

DIRECTORY is that of a sweep. Only the standard library.
"""

import fcntl
import re
import shutil
import sys
from contextlib import suppress
from pathlib import Path

_TEMPORARY = re.compile(
    r"\.ray-.*"  # what Ray Tune writes
    r"|\..*\.tmp"
    # `files.written_whole`: the name of one of our files, and eight random characters.
    r"|\..+\.(json|jsonl|yaml|csv|parquet|safetensors|html|md|png|svg|log|pt|txt)\.[a-z0-9_]{8}"
)


def remove_temporary(directory: Path) -> None:
    """Remove what has the name of a temporary file, at any depth."""
    for path in [path for path in directory.rglob(".*") if _TEMPORARY.fullmatch(path.name)]:
        with suppress(OSError):  # somebody else's, or gone
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()


def remove_of_killed(sweep: Path) -> None:
    """Remove what a launch that was killed left, also in the caches of activations that its sweep alone has used, as `cache_use` tells."""
    remove_temporary(sweep)
    for user in sweep.parent.glob(f".activations/*/.users/{sweep.name}"):
        with suppress(OSError), (user.parents[1] / ".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails where the next launch is at work
            if all(other == user or other.name.startswith(".") for other in user.parent.iterdir()):
                remove_temporary(user.parents[1])


if __name__ == "__main__":
    remove_of_killed(Path(sys.argv[1]))
