"""The progress of a launch in words: the same in the terminal of the launch and in any other."""

from collections.abc import Mapping, Sequence
from datetime import timedelta

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from sweeps.storage.progress_file import GroupProgress, Progress

MOST_GROUPS = 20
"""Groups that are shown one by one."""
MOST_FAILURES = 5


def line(progress: Progress) -> str:
    """The stage in one line."""
    left = "?" if progress.seconds_left is None else duration(progress.seconds_left)
    detail = f", {progress.detail}" if progress.detail else ""
    return f"{progress.stage}: {_share(progress):4.0%}, {rate(progress)}, {left} left{detail}"


def lines(progress: Progress) -> list[str]:
    """What there is to say beside `line`: slots, groups, failures."""
    failed = list(progress.failures.items())
    slots = f"{progress.slots_in_use} of {progress.slots} slots in use on {progress.nodes} node{'s' if progress.nodes != 1 else ''}"
    more = len(progress.groups) - MOST_GROUPS
    return [
        f"  {slots}, {len(failed)} failed",
        *(f"  {_group(group)}" for group in progress.groups[:MOST_GROUPS]),
        *([f"  ... and {more} more groups"] if more > 0 else []),
        *(f"  failed: {run_id}: {reason}" for run_id, reason in failed[-MOST_FAILURES:]),
    ]


def renderable(progress: Progress) -> RenderableType:
    """For a terminal: a bar, then `lines`."""
    if not progress.unit:
        return ""
    left = "" if progress.seconds_left is None else f"{duration(progress.seconds_left)} left"
    bar = Table.grid(padding=(0, 1))
    bar.add_row(
        Text(progress.stage, style="bold"),
        ProgressBar(total=progress.total or 1.0, completed=progress.done, width=30),
        *(Text(text) for text in (f"{_share(progress):4.0%}", rate(progress), progress.detail, duration(progress.seconds), left)),
    )
    return Group(bar, *(Text(text, no_wrap=True, overflow="ellipsis") for text in lines(progress)))


def rate(progress: Progress) -> str:
    """Units per second; per minute where that is less than one."""
    if not progress.rate:
        return f"no {progress.unit} yet"
    return f"{progress.rate:,.0f} {progress.unit}/s" if progress.rate >= 1 else f"{60 * progress.rate:.2g} {progress.unit}/min"


def duration(seconds: float) -> str:
    """e.g. 0:00:42, 3:05:00."""
    return str(timedelta(seconds=round(seconds)))


def table(rows: Sequence[Mapping[str, float | None]]) -> list[str]:
    """Rows of numbers under the names of their columns."""
    names = dict.fromkeys(name for row in rows for name in row)
    columns = [[name, *("" if row.get(name) is None else f"{row[name]:.6g}" for row in rows)] for name in names]
    widths = [max(map(len, column)) for column in columns]
    return ["  ".join(f"{cell:>{width}}" for cell, width in zip(line, widths, strict=True)) for line in zip(*columns, strict=True)]


def _share(progress: Progress) -> float:
    return progress.done / progress.total if progress.total else 1.0


def _group(group: GroupProgress) -> str:
    name = group.runs[0] if len(group.runs) == 1 else f"{len(group.runs)} SAEs"
    where = f" on {group.node}" if group.node else ""
    parts = [f"group {group.number}{where}: {name}", f"{group.fraction:.0%}"]
    parts += [f"{group.tokens_per_second:,.0f} tokens/s"] if group.tokens_per_second else []
    parts += [f"{label} {_range(values)}" for label, values in (("loss", group.loss), ("L0", group.l0)) if values]
    return ", ".join([*parts, *([f"{duration(group.seconds_left)} left"] if group.seconds_left is not None else [])])


def _range(values: Sequence[float]) -> str:
    low, high = (f"{value:.3g}" for value in values)
    return low if low == high else f"{low} to {high}"
