"""What quality costs: a metric at one L0 against FLOPs, device-seconds, parameters and tokens of training, a panel each."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator

from analysis import words
from analysis.costs import LABELS, at_matched_cost, middle_l0, quality_of_sizes
from analysis.estimates import Estimate
from analysis.pareto import pareto_front
from analysis.plots import PLOTS, Plot, style
from analysis.table import specs_of

WORTH_SHOWING = 1.05
"""Factor by which a cost differs between sizes, at least, for a panel of its own."""

_FEW, _MOST_TICKS, _CLOSE = ("parameters", "train_tokens"), 6, 1.05


@dataclass(frozen=True, slots=True)
class Size:
    """One architecture at one width and number of tokens."""

    costs: dict[str, float]
    value: float
    low: float
    high: float
    on_front: dict[str, bool]
    """Per cost: whether no other size of the architecture is both cheaper and better."""
    name: str
    """E.g. "d_sae 4096, 10 M tokens"."""


@dataclass(frozen=True, slots=True)
class CostInfo:
    """Sizes per architecture, cheapest first, and the costs that have a panel."""

    series: dict[str, tuple[Size, ...]]
    costs: tuple[str, ...]
    l0: float
    y_label: str
    flops: float = 0.0
    """Training FLOPs at which architectures are compared: the most that all were measured to."""
    at_equal_flops: tuple[tuple[str, Estimate], ...] = ()
    """(architecture, value) there, best first."""


class CostPlot(Plot):
    """Base of the plots of cost against a metric at one L0."""

    section = "Cost"
    of_all = True
    metric: ClassVar[str]

    @classmethod
    def info(cls, table: pd.DataFrame, histories: Mapping[str, Path]) -> CostInfo | None:
        """Values at the middle L0 that most fronts reach."""
        l0 = middle_l0(table)
        if l0 is None or cls.metric not in table or table[cls.metric].dropna().empty:
            return None
        return cost_info(table, l0, cls.metric)

    @classmethod
    def note(cls, info: CostInfo) -> str:
        """Which L0 it is."""
        matched = [f"{words.label(name)} {words.interval(value)}" for name, value in info.at_equal_flops]
        equal = f" At equal training FLOPs ({info.flops:.2g}): {words.listed(matched)}." if len(matched) > 1 else ""
        return f"Read off each front at L0 {info.l0:g}.{equal}"

    @classmethod
    def figure(cls, info: CostInfo) -> Figure:
        """Draw a panel per cost, side by side, with the same values."""
        n_columns = min(len(info.costs), 2)
        n_rows = -(-len(info.costs) // n_columns)
        figure = Figure(figsize=(7.4 if n_columns > 1 else 5.6, 0.6 + 3.0 * n_rows), layout="constrained")
        grid = np.atleast_1d(figure.subplots(n_rows, n_columns, sharey=True)).flat
        for axes, cost in zip(grid, info.costs, strict=False):
            _draw(axes, info, cost)
        for axes in list(grid)[len(info.costs) :]:
            axes.set_visible(False)
        figure.supylabel(f"{info.y_label} at L0 {info.l0:g}", fontsize="medium", color=style.INK)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3)
        return figure


@PLOTS.register("cost_fvu")
class CostFvu(CostPlot):
    """What reconstruction costs."""

    title = "Reconstruction against cost"
    caption = (
        "Lower left is better. A point is an architecture at one width and number of training tokens; bars go from the smallest to the "
        "largest over seeds. Lines: for each architecture, the sizes of which no other is both cheaper and better."
    )
    order = 50
    metric = "fvu"


@PLOTS.register("cost_delta_ce")
class CostDeltaCe(CostPlot):
    """What keeping the language model's predictions costs."""

    title = "Added cross-entropy against cost"
    caption = "Lower left is better. As above, for how much worse the language model predicts with the reconstruction in place."
    order = 51
    metric = "delta_ce"


