"""Training curves: squared error and L0 over training tokens, a pair of panels per architecture."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis import style
from analysis.plots import PLOTS, Plot
from analysis.results import read_history
from analysis.thinning import MOST_CURVES, evenly
from sae_core.errors import DamagedFileError
from sae_core.validation import LARGEST, is_number

log = logging.getLogger(__name__)

MOST_NAMED = 5
"""Damaged histories that a caption names."""
MAX_POINTS = 150
"""Points kept of each curve: more than a panel this small can show."""
COLUMNS = 3


@dataclass(frozen=True, slots=True)
class Curve:
    """One run's training, thinned to at most MAX_POINTS points; NaN where a value was not finite."""

    run_id: str
    tokens: tuple[float, ...]
    mse: tuple[float, ...]
    l0: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class TrainingCurvesInfo:
    """Curves per architecture, in the table's order: by target L0 or else sparsity value."""

    curves: dict[str, tuple[Curve, ...]]
    n_left_out: int = 0
    """Runs whose curve is left out because there are too many to see."""
    damaged: tuple[str, ...] = ()
    """Run ids whose `history.jsonl` is not as it was written."""


@PLOTS.register("training_curves")
class TrainingCurves(Plot):
    """Has every run converged, and did any of them go astray?"""

    section = "Training"
    title = "Training curves"
    caption = (
        "On training batches, in training form. One curve per run; the stronger the colour, the larger its sparsity setting. "
        "A run whose error still falls at the end would gain from more tokens."
    )
    order = 30

    @classmethod
    def info(cls, table: pd.DataFrame, histories: Mapping[str, Path]) -> TrainingCurvesInfo | None:
        """Read and thin the histories of the table's runs."""
        curves: dict[str, tuple[Curve, ...]] = {}
        n_left_out, damaged = 0, []
        for architecture, rows in table.groupby("architecture"):  # the table is sorted by sparsity
            there = rows[[run_id in histories and histories[run_id].is_file() for run_id in rows["run_id"]]]
            chosen = _chosen(there)
            n_left_out += len(there) - len(chosen)
            found = []
            for run_id in chosen["run_id"]:
                try:
                    found += [_curve(run_id, history)] if (history := read_history(histories[run_id])) else []
                except DamagedFileError as error:
                    log.warning("a training curve is left out: %s", error)
                    damaged.append(run_id)
            if found:
                curves[str(architecture)] = tuple(found)
        return TrainingCurvesInfo(curves, n_left_out, tuple(damaged)) if curves else None

    @classmethod
    def note(cls, info: TrainingCurvesInfo) -> str:
        """How many curves are left out, and why."""
        texts = []
        if info.n_left_out:
            texts.append(
                f"At most {MOST_CURVES} curves per architecture are drawn, chosen evenly over its settings; {info.n_left_out:,} are not."
            )
        if info.damaged:
            are = "is damaged and its curve is" if len(info.damaged) == 1 else "are damaged and their curves are"
            texts.append(f"history.jsonl of {', '.join(info.damaged[:MOST_NAMED])} {are} left out.")
        return " ".join(texts)

    @classmethod
    def figure(cls, info: TrainingCurvesInfo) -> Figure:
        """Draw two panels per architecture, error above L0, all on the same axes."""
        shown = style.looks(info.curves)
        columns = min(COLUMNS, len(shown))
        blocks = math.ceil(len(shown) / columns)
        figure = Figure(figsize=(1.0 + 2.5 * columns, 3.5 * blocks), layout="constrained")
        grid = figure.subplots(2 * blocks, columns, squeeze=False)
        for axes in grid.flat:
            axes.set_visible(False)
        every = [curve for curves in info.curves.values() for curve in curves]
        for index, (architecture, look) in enumerate(shown.items()):
            block, column = divmod(index, columns)
            upper, lower = grid[2 * block][column], grid[2 * block + 1][column]
            _draw(upper, lower, info.curves[architecture], look)
            _same_axes(upper, lower, every)
            if column == 0:
                upper.set_ylabel("Squared error")
                lower.set_ylabel("L0")
        return figure


def _chosen(rows: pd.DataFrame) -> pd.DataFrame:
    """At most MOST_CURVES runs: all of them, or evenly over settings, one run of each, or over runs where settings are few."""
    settings = rows.drop_duplicates("setting_hash")
    of = rows if len(rows) <= MOST_CURVES or len(settings) < MOST_CURVES else settings
    return of.iloc[evenly(len(of), MOST_CURVES)]


def _curve(run_id: str, history: Sequence[Mapping[str, Any]]) -> Curve:
    step = math.ceil(len(history) / (MAX_POINTS - 1))
    kept = [*history[:-1:step], history[-1]]

    def values(*names: str) -> tuple[float, ...]:
        return tuple(next((float(line[name]) for name in names if _is_drawable(line.get(name))), math.nan) for line in kept)

    # Sources without an `mse_loss` term still log the total loss.
    return Curve(run_id, tokens=values("tokens"), mse=values("mse_loss", "loss"), l0=values("l0"))


def _is_drawable(value: Any) -> bool:
    return is_number(value) and abs(value) <= LARGEST  # neither NaN nor infinite


def _draw(upper: Axes, lower: Axes, curves: Sequence[Curve], look: style.Look) -> None:
    for place, curve in enumerate(curves):
        alpha = 0.3 + 0.7 * (place + 1) / len(curves)
        upper.plot(curve.tokens, curve.mse, color=look.color, alpha=alpha, linewidth=1.1)
        lower.plot(curve.tokens, curve.l0, color=look.color, alpha=alpha, linewidth=1.1)
    upper.set_title(look.label, loc="left", fontweight="bold")


def _same_axes(upper: Axes, lower: Axes, every: Sequence[Curve]) -> None:
    """Give a pair of panels the axes that fit all curves of the figure."""
    errors = [value for curve in every for value in curve.mse if value > 0]
    l0s = [value for curve in every for value in curve.l0 if value > 0]
    if errors:
        style.log_axis(upper.yaxis, errors)
    if l0s:
        style.l0_axis(lower.yaxis, l0s)
    for axes in (upper, lower):
        axes.set_visible(True)
        axes.grid(True)
        axes.set_xlim(0, max((value for curve in every for value in curve.tokens if value > 0), default=1.0) * 1.02)
        axes.xaxis.set_major_locator(MaxNLocator(4))
    upper.tick_params(labelbottom=False)
    lower.set_xlabel("Training tokens")
    lower.xaxis.set_major_formatter(lambda value, _: style.count(value))
