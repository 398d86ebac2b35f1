"""What a launch shows while it runs, in a small file that is written again every other second: any terminal on any node can read it."""

import dataclasses
import time
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from sae_core.errors import DamagedFileError
from sae_core.files import read_json, write_json

SECONDS = 2.0
"""Time from one writing to the next."""
SILENT_SECONDS = 12.0
"""A file that has not changed for so long is of a launch that was killed."""


@dataclass(frozen=True, slots=True)
class GroupProgress:
    """A group in training."""

    number: int
    """From 1, in the order in which groups start."""
    runs: list[str]
    """Run ids."""
    fraction: float = 0.0
    """Part of its training tokens that is done."""
    node: str | None = None
    """Host name, once the group has reported."""
    tokens_per_second: float | None = None
    """Training tokens per second, of all its runs together."""
    loss: list[float] | None = None
    """Smallest and largest of its runs, at their last row of history."""
    l0: list[float] | None = None
    """As `loss`."""
    seconds_left: float | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a launch is."""

    launch: int = 0
    """Number of the launch."""
    beat: int = 0
    """Times the file was written. It is what readers watch: clocks of two nodes may differ."""
    written_at: str = ""
    """UTC, ISO 8601."""
    ended_at: str | None = None
    stage: str = "start"
    """start, harvest, train, search, evaluate or report."""
    done: float = 0.0
    """Work of the stage that is done, in `unit`s."""
    total: float = 0.0
    unit: str = ""
    detail: str = ""
    """E.g. "3 of 24 SAEs done"."""
    rate: float | None = None
    """Units per second."""
    seconds: float = 0.0
    """Since the stage began."""
    seconds_left: float | None = None
    """Of the stage; null while too little of it is done."""
    nodes: int = 0
    slots: int = 0
    slots_in_use: int = 0
    groups: list[GroupProgress] = field(default_factory=list)
    """Those in training now."""
    failures: dict[str, str] = field(default_factory=dict)
    """Run id -> reason, of this launch."""
    notes: list[str] = field(default_factory=list)
    """The last lines that the launch printed."""


_PROGRESS = TypeAdapter(Progress)


def write_progress(path: Path, progress: Progress) -> None:
    """Write the file, atomically."""
    write_json(path, dataclasses.asdict(progress))


def read_progress(path: Path) -> Progress | None:
    """What the last launch wrote; None where there is no file, or it is not one of ours: it is for the eye, so nothing depends on it."""
    try:
        return _PROGRESS.validate_python(read_json(path))
    except (OSError, DamagedFileError, ValidationError):
        return None


def running_progress(path: Path) -> Progress | None:
    """The progress of the launch that runs now; None where none does. Takes seconds, as a file that no longer changes looks the same."""
    first = read_progress(path)
    return next_progress(path, first) if first and not first.ended_at else None


def next_progress(path: Path, last: Progress) -> Progress | None:
    """The progress once the file has changed; None once its launch has ended, or was killed."""
    began = time.monotonic()
    while time.monotonic() - began < SILENT_SECONDS:
        time.sleep(SECONDS / 10)
        now = read_progress(path)
        if now is not None and (now.launch, now.beat) != (last.launch, last.beat):
            return None if now.ended_at else now
    return None
