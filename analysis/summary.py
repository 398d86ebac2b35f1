"""Numbers read off the fronts, as plain data for the report and plain text for the terminal.

Fronts are read per repeat, a seed and an order of the tokens, and then averaged, so that a value never mixes the luck of several.
"""

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd

from analysis import pareto, words
from analysis.interpolation import END_TOLERANCE
from analysis.pareto import L0_WINDOW
from analysis.table import as_loaded, by_comparison, evenly
from analysis.words import EXTRAPOLATED

_FRONTS = ["architecture", words.REPEAT]
"""Columns that split a table into the fronts that are read."""

MOST_MATCHED = 4
"""L0s at which architectures are put side by side, at most."""

COMPARED = {"fvu": "FVU", "delta_ce": "delta CE"}
"""The metrics they are compared by, where records have them, and their names."""


_FRONT_COLUMNS = {
    "l0": ("L0", 7),
    "fvu": ("FVU", 8),
    "delta_ce": ("delta CE", 10),
    "ce_loss_recovered": ("CE recovered", 14),
    "dead_fraction": ("dead", 8),
}
"""Metrics of the terminal's front: heading and width."""


@dataclass(frozen=True, slots=True)
class Spread:
    """A value over repeats."""

    mean: float
    low: float
    high: float
    n_seeds: int
    """How many repeats: pairs of a seed and an order of the tokens."""
    extrapolated: bool = False
    """Whether the front of any repeat was continued beyond its end to read it."""

    @property
    def mark(self) -> str:
        """EXTRAPOLATED where it is."""
        return EXTRAPOLATED if self.extrapolated else ""

    def __str__(self) -> str:
        spread = f" ({words.number(self.low)}–{words.number(self.high)})" if self.n_seeds > 1 else ""
        return f"{words.number(self.mean)}{self.mark}{spread}"


@dataclass(frozen=True, slots=True)
class Hypervolumes:
    """Hypervolumes of one metric."""

    metric: str
    reference: float
    window: tuple[float, float] | None
    """L0 window that the fronts of all architectures span; None where there is none."""
    architectures: dict[str, Spread]
    """Each architecture's, on that window; without those whose own front does not span it."""
    pooled: Spread
    """Of the front over all architectures, on L0_WINDOW."""


def compared_metrics(table: pd.DataFrame) -> list[str]:
    """Those of COMPARED that any finished run has."""
    return [name for name in COMPARED if table.loc[table["status"] == "finished", name].notna().any()]


def matched_l0s(table: pd.DataFrame) -> list[float]:
    """L0s to put architectures side by side at: those requested, or else powers of two; of what any front reaches, an even choice."""
    finished = table[table["status"] == "finished"]
    targets = finished["target_l0"]
    candidates = sorted(set(targets)) if targets.notna().all() else [2.0**power for power in range(17)]
    metrics = compared_metrics(finished)
    fronts = at_matched_l0(finished, metrics[0], candidates).values() if metrics else ()
    reached = [l0 for index, l0 in enumerate(candidates) if any(values[index] for values in fronts)]
    return [reached[index] for index in evenly(len(reached), MOST_MATCHED)]


def at_matched_l0(table: pd.DataFrame, metric: str, l0s: Sequence[float]) -> dict[str, list[Spread | None]]:
    """Per architecture, in reading order: the metric at each L0 on its front, over repeats.

    None where the front of any repeat does not reach: a mean over those that happen to reach would compare unlike things.
    """
    repeats = words.with_repeats(table)
    values, beyond = (read(repeats, l0s, metric, by=_FRONTS) for read in (pareto.interpolate_at_l0, pareto.is_extrapolated))
    if values.empty:
        return {}
    per_architecture = words.by_architecture(values.reset_index("architecture"))
    any_beyond = beyond.groupby(level="architecture").any()
    return {
        name: [_spread(rows[l0], extrapolated=bool(any_beyond.loc[name, l0])) for l0 in values.columns]
        for name, rows in per_architecture.items()
    }


def hypervolumes(table: pd.DataFrame, metric: str) -> Hypervolumes:
    """Hypervolume of each architecture on the common L0 window, and of all of them together on L0_WINDOW."""
    known = words.with_repeats(table[(table["status"] == "finished") & table["l0"].notna() & table[metric].notna()])
    window = pareto.common_window(known, y=metric, by=_FRONTS)
    spans = pareto.l0_spans(known, metric, by=_FRONTS)
    spanning = known[pd.MultiIndex.from_frame(known[_FRONTS]).isin(spans.index)]
    per_architecture = words.by_architecture(spanning) if window else {}
    architectures = {
        name: _per_repeat(rows, lambda repeat: pareto.hypervolume(repeat, y=metric, window=window or L0_WINDOW))
        for name, rows in per_architecture.items()
    }
    pooled = _per_repeat(known, lambda rows: pareto.hypervolume(rows, y=metric, window=L0_WINDOW))
    return Hypervolumes(metric, pareto.REFERENCES[metric], window, architectures, pooled)


