"""What the terminal shows while a sweep runs: one bar a stage and one a running SAE, or plain lines where there is no terminal."""

import time
from collections.abc import Callable, Mapping

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

PLAIN_SECONDS = 10.0
"""Least time between two plain lines of one stage."""
LEAST_SHARE = 0.02
"""Part of a stage that must be done before it is said how much time is left: processes start slowly."""


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
        self.bars = Progress(*columns, console=self.console)
        self.live = self.console.is_terminal and not self.console.is_dumb_terminal
        self.stage_name = ""
        self.total = 0.0
        self.unit = ""
        self.bar: TaskID | None = None
        self.run_bars: dict[str, TaskID] = {}

    def __enter__(self) -> "SweepProgress":
        if self.live:
            self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.bars.stop()

    def note(self, text: str) -> None:
        """A line that stays."""
        self.console.print(text, highlight=False, soft_wrap=True)

    def stage(self, name: str, total: float, unit: str) -> None:
        """Begin a stage of `total` units of work, e.g. tokens."""
        self.stage_name, self.total, self.unit = name, total, unit
        self.began = self.last_line = self.clock()
        if self.live:
            self.bar = self.bars.add_task(f"[bold]{name}", total=total, rate="")
        else:
            self.note(f"{name}: {total:,.0f} {unit}")

    def advance_to(self, done: float, detail: str = "") -> None:
        """Say how much of the stage is done, in its unit.

        Args:
            detail: for plain lines, e.g. "3 of 24 runs done".
        """
        elapsed = max(self.clock() - self.began, 1e-9)
        rate = self._rate(done, elapsed)
        if self.live and self.bar is not None:
            self.bars.update(self.bar, completed=done, rate=f"{rate}  {detail}".rstrip())
        elif self.clock() - self.last_line >= PLAIN_SECONDS:
            self.last_line = self.clock()
            left = _duration(elapsed * (self.total - done) / done) if done >= LEAST_SHARE * self.total else "?"
            self.note(f"{self.stage_name}: {done / self.total:4.0%}, {rate}, {left} left{', ' + detail if detail else ''}")

    def _rate(self, done: float, elapsed: float) -> str:
        """Units per second; per minute where that is less than one."""
        if not done:
            return f"no {self.unit} yet"
        if done >= elapsed:
            return f"{done / elapsed:,.0f} {self.unit}/s"
        return f"{60 * done / elapsed:.2g} {self.unit}/min"

    def runs(self, fractions: Mapping[str, float]) -> None:
        """How far each running SAE is: a bar of its own while it trains (terminal only)."""
        if not self.live:
            return
        for run_id, fraction in fractions.items():
            if fraction >= 1:
                if (bar := self.run_bars.pop(run_id, None)) is not None:
                    self.bars.remove_task(bar)
                continue
            if run_id not in self.run_bars:
                self.run_bars[run_id] = self.bars.add_task(f"  {run_id}", total=1.0, rate="")
            self.bars.update(self.run_bars[run_id], completed=fraction)

    def end_stage(self, summary: str) -> float:
        """End the stage; returns its seconds."""
        seconds = self.clock() - self.began
        for bar in self.run_bars.values():
            self.bars.remove_task(bar)
        self.run_bars.clear()
        if self.live and self.bar is not None:
            self.bars.remove_task(self.bar)
        self.note(f"{self.stage_name}: {summary} in {_duration(seconds)}")
        return seconds


def _duration(seconds: float) -> str:
    """e.g. 0:42, 12:03, 3:05:00."""
    hours, rest = divmod(round(seconds), 3600)
    minutes, left = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{left:02d}" if hours else f"{minutes}:{left:02d}"
