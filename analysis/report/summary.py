"""Numbers read off the fronts, as plain data for the report and plain text for the terminal.

Fronts are read per repeat, a seed and an order of the tokens, and then averaged, so that a value never mixes the luck of several.
"""

import textwrap
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from analysis import pareto, words
from analysis.estimates import Comparison, Estimate
from analysis.interpolation import END_TOLERANCE
from analysis.pareto import L0_WINDOW
from analysis.report.answer import answer
from analysis.statistics.comparison import compare
from analysis.statistics.indicators import epsilons, on_common_window
from analysis.statistics.matched import COMPARED, at_matched_l0, compared_metrics, matched_l0s
from analysis.statistics.uncertainty import LEVEL
from analysis.table import as_loaded, by_comparison
from analysis.words import EXTRAPOLATED

_FRONTS = ["architecture", words.REPEAT]
"""Columns that split a table into the fronts that are read."""

_FRONT_COLUMNS = {
    "l0": ("L0", 7),
    "fvu": ("FVU", 8),
    "delta_ce": ("delta CE", 10),
    "ce_loss_recovered": ("CE recovered", 14),
    "dead_fraction": ("dead", 8),
}
"""Metrics of the terminal's front: heading and width."""


@dataclass(frozen=True, slots=True)
class Span:
    """How far a front of means over repeats goes."""

    low: float
    """L0."""
    high: float
    coverage: float
    """Share of all L0s that any front spans, in log2, that this one spans."""


@dataclass(frozen=True, slots=True)
class Hypervolumes:
    """Numbers that sum up the fronts of one metric."""

    metric: str
    reference: float
    window: tuple[float, float] | None
    """L0 window that the fronts of all architectures span; None where there is none."""
    architectures: dict[str, Estimate]
    """Each architecture's, on that window; without those whose own front does not span it."""
    pooled: Estimate
    """Of the front over all architectures, on L0_WINDOW."""
    spans: dict[str, Span]
    """Each architecture's."""
    epsilons: dict[str, dict[str, float | None]]
    """Architecture -> another one -> the fraction by which both L0 and metric of the first one's front must shrink to be nowhere worse than
    the second's; None where their fronts span no L0 in common. Empty where values have no logarithm."""


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
    return Hypervolumes(metric, pareto.REFERENCES[metric], window, architectures, pooled, _spans(known, metric), _epsilons(known, metric))


def _spans(known: pd.DataFrame, metric: str) -> dict[str, Span]:
    if not (known["l0"] > 0).any():
        return {}
    fronts = on_common_window(known, metric).to_dict("index")
    return {str(name): Span(*(float(front[column]) for column in ("low", "high", "coverage"))) for name, front in fronts.items()}


def _epsilons(known: pd.DataFrame, metric: str) -> dict[str, dict[str, float | None]]:
    if pareto.n_without_logarithm(known, metric):
        return {}
    return {
        str(name): {str(other): None if np.isnan(value) else float(-np.expm1(-max(value, 0.0))) for other, value in row.items()}
        for name, row in epsilons(known, metric).to_dict("index").items()
    }


def left_out(table: pd.DataFrame) -> list[str]:
    """Where fronts are not read in logarithms, as sentences."""
    counts = {metric: pareto.n_without_logarithm(table, metric) for metric in compared_metrics(table)}
    return [
        f"{words.counted(number, 'run')} with {COMPARED[metric]} of 0 or less, which has no logarithm: values are read on its own scale."
        for metric, number in counts.items()
        if number
    ]


def frontier_lines(table: pd.DataFrame) -> list[str]:
    """The fronts as text of at most words.TERMINAL_WIDTH columns: every point of L0 against FVU, the values at matched L0, and the
    answer in words."""
    table = as_loaded(table)
    finished = table[table["status"] == "finished"]
    if finished["fvu"].dropna().empty:
        return ["No run has finished, so there is no frontier yet."]
    comparisons, names, compared = by_comparison(finished), words.titles(finished), compare(finished)
    lines: list[str] = []
    if len(comparisons) > 1 and (common := next(iter(names.values())).common):
        lines += [*textwrap.wrap(f"All runs: {common}", words.TERMINAL_WIDTH), ""]
    for index, (name, runs) in enumerate(comparisons.items(), start=1):
        if len(comparisons) > 1:
            lines += [*textwrap.wrap(f"Comparison {index} of {len(comparisons)}: {names[name].short}", words.TERMINAL_WIDTH), ""]
        lines += [*_front_lines(runs), "", *_matched_lines(runs), *_answer_lines(compared.of(name))]
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
            start = f"{words.label(name) if index == 0 else '':<22}{cells}{lr}  "
            lines += textwrap.wrap(
                words.setting(row), words.TERMINAL_WIDTH, initial_indent=start, subsequent_indent=" " * len(start), break_on_hyphens=False
            )
    return lines


def _matched_lines(runs: pd.DataFrame) -> list[str]:
    """The compared metrics at matched L0, each value over its interval; nothing where no front can be read at one."""
    if not (l0s := matched_l0s(runs)):
        return []
    tables = {name: at_matched_l0(runs, name, l0s) for name in compared_metrics(runs)}
    known = [value for table in tables.values() for row in table.values() for value in row if value]
    lines = [f"At matched L0, read off each front and up to {100 * END_TOLERANCE:g} % beyond (–: the front does not reach)"]
    for name, table in tables.items():
        lines += ["", f"{f'{COMPARED[name]} at L0':<22}" + "".join(f"{l0:>17g} " for l0 in l0s)]
        for architecture in words.in_order(table):
            cells = [words.interval(value).partition(" ") for value in table[architecture]]
            lines.append(f"{words.label(architecture):<22}" + "".join(f"{value:>17} " for value, _, _ in cells))
            if any(ends for _, _, ends in cells):
                lines.append(" " * 22 + "".join(f"{ends:>17} " for _, _, ends in cells))
    notes = left_out(runs)
    if any(value.extrapolated for value in known):
        notes = [f"{EXTRAPOLATED} extrapolated: beyond an end of the front", *notes]
    covers = dict.fromkeys(value.covers for value in known if value.low is not None)
    notes = [*(f"Brackets: 95 %, {text}" for text in covers), *notes]
    return [*(line.rstrip() for line in lines), *([""] if notes else []), *notes, ""]


def _answer_lines(comparison: Comparison) -> list[str]:
    """The comparison in words."""
    lines = [line for text in answer(comparison) for line in textwrap.wrap(text, words.TERMINAL_WIDTH, subsequent_indent="  ")]
    return [*lines, ""] if len(comparison.arms) > 1 else []


def _per_repeat(table: pd.DataFrame, measure: Callable[[pd.DataFrame], float]) -> Estimate:
    """Mean over repeats, with a t interval over them."""
    values = np.array([measure(rows) for _, rows in table.groupby(words.REPEAT)])
    if len(values) < 2:
        return Estimate(float(values.mean()), raw=True)
    se, df = float(values.std(ddof=1) / np.sqrt(len(values))), len(values) - 1
    reach, mean = se * float(stdtrit(df, (1 + LEVEL) / 2)), float(values.mean())
    return Estimate(mean, mean - reach, mean + reach, se, df, len(values), raw=True, share_of_seeds=1.0)