def left_out(table: pd.DataFrame) -> list[str]:
    """What of the table is left out where fronts are read at matched L0, as sentences."""
    counts = {metric: pareto.n_without_logarithm(table, metric) for metric in compared_metrics(table)}
    return [
        f"{words.counted(number, 'run')} with {COMPARED[metric]} of 0 or less {'is' if number == 1 else 'are'} left out here: no logarithm."
        for metric, number in counts.items()
        if number
    ]


def frontier_lines(table: pd.DataFrame) -> list[str]:
    """The fronts as text of at most words.TERMINAL_WIDTH columns: every point of L0 against FVU, then the values at matched L0."""
    table = as_loaded(table)
    finished = table[table["status"] == "finished"]
    if finished["fvu"].dropna().empty:
        return ["No run has finished, so there is no frontier yet."]
    comparisons, names = by_comparison(finished), words.titles(finished)
    lines: list[str] = []
    if len(comparisons) > 1 and (common := next(iter(names.values())).common):
        lines += [*textwrap.wrap(f"All runs: {common}", words.TERMINAL_WIDTH), ""]
    for index, (name, runs) in enumerate(comparisons.items(), start=1):
        if len(comparisons) > 1:
            lines += [*textwrap.wrap(f"Comparison {index} of {len(comparisons)}: {names[name].short}", words.TERMINAL_WIDTH), ""]
        lines += [*_front_lines(runs), "", *_matched_lines(runs)]
    return lines[:-1]


def _front_lines(runs: pd.DataFrame) -> list[str]:
    settings = pareto.settings_with_front(runs)
    front = settings[settings["on_front"]]
    fewest, most, noun = int(min(front["n_seeds"], default=1)), int(max(front["n_seeds"], default=1)), words.noun(runs)
    repeats = words.counted_repeats(runs) if most == words.n_repeats(runs) else words.counted(most, noun)
    repeats = "1 seed" if most < 2 else f"means over {repeats if fewest == most else f'{fewest} to {most} {noun}s'}"
    several_rates = settings.groupby("architecture")["lr"].nunique().max() > 1
    headings = "".join(f"{heading:>{width}}" for heading, width in _FRONT_COLUMNS.values())
    lines = [
        f"Pareto frontier of L0 against FVU: {len(front)} of {len(settings)} settings, {repeats}",
        "",
        f"{'architecture':<22}{headings}{'      lr' if several_rates else ''}  setting",
    ]
    for name, rows in words.by_architecture(front).items():
        for index, row in enumerate(rows.to_dict("records")):
            cells = "".join(f"{words.metric(column, row[column]):>{width}}" for column, (_, width) in _FRONT_COLUMNS.items())
            lr = f"{row['lr']:>8.3g}" if several_rates else ""
            line = f"{words.label(name) if index == 0 else '':<22}{cells}{lr}  {words.setting(row)}"
            lines.append(line if len(line) <= words.TERMINAL_WIDTH else f"{line[: words.TERMINAL_WIDTH - 1]}…")
    return lines


def _matched_lines(runs: pd.DataFrame) -> list[str]:
    """The compared metrics side by side at matched L0; nothing where no front can be read at one."""
    if not (l0s := matched_l0s(runs)):
        return []
    tables = {name: at_matched_l0(runs, name, l0s) for name in compared_metrics(runs)}
    width, gap = 9 * len(l0s), " " * 5
    lines = [
        f"At matched L0, between neighbours on each front and up to {100 * END_TOLERANCE:g} % beyond (–: the front does not reach)",
        "",
        " " * 22 + gap.join(f"{f'{COMPARED[name]} at L0':^{width}}" for name in tables),
        " " * 22 + gap.join("".join(f"{l0:>8g} " for l0 in l0s) for _ in tables),
    ]
    for architecture in words.in_order(set().union(*tables.values())):
        values = [table.get(architecture, [None] * len(l0s)) for table in tables.values()]
        cells = [
            "".join(f"{words.number(value.mean if value else None):>8}{value.mark if value else '':<1}" for value in row) for row in values
        ]
        lines.append(f"{words.label(architecture):<22}{gap.join(cells)}")
    notes = left_out(runs)
    if any(value.extrapolated for table in tables.values() for row in table.values() for value in row if value):
        notes = [f"{EXTRAPOLATED} extrapolated: beyond an end of the front", *notes]
    return [*(line.rstrip() for line in lines), *([""] if notes else []), *notes, ""]


def _per_repeat(table: pd.DataFrame, measure: Callable[[pd.DataFrame], float]) -> Spread:
    spread = _spread(pd.Series([measure(rows) for _, rows in table.groupby(words.REPEAT)]))
    assert spread is not None, "callers pass at least one finished run"
    return spread


def _spread(values: pd.Series, *, extrapolated: bool = False) -> Spread | None:
    if values.empty or values.isna().any():
        return None
    return Spread(float(values.mean()), float(values.min()), float(values.max()), len(values), extrapolated)
