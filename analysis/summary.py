"""Numbers read off the fronts, as plain data for the report and plain text for the terminal.

Fronts are read per repeat, a seed and an order of the tokens, and then averaged, so that a value never mixes the luck of several.
"""

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.inputs import as_loaded
from analysis.pareto import (
    END_TOLERANCE,
    L0_WINDOW,
    REFERENCES,
    common_window,
    hypervolume,
    interpolate_at_l0,
    is_extrapolated,
    l0_spans,
    n_without_logarithm,
    settings_with_front,
)
from analysis.repeats import REPEAT, counted, counted_repeats, n_repeats, noun, with_repeats
from analysis.style import TERMINAL_WIDTH, by_architecture, label, looks, metric, number, setting
from analysis.table import by_comparison
from analysis.titles import titles

_FRONTS = ["architecture", REPEAT]
"""Columns that split a table into the fronts that are read."""

MOST_MATCHED = 4
"""L0s at which architectures are put side by side, at most."""

EXTRAPOLATED = "*"
"""Mark of a value that lies beyond an end of its front."""

COMPARED = ("fvu", "delta_ce")
"""The metrics they are compared by, where records have them."""


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
    def text(self) -> str:
        """The mean, with EXTRAPOLATED where it is."""
        return f"{number(self.mean)}{EXTRAPOLATED if self.extrapolated else ''}"

    def __str__(self) -> str:
        return self.text if self.n_seeds < 2 else f"{self.text} ({number(self.low)}–{number(self.high)})"


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
    """L0s to put architectures side by side at: those asked for, or else powers of two; of what any front reaches, an even choice."""
    finished = table[table["status"] == "finished"]
    asked = finished["target_l0"]
    candidates = sorted(set(asked)) if asked.notna().all() else [2.0**power for power in range(17)]
    metrics = compared_metrics(finished)
    fronts = at_matched_l0(finished, metrics[0], candidates).values() if metrics else ()
    reached = [l0 for place, l0 in enumerate(candidates) if any(values[place] for values in fronts)]
    chosen = np.linspace(0, len(reached) - 1, min(len(reached), MOST_MATCHED)).round().astype(int)
    return [reached[place] for place in chosen]


def at_matched_l0(table: pd.DataFrame, metric: str, l0s: Sequence[float]) -> dict[str, list[Spread | None]]:
    """Per architecture, in reading order: the metric at each L0 on its front, over repeats.

    None where the front of any repeat does not reach: a mean over those that happen to reach would compare unlike things.
    """
    values, beyond = (read(with_repeats(table), l0s, metric, by=_FRONTS) for read in (interpolate_at_l0, is_extrapolated))
    if values.empty:
        return {}
    per_architecture = by_architecture(values.reset_index("architecture"))
    any_beyond = beyond.groupby(level="architecture").any()
    return {
        name: [_spread(rows[l0], extrapolated=bool(any_beyond.loc[name, l0])) for l0 in values.columns]
        for name, rows in per_architecture.items()
    }


def hypervolumes(table: pd.DataFrame, metric: str) -> Hypervolumes:
    """Hypervolume of each architecture on the common L0 window, and of all of them together on L0_WINDOW."""
    known = with_repeats(table[(table["status"] == "finished") & table["l0"].notna() & table[metric].notna()])
    window = common_window(known, y=metric, by=_FRONTS)
    spans = l0_spans(known, metric, by=_FRONTS)
    spanning = known[pd.MultiIndex.from_frame(known[_FRONTS]).isin(spans.index)]
    architectures = {}
    if window:
        for name, rows in by_architecture(spanning).items():
            architectures[name] = _per_repeat(rows, lambda repeat: hypervolume(repeat, y=metric, window=window))
    pooled = _per_repeat(known, lambda rows: hypervolume(rows, y=metric, window=L0_WINDOW))
    return Hypervolumes(metric, REFERENCES[metric], window, architectures, pooled)


def left_out(table: pd.DataFrame) -> list[str]:
    """What of the table is left out where fronts are read at matched L0, as sentences."""
    names = {"fvu": "FVU", "delta_ce": "delta CE"}
    counts = {metric: n_without_logarithm(table, metric) for metric in compared_metrics(table)}
    return [
        f"{counted(number, 'run')} with {names[metric]} of 0 or less {'is' if number == 1 else 'are'} left out here: no logarithm."
        for metric, number in counts.items()
        if number
    ]


