"""What the frontier plots share: L0 against one metric, a front per architecture.

A point is a setting: the mean over its seeds, with whiskers from the smallest to the largest. Fronts are drawn through
settings, not single runs, so that no lucky seed is on them. Other settings stay visible, faint.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from analysis import style
from analysis.pareto import settings_with_front
from analysis.plots import Plot
from analysis.table import specs_of
from analysis.thinning import thinned


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
    n_seeds: int
    """The most seeds any setting has."""
    not_drawn: tuple[str, ...]
    """Run ids without a place on a logarithmic axis."""
    n_left_out: int = 0
    """Settings on no front that are left out because there are too many to see."""


class FrontierPlot(Plot):
    """Base of the plots of L0 against a metric `y`."""

    section = "Frontiers"
    y: ClassVar[str]
    log_y: ClassVar[bool]

    @classmethod
    def info(cls, table: pd.DataFrame, histories: Mapping[str, Path]) -> FrontierInfo | None:
        """Means over seeds and the front of each architecture."""
        settings = settings_with_front(table, cls.y)
        drawn = settings[settings[cls.y] > 0] if cls.log_y else settings
        if drawn.empty:
            return None
        finished = table[(table["status"] == "finished") & table[cls.y].notna()]
        shown = thinned(drawn)
        return FrontierInfo(
            series=series_of(shown, finished, cls.y),
            y_label=style.axis_label(specs_of(table).get(cls.y), cls.y),
            log_y=cls.log_y,
            n_seeds=int(drawn["n_seeds"].max()),
            not_drawn=tuple(sorted(set(finished["run_id"]) - {run for runs in drawn["run_ids"] for run in runs})),
            n_left_out=len(drawn) - len(shown),
        )

    @classmethod
    def note(cls, info: FrontierInfo) -> str:
        """How many settings are left out."""
        return note_of_left_out(info.n_left_out)

    @classmethod
    def figure(cls, info: FrontierInfo) -> Figure:
        """Draw the points, the fronts and the legend beside them."""
        figure, axes = draw_fronts(info.series, info.y_label, height=4.2)
        if info.log_y:
            ends = [end for series in info.series.values() for point in series for end in point.y_range]
            style.log_axis(axes.yaxis, [end for end in ends if end > 0])
        if info.not_drawn:
            note = f"Without a place on a logarithmic axis: {len(info.not_drawn)} run{'s' * (len(info.not_drawn) > 1)} (see the table)"
            figure.supxlabel(note, fontsize=8, color=style.FAINT)
        return figure


def series_of(settings: pd.DataFrame, finished: pd.DataFrame, y: str) -> dict[str, tuple[Point, ...]]:
    """The points of each architecture.

    Args:
        settings: rows of `settings_with_front`, in the order they are to be drawn in.
        finished: the runs they are means of.
        y: a column of both.
    """
    ranges = finished.groupby("setting_hash")[["l0", y]].agg(["min", "max"]).loc[settings["setting_hash"]].to_numpy(dtype=float)
    series: dict[str, list[Point]] = {}
    columns = (settings[name] for name in ("architecture", "l0", y, "on_front", "run_ids"))
    for (l0_low, l0_high, y_low, y_high), architecture, l0, value, on_front, run_ids in zip(ranges.tolist(), *columns, strict=True):
        point = Point(float(l0), float(value), (l0_low, l0_high), (y_low, y_high), bool(on_front), run_ids)
        series.setdefault(str(architecture), []).append(point)
    return {architecture: tuple(points) for architecture, points in sorted(series.items())}


def note_of_left_out(n_left_out: int) -> str:
    """What a caption says about settings that are not drawn."""
    if not n_left_out:
        return ""
    are = "setting behind the fronts is" if n_left_out == 1 else "settings behind the fronts are"
    return f"{n_left_out:,} more {are} not drawn; those that are were chosen evenly over L0."


def draw_fronts(series: Mapping[str, tuple[Point, ...]], y_label: str, height: float) -> tuple[Figure, Axes]:
    """A figure of each architecture's points over L0, with its legend beside it.

    Args:
        height: in inches.
    """
    figure = Figure(figsize=(7.4, height), layout="constrained")
    axes = figure.subplots()
    axes.grid(True)
    for architecture, look in style.looks(series).items():
        draw_series(axes, series[architecture], look)
    style.l0_axis(axes.xaxis, [end for points in series.values() for point in points for end in point.x_range if end > 0])
    axes.set_xlabel("L0 (active latents per token)")
    axes.set_ylabel(y_label)
    figure.legend(loc="outside right upper")
    return figure, axes


def draw_series(axes: Axes, points: tuple[Point, ...], look: style.Look) -> None:
    """A line through the points on the front, the others faint behind it, whiskers over seeds."""
    front = [point for point in points if point.on_front]
    axes.plot(
        [p.x for p in front], [p.y for p in front], color=look.color, marker=look.marker,
        markersize=6, linewidth=1.6, markeredgecolor="white", markeredgewidth=0.6, label=look.label, clip_on=False, zorder=3,
    )  # fmt: skip
    behind = [point for point in points if not point.on_front]
    axes.scatter(
        [p.x for p in behind], [p.y for p in behind], color=look.color, marker=look.marker, s=26, alpha=0.35, linewidths=0, zorder=2
    )
    for some, alpha in ((front, 0.9), (behind, 0.35)):
        repeated = [point for point in some if len(point.run_ids) > 1]
        if repeated:
            across = [((p.x_range[0], p.y), (p.x_range[1], p.y)) for p in repeated]
            along = [((p.x, p.y_range[0]), (p.x, p.y_range[1])) for p in repeated]
            axes.add_collection(LineCollection([*across, *along], colors=look.color, linewidths=1, alpha=alpha))
    # An invisible marker on top that the HTML report turns into a link to the run.
    links = axes.scatter([p.x for p in points], [p.y for p in points], s=60, alpha=0, zorder=4)
    links.set_urls([f"#{point.run_ids[0]}" for point in points])
