"""Progress of a launch: shown on its terminal, or as plain lines where there is none, and written to a file for other terminals."""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread

from rich.console import Console
from rich.live import Live

from sae_core import provenance
from sweeps.execution.view import duration, line, renderable
from sweeps.storage.progress_file import SECONDS, GroupProgress, Progress, write_progress

PLAIN_SECONDS = 10.0
"""Least time between two plain lines of one stage."""
LEAST_SHARE = 0.02
"""Part of a stage that must be done before the time left is estimated: processes start slowly."""
_NOTES = 10
"""Lines that are kept for other terminals."""


class SweepProgress:
    """Progress of a launch.

    Args:
        console: where to write; stderr by default, so that stdout holds only results.
        clock: seconds, rising.
    """

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.console = console or Console(stderr=True)
        self.clock = clock
        self.is_plain = not self.console.is_terminal or self.console.is_dumb_terminal
        self.state = Progress()
        """Replaced, never changed: other threads read it."""
        self.capacity: Callable[[], tuple[int, int]] = lambda: (0, 0)
        """Nodes and slots at this moment."""
        self.groups: dict[int, GroupProgress] = {}
        self.began = self.last_line = clock()
        self._file: Path | None = None
        self._beat, self._resumed = 0, 0.0
        self._live = Live(
            get_renderable=lambda: renderable(self.now()), console=self.console, refresh_per_second=2, transient=True, redirect_stdout=False
        )

    def __enter__(self) -> "SweepProgress":
        self.state, self._file = Progress(), None
        if not self.is_plain:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()
        if self._file:
            self._ends.set()
            self._writer.join()
            self.groups, self.state = {}, replace(self.state, ended_at=provenance.now(), slots_in_use=0)
            self._write(self._file)

    def publish(self, file: Path, launch: int) -> None:
        """From now on, also write progress to a file, about every two seconds.

        Args:
            launch: its number.
        """
        self.state = replace(self.state, launch=launch)
        self._file, self._ends = file, Event()
        self._write(file)
        self._writer = Thread(target=self._write_on, name="progress", daemon=True)
        self._writer.start()

    def note(self, text: str) -> None:
        """Print a line that stays."""
        self.state = replace(self.state, notes=[*self.state.notes, text][-_NOTES:])
        self.console.print(text, highlight=False, soft_wrap=True)

    def stage(self, name: str, total: float, unit: str, jobs: int = 0) -> None:
        """Begin a stage of `total` units of work, e.g. tokens.

        Args:
            jobs: for the slots, where they are not groups.
        """
        self.began, self._resumed = self.clock(), 0.0
        self.last_line = self.began
        self.state = replace(self.state, stage=name, total=total, unit=unit, done=0.0, detail="", slots_in_use=jobs)
        if self.is_plain:
            self.note(f"{name}: {total:,.0f} {unit}")

    def advance_to(self, done: float, detail: str = "", jobs: int = 0, resumed: float = 0.0) -> None:
        """Note how much of the stage is done, in its unit.

        Args:
            detail: e.g. "3 of 24 runs done".
            jobs: that are left.
            resumed: part of `done` that an earlier launch did.
        """
        self._resumed = resumed
        self.state = replace(self.state, done=done, detail=detail, slots_in_use=jobs)
        if self.is_plain and self.clock() - self.last_line >= PLAIN_SECONDS:
            self.last_line = self.clock()
            self.console.print(line(self.now()), highlight=False, soft_wrap=True)

    def group(self, group: GroupProgress) -> None:
        """Note how far a group is."""
        self.groups = {**self.groups, group.number: group}

    def end_group(self, number: int) -> None:
        """Note that a group has left its slot."""
        self.groups = {other: group for other, group in self.groups.items() if other != number}

    def fail(self, run_id: str, reason: str) -> None:
        """Note that a run failed."""
        if run_id not in self.state.failures:
            self.state = replace(self.state, failures={**self.state.failures, run_id: reason})
            self.note(f"{self.state.stage}: {run_id} failed: {reason}")

    def end_stage(self, summary: str) -> float:
        """End the stage; returns its seconds."""
        seconds = self.clock() - self.began
        self.groups = {}
        self.note(f"{self.state.stage}: {summary} in {duration(seconds)}")
        return seconds

    def now(self) -> Progress:
        """The progress at this moment."""
        state, groups, elapsed = self.state, list(self.groups.values()), max(self.clock() - self.began, 1e-9)
        nodes, slots = self.capacity()
        ours = state.done - self._resumed
        is_clear = ours > 0 and ours >= LEAST_SHARE * (state.total - self._resumed)
        return replace(
            state,
            beat=self._beat,
            written_at=provenance.now(),
            rate=ours / elapsed if ours > 0 else None,
            seconds=elapsed,
            seconds_left=elapsed * (state.total - state.done) / ours if is_clear else None,
            groups=groups,
            nodes=nodes,
            slots=slots,
            slots_in_use=min(len(groups) or state.slots_in_use, slots),
        )

    def _write_on(self) -> None:
        """Write the file until the launch ends. It is for the eye: a disk that is full does not stop a launch."""
        while self._file and not self._ends.wait(SECONDS):
            self._write(self._file)

    def _write(self, file: Path) -> None:
        self._beat += 1
        with suppress(OSError):
            write_progress(file, self.now())
