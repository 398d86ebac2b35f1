"""Empirical attainment: which pairs of L0 and a metric how many of the seeds reach."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.plots import PLOTS, Plot, style
from analysis.statistics.indicators import attainment
from analysis.table import check_columns, finished, numbers, specs_of
from analysis.words import in_order, n_repeats, noun

ENOUGH = 3
"""Repeats that an architecture must have: of two, there is only the better and the worse."""
COLUMNS = 3

Stairs = tuple[tuple[float, float], ...]
"""Corners (L0, metric), by L0."""


@dataclass(frozen=True, slots=True)
class AttainmentInfo:
    """Per architecture: how many of its repeats -> the front that as many attain."""

    series: dict[str, dict[int, Stairs]]
    y_label: str
    higher_is_better: bool
    noun: str
    """What a repeat is."""


@PLOTS.register("attainment")
class Attainment(Plot):
    """What can be counted on, and what takes luck?"""

    section = "Frontiers"
    title = "Attainment over seeds"
    caption = (
        "What a sweep with one seed would reach: the stairs are the best value at this L0 or sparser. Dark: in at least half of the "
        "seeds. Shaded: from what every seed reaches to what the luckiest one does. Nothing is interpolated or averaged."
    )
    order = 13

    @classmethod
    def info(cls, table: pd.DataFrame, histories: Mapping[str, Path], metric: str = "fvu") -> AttainmentInfo | None:
        """The fronts of architectures with at least ENOUGH repeats.

        Args:
            metric: column against L0.
        """
        check_columns(table, ["l0", metric])
        runs = table[finished(table) & (numbers(table, "l0") > 0) & np.isfinite(numbers(table, metric))]
        kept = [name for name, own in runs.groupby("architecture") if n_repeats(own) >= ENOUGH]
        if not kept:
            return None
        found = attainment(runs[runs["architecture"].isin(kept)], metric)
        series = {name: _by_number(found[name]) for name in in_order(found)}
        spec = specs_of(table).get(metric)
        higher = spec is not None and spec.direction == "max"
        return AttainmentInfo(series, style.axis_label(spec, metric), higher, noun(runs))

    @classmethod
    def figure(cls, info: AttainmentInfo) -> Figure:
        """Draw a panel per architecture, all on the same axes."""
        shown = style.looks(info.series)
        columns = min(COLUMNS, len(shown))
        rows = -(-len(shown) // columns)
        figure = Figure(figsize=(1.0 + 2.7 * columns, 0.5 + 2.4 * rows), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
        for axes in grid.flat[len(shown) :]:
            axes.set_visible(False)
        points = np.array([point for own in info.series.values() for stairs in own.values() for point in stairs])
        style.l0_axis(grid[0][0].xaxis, points[:, 0])
        if (points[:, 1] > 0).all() and not info.higher_is_better:
            style.log_axis(grid[0][0].yaxis, points[:, 1])
        for index, (axes, (architecture, look)) in enumerate(zip(grid.flat, shown.items(), strict=False)):
            _draw(axes, info.series[architecture], look, info)
            if index + columns >= len(shown):
                axes.set_xlabel("L0")
                axes.tick_params(labelbottom=True)
        figure.supylabel(info.y_label, fontsize=style.FONT_SIZE)
        return figure


def _by_number(surfaces: Mapping[float, Any]) -> dict[int, Stairs]:
    """Share in percent -> points, as number of repeats -> corners."""
    n = len(surfaces)
    return {round(share * n / 100): tuple((float(l0), float(y)) for l0, y in points) for share, points in surfaces.items()}


def _draw(axes: Axes, own: Mapping[int, Stairs], look: style.Look, info: AttainmentInfo) -> None:
    axes.grid(True)
    n = max(own)
    half = -(-n // 2)
    edge = axes.get_xlim()[1]
    places = np.array(sorted({l0 for stairs in own.values() for l0, _ in stairs} | {edge}))
    best, worst, middle = (_read(own[number], places, higher=info.higher_is_better) for number in (1, n, half))
    axes.fill_between(places, best, worst, step="post", color=look.color, alpha=0.22, linewidth=0)
    axes.step(places, middle, where="post", color=look.color, linewidth=1.6)
    corners = own[half]
    axes.plot([l0 for l0, _ in corners], [y for _, y in corners], look.marker, color=look.color, markersize=4)
    axes.set_title(look.label, loc="left", fontweight="bold")
    corner: tuple[float, float, Any] = (0.97, 0.05, "bottom") if info.higher_is_better else (0.97, 0.95, "top")
    text: dict[str, Any] = {"transform": axes.transAxes, "ha": "right", "va": corner[2], "fontsize": 8, "color": style.FAINT}
    axes.text(*corner[:2], f"{half} of {n} {info.noun}s", **text)


def _read(stairs: Stairs, places: "np.ndarray", *, higher: bool) -> "np.ndarray":
    """[P] the best value at each L0 or sparser; NaN before the first corner."""
    best = max if higher else min
    return np.array([best((y for l0, y in stairs if l0 <= place), default=np.nan) for place in places])
