"""Progress of a launch on the terminal: a bar per stage and per running SAE, or plain lines where there is no terminal."""

import time
from collections.abc import Callable, Mapping
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

PLAIN_SECONDS = 10.0
"""Least time between two plain lines of one stage."""
LEAST_SHARE = 0.02
"""Part of a stage that must be done before the time left is estimated: processes start slowly."""


class SweepProgress:
    """Progress of a launch.

    Args:
        console: where to write; stderr by default, so that stdout holds only results.
        clock: seconds, rising.
    """

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.console = console or Console(stderr=True)
        self.clock = clock
        texts = [TextColumn(text) for text in ("{task.description}", "{task.percentage:3.0f}%", "{task.fields[rate]}")]
        columns = (texts[0], BarColumn(bar_width=30), *texts[1:], TimeElapsedColumn(), TimeRemainingColumn())
        is_plain = not self.console.is_terminal or self.console.is_dumb_terminal
        self.bars = Progress(*columns, console=self.console, disable=is_plain)
        self.run_bars: dict[str, TaskID] = {}

    def __enter__(self) -> "SweepProgress":
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def note(self, text: str) -> None:
        """Print a line that stays."""
        self.console.print(text, highlight=False, soft_wrap=True)

    def stage(self, name: str, total: float, unit: str) -> None:
        """Begin a stage of `total` units of work, e.g. tokens."""
        self.stage_name, self.total, self.unit = name, total, unit
        self.began = self.last_line = self.clock()
        self.bar = self.bars.add_task(f"[bold]{name}", total=total, rate="")
        if self.bars.disable:
            self.note(f"{name}: {total:,.0f} {unit}")

    def advance_to(self, done: float, detail: str = "") -> None:
        """Show how much of the stage is done, in its unit.

        Args:
            detail: e.g. "3 of 24 runs done".
        """
        elapsed = max(self.clock() - self.began, 1e-9)
        rate = self._rate(done, elapsed)
        self.bars.update(self.bar, completed=done, rate=f"{rate}  {detail}".rstrip())
        if self.bars.disable and self.clock() - self.last_line >= PLAIN_SECONDS:
            self.last_line = self.clock()
            left = _duration(elapsed * (self.total - done) / done) if done >= LEAST_SHARE * self.total else "?"
            self.note(f"{self.stage_name}: {done / self.total:4.0%}, {rate}, {left} left{', ' + detail if detail else ''}")

    def _rate(self, done: float, elapsed: float) -> str:
        """Units per second; per minute where that is less than one."""
        if not done:
            return f"no {self.unit} yet"
        return f"{done / elapsed:,.0f} {self.unit}/s" if done >= elapsed else f"{60 * done / elapsed:.2g} {self.unit}/min"

    def runs(self, fractions: Mapping[str, float]) -> None:
        """Show how far each running SAE is, by a bar of its own until it is done."""
        for run_id, fraction in fractions.items():
            if run_id not in self.run_bars:
                self.run_bars[run_id] = self.bars.add_task(f"  {run_id}", total=1.0, rate="")
            self.bars.update(self.run_bars[run_id], completed=fraction, visible=fraction < 1)

    def end_stage(self, summary: str) -> float:
        """End the stage; returns its seconds."""
        seconds = self.clock() - self.began
        for bar in self.bars.task_ids:
            self.bars.remove_task(bar)
        self.run_bars.clear()
        self.note(f"{self.stage_name}: {summary} in {_duration(seconds)}")
        return seconds


def _duration(seconds: float) -> str:
    """e.g. 0:00:42, 3:05:00."""
    return str(timedelta(seconds=round(seconds)))
