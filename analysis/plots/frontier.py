"""L0 against one metric, a front per architecture.

A point is a setting: the mean over its seeds, with whiskers from the smallest to the largest. Fronts are drawn through settings, not
single runs, so that no lucky seed is on them. Other settings stay visible, faint.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from analysis.estimates import Band
from analysis.pareto import settings_with_front
from analysis.plots import PLOTS, Plot, style
from analysis.statistics.matched import COMPARED, bands
from analysis.table import evenly, specs_of
from analysis.words import in_order, label, listed

MOST_POINTS = 40
"""Settings of an architecture that are drawn beside those on its front."""


@dataclass(frozen=True, slots=True)
class Point:
    """One setting."""

    x: float
    y: float
    x_range: tuple[float, float]
    """Smallest and largest over seeds."""
    y_range: tuple[float, float]
    on_front: bool
    run_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FrontierInfo:
    """Points per architecture, sorted by L0."""

    series: dict[str, tuple[Point, ...]]
    y_label: str
    log_y: bool
    not_drawn: tuple[str, ...] = ()
    """Run ids without a place on an axis."""
    cut: tuple[str, ...] = ()
    """Architectures whose front has settings without a place on an axis: it is drawn shorter than it is."""
    n_left_out: int = 0
    """Settings on no front that are left out because there are too many to see."""
    true_l0: float | None = None
    """Features active per token, where they are known."""
    bands: Mapping[str, Band] = field(default_factory=dict)
    """Architecture -> its front with a 95 % interval, where there is one."""


class FrontierPlot(Plot):
    """Base of the plots of L0 against a metric `y`."""

    section = "Frontiers"
    explored = True
    y: ClassVar[str]
    log_y: ClassVar[bool] = False
    front_by: ClassVar[str] = ""
    """Metric whose fronts are drawn; `y` itself where empty."""

    @classmethod
    def info(cls, table: pd.DataFrame, histories: Mapping[str, Path]) -> FrontierInfo | None:
        """Means over seeds and the front of each architecture, with its band."""
        fronts = cls.fronts(table)
        if fronts is None or cls.y not in COMPARED or cls.front_by:
            return fronts
        found = bands(cls._runs(table), cls.y)
        return replace(fronts, bands={name: band for name, band in found.items() if None not in band.low and name in fronts.series})

    @classmethod
    def _runs(cls, table: pd.DataFrame) -> pd.DataFrame:
        """Those that have a place."""
        return table[(table["status"] == "finished") & table[cls.y].notna() & table[cls.front_by or cls.y].notna()]

    @classmethod
    def fronts(cls, table: pd.DataFrame) -> FrontierInfo | None:
        """As `info`, without bands."""
        front_by = cls.front_by or cls.y
        if not {cls.y, front_by} <= set(table.columns):
            return None
        runs = cls._runs(table)
        settings = settings_with_front(runs, front_by)
        unplaced = settings[settings[cls.y] <= 0] if cls.log_y else settings[:0]
        settings = settings.drop(unplaced.index)
        if settings.empty:
            return None
        shown = _thinned(settings)
        drawn = {run_id for run_ids in settings["run_ids"] for run_id in run_ids}
        true_l0 = runs["true_l0"].mean() if "true_l0" in runs else None
        return FrontierInfo(
            series=_series(shown, runs, cls.y),
            y_label=style.axis_label(specs_of(table).get(cls.y), cls.y),
            log_y=cls.log_y,
            not_drawn=tuple(sorted(set(runs["run_id"]) - drawn)),
            cut=tuple(in_order(unplaced.loc[unplaced["on_front"], "architecture"].unique())),
            n_left_out=len(settings) - len(shown),
            true_l0=float(true_l0) if pd.notna(true_l0) else None,
        )

    @classmethod
    def note(cls, info: FrontierInfo) -> str:
        """What is not drawn or dotted."""
        texts = []
        if info.bands:
            texts.append(
                "Bands: 95 % intervals of the fronts, at each L0 by itself, along the monotone cubic that matched values are read from."
            )
            texts.append("Lines join the points straight. Whiskers: from the smallest to the largest.")
        if info.cut:
            names = listed([label(name) for name in info.cut])
            texts.append(
                f"The front of {names} goes on to a mean of 0 or less, which has no place on a logarithmic axis: it is drawn shorter."
            )
        if info.true_l0 is not None:
            texts.append("Dotted: how many features are active on a token, on average.")
        if info.n_left_out:
            are = "setting behind the fronts is" if info.n_left_out == 1 else "settings behind the fronts are"
            texts.append(f"{info.n_left_out:,} more {are} not drawn; those that are were chosen evenly over L0.")
        return " ".join(texts)

    @classmethod
    def figure(cls, info: FrontierInfo) -> Figure:
        """Draw the points, the fronts and the legend beside them."""
        figure = Figure(figsize=(7.4, 4.2), layout="constrained")
        draw_fronts(figure.subplots(), info)
        figure.legend(loc="outside right upper")
        if info.not_drawn:
            note = f"Without a place on a logarithmic axis: {len(info.not_drawn)} run{'s' * (len(info.not_drawn) > 1)} (see the table)"
            figure.supxlabel(note, fontsize=8, color=style.FAINT)
        return figure


@PLOTS.register("l0_fvu")
class L0Fvu(FrontierPlot):
    """The headline: sparsity against reconstruction."""

    title = "Sparsity against reconstruction"
    caption = (
        "Lower left is better. Lines: Pareto front of each architecture, through the means over seeds. "
        "Faint: settings that another one of the same architecture dominates."
    )
    order = 10
    y = "fvu"
    log_y = True


@PLOTS.register("l0_delta_ce")
class L0DeltaCe(FrontierPlot):
    """Sparsity against the loss it costs the language model."""

    title = "Sparsity against added cross-entropy"
    caption = (
        "Lower left is better. How much worse the language model predicts the next token when the SAE's reconstruction "
        "replaces the activation."
    )
    order = 11
    y = "delta_ce"
    log_y = True


@PLOTS.register("l0_ce_loss_recovered")
class L0CeLossRecovered(FrontierPlot):
    """Sparsity against cross-entropy recovered."""

    title = "Sparsity against cross-entropy recovered"
    caption = "Upper left is better. 1: the reconstruction predicts as well as the activation itself; 0: no better than zeros in its place."
    order = 12
    y = "ce_loss_recovered"


@PLOTS.register("dead_fraction")
class DeadFraction(FrontierPlot):
    """How much of each dictionary is never used."""

    section = "Latents"
    explored = False
    title = "Dead latents"
    caption = (
        "Share of the latents that were never active in the tokens counted. Such latents cost memory and explain nothing. "
        "Lines: the settings on the front of L0 against FVU. Faint: the others."
    )
    order = 41
    y = "dead_fraction"
    front_by = "fvu"

    @classmethod
    def figure(cls, info: FrontierInfo) -> Figure:
        """Draw the points, with shares in percent."""
        figure = super().figure(info)
        figure.set_figheight(3.6)
        figure.axes[0].set_ylim(bottom=0)
        figure.axes[0].yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
        return figure


def draw_fronts(axes: Axes, info: FrontierInfo) -> None:
    """Draw each architecture's points over L0, and where the true L0 is."""
    axes.grid(True)
    for architecture, look in style.looks(info.series).items():
        _draw_series(axes, info.series[architecture], look)
    for architecture, band in info.bands.items():
        color = style.looks(info.series)[architecture].color
        axes.fill_between(band.l0, np.array(band.low, float), np.array(band.high, float), color=color, alpha=0.13, linewidth=0, zorder=1)
    points = [point for series in info.series.values() for point in series]
    style.l0_axis(axes.xaxis, [end for point in points for end in point.x_range if end > 0])
    if info.log_y:
        style.log_axis(axes.yaxis, [end for point in points for end in point.y_range if end > 0])
    low, high = axes.get_xlim()
    if info.true_l0 is not None and low < info.true_l0 < high:
        axes.axvline(info.true_l0, color=style.FAINT, linestyle=":", linewidth=1.2, zorder=1)
        place: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "xytext": (4, -2), "textcoords": "offset points", "va": "top"}
        axes.annotate("true L0", (info.true_l0, 1), fontsize=8, color=style.FAINT, **place)
    axes.set_xlabel("L0 (active latents per token)")
    axes.set_ylabel(info.y_label)


