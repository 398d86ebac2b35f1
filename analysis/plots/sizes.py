"""Fronts of several widths, token budgets, layers or texts: lines on one plot, or panels."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.plots import PLOTS, Plot, style
from analysis.plots.frontier import FrontierInfo, L0DeltaCe, L0Fvu, Point
from analysis.table import by_comparison, finished
from analysis.words import label, titles
from sae_core.errors import UnknownNameError

Layout = Literal["architectures", "sizes", "one"]
"""A panel per architecture with a line per size, a panel per size with a line per architecture, or all on one plot."""
LINE_STYLES: tuple[Literal["-", "--", ":", "-."], ...] = ("-", "--", ":", "-.")
MARKERS = "osD^vP*X"
COLUMNS = 3
MOST_SIZES = len(MARKERS)
"""Sizes that are drawn, narrow ones first: more cannot be told apart."""


@dataclass(frozen=True, slots=True)
class SizesInfo:
    """Fronts of every architecture at every size."""

    fronts: dict[str, FrontierInfo]
    """Name of the size, e.g. "d_sae 4096 · 10 M training tokens" -> its fronts; small before large."""
    common: str
    """What all of them share, e.g. model and hook point."""
    layout: Layout
    n_left_out: int = 0
    """Sizes that are not drawn, because there are too many to tell apart."""


class SizesPlot(Plot):
    """Base of the plots of fronts at several sizes."""

    section = "Frontiers"
    caption = "Lower left is better. A panel per architecture, with the front of each size: the darker the line, the larger."
    of_all = True
    base: ClassVar[type[L0Fvu] | type[L0DeltaCe]]

    @classmethod
    def info(cls, table: pd.DataFrame, histories: Mapping[str, Path], layout: Layout = "architectures") -> SizesInfo | None:
        """The fronts of all sizes.

        Args:
            layout: "architectures": a panel for each, with a line per size; "sizes": a panel for each, with a line per architecture;
                "one": all on one plot.
        """
        if layout not in get_args(Layout):
            raise UnknownNameError.of("`layout`", layout, get_args(Layout))
        comparisons, found = by_comparison(table[finished(table)]), {}
        if len(comparisons) < 2:
            return None
        names = titles(table)
        for comparison, runs in comparisons.items():
            info = cls.base.fronts(runs)
            if info and any(point.on_front for series in info.series.values() for point in series):
                found[names[comparison].short] = info
        if len(found) < 2:
            return None
        shown = dict(list(found.items())[:MOST_SIZES])
        return SizesInfo(shown, next(iter(names.values())).common, layout, len(found) - len(shown))

    @classmethod
    def note(cls, info: SizesInfo) -> str:
        """What all share, and what is not drawn."""
        texts = [f"All: {info.common}."] if info.common else []
        if info.n_left_out:
            texts.append(f"{info.n_left_out} more are not drawn.")
        return " ".join(texts)

    @classmethod
    def figure(cls, info: SizesInfo) -> Figure:
        """Draw it."""
        if info.layout == "one":
            return _together(info)
        return _of_architectures(info) if info.layout == "architectures" else _of_sizes(info)


@PLOTS.register("sizes_fvu")
class SizesFvu(SizesPlot):
    """Sparsity against reconstruction, at every size."""

    title = "Sparsity against reconstruction, at every size"
    order = 16
    base = L0Fvu


@PLOTS.register("sizes_delta_ce")
class SizesDeltaCe(SizesPlot):
    """Sparsity against added cross-entropy, at every size."""

    title = "Sparsity against added cross-entropy, at every size"
    order = 17
    base = L0DeltaCe


def _together(info: SizesInfo) -> Figure:
    """Everything on one plot: colors are architectures, line styles and shades are sizes."""
    figure = Figure(figsize=(7.4, 4.2), layout="constrained")
    axes = figure.subplots()
    shown = style.looks(name for fronts in info.fronts.values() for name in fronts.series)
    for index, (name, fronts) in enumerate(info.fronts.items(), start=1):
        for architecture, points in fronts.series.items():
            look = replace(shown[architecture], color=_lighter(shown[architecture].color, _shade(index, info)))
            _front(axes, points, look, _line(index), f"{look.label}, {name}")
    _axes(axes, info)
    kinds = [Line2D([], [], color=look.color, marker=look.marker, label=look.label) for look in shown.values()]
    sizes = [
        Line2D([], [], color=_lighter(style.INK, _shade(index, info)), linestyle=_line(index), label=name)
        for index, name in enumerate(info.fronts, start=1)
    ]
    figure.legend(handles=[*kinds, *sizes], loc="outside right upper")
    return figure


def _of_architectures(info: SizesInfo) -> Figure:
    """A panel per architecture; sizes are told apart by how dark their lines are, and by their own markers."""
    shown = style.looks(name for fronts in info.fronts.values() for name in fronts.series)
    figure, grid = _panels(len(shown))
    for axes, (architecture, look) in zip(grid, shown.items(), strict=False):
        for index, (name, fronts) in enumerate(info.fronts.items(), start=1):
            own = replace(look, color=_lighter(look.color, _shade(index, info)), marker=MARKERS[index - 1])
            if points := fronts.series.get(architecture):
                _front(axes, points, own, "-", name)
        axes.set_title(look.label, loc="left", fontweight="bold")
        _axes(axes, info)
    sizes = enumerate(info.fronts, start=1)
    grays = [Line2D([], [], color=_lighter(style.INK, _shade(index, info)), marker=MARKERS[index - 1]) for index, _ in sizes]
    figure.legend(grays, list(info.fronts), loc="outside lower center", ncols=min(len(grays), 3))
    return figure


def _of_sizes(info: SizesInfo) -> Figure:
    """A panel per size, all on the same axes."""
    figure, grid = _panels(len(info.fronts))
    handles: dict[str, Any] = {}
    for axes, (name, fronts) in zip(grid, info.fronts.items(), strict=False):
        for architecture, look in style.looks(fronts.series).items():
            handles[label(architecture)] = _front(axes, fronts.series[architecture], look, "-", look.label)
        axes.set_title(name, loc="left", fontweight="bold")
        _axes(axes, info)
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=3)
    return figure


def _panels(amount: int) -> tuple[Figure, list[Axes]]:
    columns = min(amount, COLUMNS)
    rows = -(-amount // columns)
    figure = Figure(figsize=(1.0 + 2.7 * columns, 0.7 + 2.7 * rows), layout="constrained")
    grid = list(np.atleast_1d(figure.subplots(rows, columns, sharex=True, sharey=True)).flat)
    for axes in grid[amount:]:
        axes.set_visible(False)
    return figure, grid[:amount]


def _front(axes: Axes, points: tuple[Point, ...], look: style.Look, line: str, name: str) -> Any:
    front = [point for point in points if point.on_front]
    xs, ys = [point.x for point in front], [point.y for point in front]
    drawn: dict[str, Any] = {"markersize": 4.5, "linewidth": 1.4, "markeredgecolor": "white", "markeredgewidth": 0.5}
    return axes.plot(xs, ys, color=look.color, marker=look.marker, linestyle=line, label=name, **drawn)[0]


def _axes(axes: Axes, info: SizesInfo) -> None:
    """The same axes for every panel."""
    points = [p for fronts in info.fronts.values() for series in fronts.series.values() for p in series if p.on_front]
    first = next(iter(info.fronts.values()))
    axes.grid(True)
    style.l0_axis(axes.xaxis, [point.x for point in points])
    if first.log_y:
        style.log_axis(axes.yaxis, [point.y for point in points])
    subplot = axes.get_subplotspec()
    if subplot is None or subplot.is_first_col():
        axes.set_ylabel(first.y_label)
    axes.set_xlabel("L0 (active latents per token)" if subplot is None or subplot.get_geometry()[:2] == (1, 1) else "L0")


def _line(index: int) -> Literal["-", "--", ":", "-."]:
    return LINE_STYLES[(index - 1) % len(LINE_STYLES)]


def _shade(index: int, info: SizesInfo) -> float:
    return 0.35 + 0.65 * index / len(info.fronts)


def _lighter(color: str, strength: float) -> str:
    """A color mixed with white: 1 leaves it as it is."""
    red, green, blue = (1 - strength * (1 - part) for part in to_rgb(color))
    return to_hex((red, green, blue))