def cost_info(table: pd.DataFrame, l0: float, metric: str) -> CostInfo | None:
    """Sizes at one L0, for plots; None where there are fewer than two, or all cost the same."""
    sizes = quality_of_sizes(table, l0, metric)
    sizes = sizes[sizes[metric] > 0]
    shown = [
        cost for cost in LABELS if len(sizes) > 1 and (known := sizes[cost].dropna()).size and known.max() > WORTH_SHOWING * known.min() > 0
    ]
    if not shown:
        return None
    sizes = sizes.sort_values(shown[0], kind="stable", ignore_index=True)
    fronts = {cost: pareto_front(sizes, cost, metric, by="architecture").to_numpy(dtype=bool) for cost in shown}
    series: dict[str, list[Size]] = {}
    for index, row in enumerate(sizes.to_dict("records")):
        costs = {cost: float(row[cost]) for cost in shown if pd.notna(row[cost])}
        tokens = f", {words.count(row['train_tokens'])} tokens" if pd.notna(row["train_tokens"]) else ""
        front = {cost: bool(fronts[cost][index]) for cost in shown}
        size = Size(costs, row[metric], row["low"], row["high"], front, f"d_sae {row['d_sae']}{tokens}")
        series.setdefault(row["architecture"], []).append(size)
    found = {name: tuple(own) for name, own in sorted(series.items())}
    flops, equal = _at_equal_flops(table, sizes, l0, metric)
    return CostInfo(found, tuple(shown), l0, style.axis_label(specs_of(table).get(metric), metric), flops, equal)


def _at_equal_flops(table: pd.DataFrame, sizes: pd.DataFrame, l0: float, metric: str) -> tuple[float, tuple[tuple[str, Estimate], ...]]:
    """Values at the most FLOPs that every architecture was measured to; nothing for several texts, or where one size is all there is."""
    flops = sizes.groupby("architecture")["train_flops"].agg(["min", "max", "nunique"])
    if sizes["eval_hash"].nunique() > 1 or flops["nunique"].max() < 2 or flops["max"].min() < flops["min"].max():
        return 0.0, ()
    most = float(flops["max"].min())
    values = [(name, one) for (_, name), (one,) in at_matched_cost(table, l0, metric, costs=[most]).items() if one is not None]
    return most, tuple(sorted(values, key=lambda item: item[1].value))


def _draw(axes: Axes, info: CostInfo, cost: str) -> None:
    axes.grid(True)
    drawn: list[tuple[float, float]] = []
    for architecture, look in style.looks(info.series).items():
        sizes = sorted((size for size in info.series[architecture] if cost in size.costs), key=lambda size: size.costs[cost])
        front = [size for size in sizes if size.on_front[cost]]
        line: dict[str, Any] = {"color": look.color, "marker": look.marker, "markersize": 6, "linewidth": 1.4, "markeredgecolor": "white"}
        axes.plot([s.costs[cost] for s in front], [s.value for s in front], label=look.label, markeredgewidth=0.6, zorder=3, **line)
        behind = [size for size in sizes if not size.on_front[cost]]
        axes.scatter([s.costs[cost] for s in behind], [s.value for s in behind], color=look.color, marker=look.marker, s=26, alpha=0.4)
        x, y = [s.costs[cost] for s in sizes], np.array([s.value for s in sizes])
        spread = np.abs(np.array([[s.low for s in sizes], [s.high for s in sizes]]).reshape(2, -1) - y)
        axes.errorbar(x, y, spread, fmt="none", ecolor=look.color, elinewidth=0.9, alpha=0.8, zorder=2)
        drawn += [(s.costs[cost], value) for s in sizes for value in (s.low, s.high)]
    style.log_axis(axes.yaxis, [value for _, value in drawn if value > 0])
    _cost_axis(axes, cost, [value for value, _ in drawn])
    axes.set_xlabel(LABELS[cost])


def _cost_axis(axes: Axes, cost: str, values: list[float]) -> None:
    """Logarithmic, with ticks at the values themselves where they are few, as widths and numbers of tokens are."""
    style.log_axis(axes.xaxis, values)
    distinct: list[float] = []
    for value in sorted(values):  # architectures differ by a few vectors of parameters
        distinct += [value] if not distinct or value > _CLOSE * distinct[-1] else []
    if cost in _FEW and len(distinct) <= _MOST_TICKS:
        axes.xaxis.set_major_locator(FixedLocator(distinct))
    elif max(values) > 4 * min(values):
        wide = max(values) > 100 * min(values)
        axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1,) if wide else (1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick(cost, value)))


def _tick(cost: str, value: float) -> str:
    if cost == "train_flops":
        return f"{value:.1e}".replace(".0e", "e").replace("e+", "e")
    return f"{value:g}" if cost == "train_seconds" else words.count(value)
