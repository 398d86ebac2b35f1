"""A metric against width or tokens at a few L0s: what was measured, the fitted law, and what it predicts beyond."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter

from analysis.plots import PLOTS, Plot, style
from analysis.scaling import Law, fit
from analysis.table import evenly, finished, over_seeds, specs_of
from analysis.words import count, label, listed
from sae_core.errors import ConfigError

BEYOND = 4.0
"""Factor of the largest size up to which laws are drawn."""
MOST_L0S = 4
LABELS = {"d_sae": "Width d_sae", "train_tokens": "Training tokens"}
_CLOSE = 0.1
_PLACES = 25


@dataclass(frozen=True, slots=True)
class Curve:
    """One L0 of one architecture: measured points, and the law with its 95 % interval."""

    l0: float
    points: tuple[tuple[float, float], ...]
    sizes: tuple[float, ...]
    values: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class ScalingInfo:
    """Curves per architecture over one size."""

    size: str
    """Column of the horizontal axis."""
    other: str
    """What the other size is held at, e.g. "4 M training tokens"."""
    largest: float
    """Largest size that was measured: beyond, the law is extrapolated."""
    curves: dict[str, tuple[Curve, ...]]
    checks: dict[str, tuple[float, float]]
    """Architecture -> error of ln y at the size left out, of the law and of saying that nothing changes."""
    y_label: str


@PLOTS.register("scaling")
class Scaling(Plot):
    """Would a wider SAE, or more tokens, help?"""

    section = "Scaling"
    of_all = True
    title = "Law of scaling"
    caption = (
        "Points: measured, means over seeds. Lines: a power law with an irreducible part and an interaction of width and L0, fitted to "
        "each architecture, with 95 % bands; dashed where it is extrapolated."
    )
    order = 60

    @classmethod
    def info(cls, table: pd.DataFrame, histories: Mapping[str, Path]) -> ScalingInfo | None:
        """The laws of FVU; None where there are too few sizes for one."""
        try:
            laws = fit(table)
        except ConfigError:
            return None
        runs = table[finished(table) & (table["fvu"] > 0).fillna(False) & (table["l0"] > 0).fillna(False)]
        settings = over_seeds(runs.dropna(subset=["l0", "d_sae", "train_tokens"]))
        size, other = sorted(LABELS, key=lambda name: -len(set(settings[name])))
        fixed = float(settings[other].max())
        there = settings[np.isclose(settings[other].astype(float), fixed, rtol=0.01)]
        held = f"{count(fixed)} training tokens" if other == "train_tokens" else f"d_sae {fixed:.0f}"
        curves = {name: _curves(law, there[there["architecture"] == name], size, other, fixed) for name, law in laws.items()}
        checks = {name: (law.held_out.error, law.held_out.error_of_last) for name, law in laws.items() if law.held_out}
        return ScalingInfo(size, held, float(settings[size].max()), curves, checks, style.axis_label(specs_of(table).get("fvu"), "fvu"))

    @classmethod
    def note(cls, info: ScalingInfo) -> str:
        """How well the largest size is predicted by the others."""
        found = [f"{100 * error:.1f} % for {label(name)} ({100 * last:.1f} %)" for name, (error, last) in info.checks.items()]
        held = f"At {info.other}."
        if not found:
            return held
        return (
            f"{held} Fitted without the largest size, the laws miss it by {listed(found)}; in parentheses: what saying that it is as the "
            "next smaller misses it by."
        )

    @classmethod
    def figure(cls, info: ScalingInfo) -> Figure:
        """Draw a panel per architecture, all on the same axes."""
        shown = style.looks(info.curves)
        columns = min(len(shown), 3)
        rows = -(-len(shown) // columns)
        figure = Figure(figsize=(1.0 + 2.7 * columns, 0.7 + 2.8 * rows), layout="constrained")
        grid = list(np.atleast_1d(figure.subplots(rows, columns, sharex=True, sharey=True)).flat)
        for axes in grid[len(shown) :]:
            axes.set_visible(False)
        for axes, (architecture, look) in zip(grid, shown.items(), strict=False):
            axes.set_title(look.label, loc="left", fontweight="bold")
            for index, curve in enumerate(info.curves[architecture]):
                _draw(axes, curve, look, info.largest, 0.35 + 0.65 * (index + 1) / len(info.curves[architecture]))
            _axes(axes, info)
        return figure


def _curves(law: Law, rows: pd.DataFrame, size: str, other: str, fixed: float) -> tuple[Curve, ...]:
    levels = [float(level) for level in np.unique(rows["target_l0"].fillna(rows["l0"].round()).to_numpy(dtype=float))]
    chosen = [levels[index] for index in evenly(len(levels), MOST_L0S)]
    low, high = float(rows[size].min()), float(rows[size].max())
    sizes = np.unique(np.concatenate([np.geomspace(low, high * BEYOND, _PLACES), [high]]))
    found = []
    for l0 in chosen:
        near = rows[(np.log(rows["l0"] / l0)).abs() < np.log1p(_CLOSE)].sort_values(size)
        places = [{"l0": l0, size: float(value), other: fixed} for value in sizes]
        predicted = law.predict_all([(place["l0"], place["d_sae"], place["train_tokens"]) for place in places])
        points = tuple(zip(near[size].astype(float).tolist(), near[law.metric].tolist(), strict=True))
        values, lows, highs = (tuple(getattr(one, name) for one in predicted) for name in ("value", "low", "high"))
        found.append(Curve(l0, points, tuple(sizes.tolist()), values, lows, highs))
    return tuple(found)


def _draw(axes: Axes, curve: Curve, look: style.Look, largest: float, alpha: float) -> None:
    sizes, values = np.array(curve.sizes), np.array(curve.values)
    inside = sizes <= largest
    line: dict[str, Any] = {"color": look.color, "alpha": alpha, "linewidth": 1.3}
    axes.plot(sizes[inside], values[inside], **line)
    axes.plot(sizes[sizes >= largest], values[sizes >= largest], linestyle="--", **line)
    axes.fill_between(sizes, curve.low, curve.high, color=look.color, alpha=0.12, linewidth=0)
    axes.scatter(
        [x for x, _ in curve.points], [y for _, y in curve.points], color=look.color, alpha=alpha, marker=look.marker, s=26, zorder=3
    )
    place: dict[str, Any] = {"textcoords": "offset points", "xytext": (4, 0), "va": "center", "annotation_clip": False}
    axes.annotate(f"L0 {curve.l0:g}", (sizes[-1], values[-1]), fontsize=style.FONT_SIZE - 2, color=style.INK, **place)


def _axes(axes: Axes, info: ScalingInfo) -> None:
    every = [curve for curves in info.curves.values() for curve in curves]
    axes.grid(True)
    style.log_axis(axes.yaxis, [value for curve in every for value in (*curve.low, *curve.high)])
    style.log_axis(axes.xaxis, [size for curve in every for size in curve.sizes])
    axes.xaxis.set_major_locator(FixedLocator(sorted({x for curve in every for x, _ in curve.points} | {info.largest * BEYOND})))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: count(value) if info.size == "train_tokens" else f"{value:.0f}"))
    axes.set_xlabel(LABELS[info.size])
    subplot = axes.get_subplotspec()
    if subplot is None or subplot.is_first_col():
        axes.set_ylabel(info.y_label)
