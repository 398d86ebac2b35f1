"""Temporary files of launches that were killed: removed by the guard of their Ray, or by the next launch, unless one may be writing them.

    python leftovers.py DIRECTORY

Only the standard library.
"""

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


if __name__ == "__main__":
    remove_temporary(Path(sys.argv[1]))