def frontier_lines(table: pd.DataFrame) -> list[str]:
    """The fronts as text of at most TERMINAL_WIDTH columns: every point of L0 against FVU, then the values at matched L0."""
    table = as_loaded(table)
    finished = table[table["status"] == "finished"]
    if finished["fvu"].dropna().empty:
        return ["No run has finished, so there is no frontier yet."]
    comparisons, names = by_comparison(finished), titles(finished)
    lines: list[str] = []
    if len(comparisons) > 1 and (common := next(iter(names.values())).common):
        lines += [*textwrap.wrap(f"All runs: {common}", TERMINAL_WIDTH), ""]
    for place, (name, runs) in enumerate(comparisons.items(), start=1):
        if len(comparisons) > 1:
            lines += [*textwrap.wrap(f"Comparison {place} of {len(comparisons)}: {names[name].short}", TERMINAL_WIDTH), ""]
        lines += [*_front_lines(runs), "", *_matched_lines(runs)]
    return lines[:-1]


def _front_lines(runs: pd.DataFrame) -> list[str]:
    settings = settings_with_front(runs)
    front = settings[settings["on_front"]]
    lr_width = 8 if settings.groupby("architecture")["lr"].nunique().max() > 1 else 0
    lines = [
        f"Pareto frontier of L0 against FVU: {len(front)} of {len(settings)} settings, {_repeats_of(front, runs)}",
        "",
        f"{'architecture':<22}{'L0':>7}{'FVU':>8}{'delta CE':>10}{'CE recovered':>14}{'dead':>8}{'lr'[:lr_width]:>{lr_width}}  setting",
    ]
    for name, rows in by_architecture(front).items():
        for place, (_, row) in enumerate(rows.iterrows()):
            lr = f"{row['lr']:>{lr_width}.3g}" if lr_width else ""
            cells = {column: metric(column, row[column]) for column in ("l0", "fvu", "delta_ce", "ce_loss_recovered", "dead_fraction")}
            line = (
                f"{label(name) if place == 0 else '':<22}{cells['l0']:>7}{cells['fvu']:>8}{cells['delta_ce']:>10}"
                f"{cells['ce_loss_recovered']:>14}{cells['dead_fraction']:>8}{lr}  {setting(row)}"
            )
            lines.append(line if len(line) <= TERMINAL_WIDTH else f"{line[: TERMINAL_WIDTH - 1]}…")
    return lines


def _repeats_of(front: pd.DataFrame, runs: pd.DataFrame) -> str:
    """Over how many repeats the settings on a front are means."""
    fewest, most = (int(of(front["n_seeds"], default=1)) for of in (min, max))
    if most < 2:
        return "1 seed"
    if fewest < most:
        return f"means over {fewest} to {most} {noun(runs)}s"
    return f"means over {counted_repeats(runs) if most == n_repeats(runs) else counted(most, noun(runs))}"


def _matched_lines(runs: pd.DataFrame) -> list[str]:
    """The compared metrics side by side at matched L0; nothing where no front can be read at one."""
    if not (l0s := matched_l0s(runs)):
        return []
    tables = {name: at_matched_l0(runs, name, l0s) for name in compared_metrics(runs)}
    headings = {"fvu": "FVU at L0", "delta_ce": "delta CE at L0"}
    width = 9 * len(l0s)
    gap = " " * 5
    lines = [
        f"At matched L0, between neighbours on each front and up to {100 * END_TOLERANCE:g} % beyond (–: the front does not reach)",
        "",
        " " * 22 + gap.join(f"{headings[name]:^{width}}" for name in tables),
        " " * 22 + gap.join("".join(f"{l0:>8g} " for l0 in l0s) for _ in tables),
    ]
    for architecture in looks(set().union(*tables.values())):
        values = [table.get(architecture, [None] * len(l0s)) for table in tables.values()]
        cells = ["".join(_cell(value) for value in row) for row in values]
        lines.append(f"{label(architecture):<22}{gap.join(cells)}")
    notes = left_out(runs)
    if any(value.extrapolated for table in tables.values() for row in table.values() for value in row if value):
        notes = [f"{EXTRAPOLATED} extrapolated: beyond an end of the front", *notes]
    return [*(line.rstrip() for line in lines), *([""] if notes else []), *notes, ""]


def _cell(value: Spread | None) -> str:
    """Nine columns, the last one for the mark."""
    mark = EXTRAPOLATED if value and value.extrapolated else " "
    return f"{number(value.mean if value else None):>8}{mark}"


def _per_repeat(table: pd.DataFrame, measure: Callable[[pd.DataFrame], float]) -> Spread:
    spread = _spread(pd.Series([measure(rows) for _, rows in table.groupby(REPEAT)]))
    assert spread is not None, "callers pass at least one finished run"
    return spread


def _spread(values: pd.Series, *, extrapolated: bool = False) -> Spread | None:
    if values.empty or values.isna().any():
        return None
    return Spread(float(values.mean()), float(values.min()), float(values.max()), len(values), extrapolated)