def _thinned(settings: pd.DataFrame) -> pd.DataFrame:
    """The settings on a front, and of each architecture's others at most MOST_POINTS, evenly in the order of the rows."""
    kept = settings["on_front"].to_numpy(dtype=bool, copy=True)
    for architecture in set(settings["architecture"]):
        others = np.flatnonzero((settings["architecture"] == architecture) & ~settings["on_front"])
        kept[others[evenly(len(others), MOST_POINTS)]] = True
    return settings[kept]


def _series(settings: pd.DataFrame, runs: pd.DataFrame, y: str) -> dict[str, tuple[Point, ...]]:
    """The points of each architecture: `settings` are means of `runs`."""
    ranges = runs.groupby("setting_hash")[["l0", y]].agg(["min", "max"]).loc[settings["setting_hash"]].to_numpy(dtype=float)
    series: dict[str, list[Point]] = {}
    columns = (settings[name] for name in ("architecture", "l0", y, "on_front", "run_ids"))
    for (l0_low, l0_high, y_low, y_high), architecture, l0, value, on_front, run_ids in zip(ranges.tolist(), *columns, strict=True):
        point = Point(float(l0), float(value), (l0_low, l0_high), (y_low, y_high), bool(on_front), run_ids)
        series.setdefault(str(architecture), []).append(point)
    return {architecture: tuple(points) for architecture, points in sorted(series.items())}


def _draw_series(axes: Axes, points: tuple[Point, ...], look: style.Look) -> None:
    """A line through the points on the front, the others faint behind it, whiskers over seeds."""
    front, behind = [point for point in points if point.on_front], [point for point in points if not point.on_front]
    line: dict[str, Any] = {
        "markersize": 6,
        "linewidth": 1.6,
        "markeredgecolor": "white",
        "markeredgewidth": 0.6,
        "clip_on": False,
        "zorder": 3,
    }
    axes.plot([p.x for p in front], [p.y for p in front], color=look.color, marker=look.marker, label=look.label, **line)
    faint: dict[str, Any] = {"s": 26, "alpha": 0.35, "linewidths": 0, "zorder": 2}
    axes.scatter([p.x for p in behind], [p.y for p in behind], color=look.color, marker=look.marker, **faint)
    for group, alpha in ((front, 0.9), (behind, 0.35)):
        repeated = [point for point in group if len(point.run_ids) > 1]
        if repeated:
            across = [((p.x_range[0], p.y), (p.x_range[1], p.y)) for p in repeated]
            along = [((p.x, p.y_range[0]), (p.x, p.y_range[1])) for p in repeated]
            axes.add_collection(LineCollection([*across, *along], colors=look.color, linewidths=1, alpha=alpha))
    # An invisible marker on top that the HTML report turns into a link to the run.
    links = axes.scatter([p.x for p in points], [p.y for p in points], s=60, alpha=0, zorder=4)
    links.set_urls([f"#{point.run_ids[0]}" for point in points])
