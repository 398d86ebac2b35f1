"""Keeps what cannot be read under another name, so that a launch can write in its place."""

import logging
import shutil
from pathlib import Path

log = logging.getLogger(__name__)


def set_aside(path: Path, reason: str) -> None:
    """Rename a file or directory to `<name>.damaged`, over an earlier one of that name, and log why."""
    aside = path.with_name(f"{path.name}.damaged")
    shutil.rmtree(aside) if aside.is_dir() and not aside.is_symlink() else aside.unlink(missing_ok=True)
    path.replace(aside)
    log.warning("%s was renamed to %s: %s", path, aside.name, reason.rstrip("."))


def make_room(path: Path, *, directory: bool = False) -> None:
    """Set aside what is not a file, or not a directory, where a launch needs one."""
    fits = path.is_dir() if directory else path.is_file()
    if not fits and (path.is_symlink() or path.exists()):
        set_aside(path, f"a {'directory' if directory else 'file'} is written there")
