"""Training curves: squared error and L0 over training tokens, a pair of panels per architecture."""

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
from analysis.stored import read_history

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
        for architecture, rows in table.groupby("architecture"):  # the table is sorted by sparsity
            lines = {run_id: read_history(histories[run_id]) for run_id in rows["run_id"] if run_id in histories}
            found = tuple(_curve(run_id, history) for run_id, history in lines.items() if history)
            if found:
                curves[str(architecture)] = found
        return TrainingCurvesInfo(curves) if curves else None

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
        for index, (architecture, look) in enumerate(shown.items()):
            block, column = divmod(index, columns)
            upper, lower = grid[2 * block][column], grid[2 * block + 1][column]
            _draw(upper, lower, info.curves[architecture], look)
            _same_axes(upper, lower, [curve for curves in info.curves.values() for curve in curves])
            if column == 0:
                upper.set_ylabel("Squared error")
                lower.set_ylabel("L0")
        return figure


def _curve(run_id: str, history: Sequence[Mapping[str, Any]]) -> Curve:
    step = math.ceil(len(history) / (MAX_POINTS - 1))
    kept = [*history[:-1:step], history[-1]]

    def values(*names: str) -> tuple[float, ...]:
        return tuple(next((float(line[name]) for name in names if line.get(name) is not None), math.nan) for line in kept)

    # Sources without an `mse_loss` term still log the total loss.
    return Curve(run_id, tokens=values("tokens"), mse=values("mse_loss", "loss"), l0=values("l0"))


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
        axes.set_xlim(0, max(value for curve in every for value in curve.tokens) * 1.02)
        axes.xaxis.set_major_locator(MaxNLocator(4))
    upper.tick_params(labelbottom=False)
    lower.set_xlabel("Training tokens")
    lower.xaxis.set_major_formatter(lambda value, _: style.count(value))
