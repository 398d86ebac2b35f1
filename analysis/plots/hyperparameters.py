"""What hyperparameters did: learning rates with their curvature, importance, parallel coordinates, and how a search got on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator

from analysis.hyperparameters import BestRate, best_rates, excess, hyperparameters, importance, is_searched, volumes_of_trials
from analysis.pareto import L0_WINDOW, REFERENCES
from analysis.plots import PLOTS, Plot, style
from analysis.table import evenly
from analysis.words import label, listed
from sae_core.errors import ConfigError

MOST_LINES = 300
"""Runs that parallel coordinates show."""
SECTION = "Hyperparameters"
_SHARES = (0, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
"""Ticks of what a learning rate costs."""


@dataclass(frozen=True, slots=True)
class RatesInfo:
    """Best rates per architecture, by requested L0."""

    rates: dict[str, tuple[BestRate, ...]]


@PLOTS.register("learning_rates")
class LearningRates(Plot):
    """Which learning rate is best, and how much does it matter?"""

    section = SECTION
    title = "Learning rates"
    caption = (
        "How far the FVU at each learning rate lies above the front of its architecture at the same L0, at each L0 requested; means over "
        "seeds. Lines: parabolas in ln lr. A large marker: the best rate, filled where it lies between rates that were tried."
    )
    order = 70

    @classmethod
    def info(cls, table: pd.DataFrame, histories: Mapping[str, Path]) -> RatesInfo | None:
        """Architectures with at least three rates at some L0."""
        if table["fvu"].dropna().empty:
            return None
        found: dict[str, list[BestRate]] = {}
        for best in best_rates(table):
            found.setdefault(best.architecture, []).append(best)
        return RatesInfo({name: tuple(own) for name, own in found.items()}) if found else None

    @classmethod
    def note(cls, info: RatesInfo) -> str:
        """The best rates, and where they are at an end."""
        every = [(name, best) for name, own in info.rates.items() for best in own]
        shown = [f"{best.rate:.2g} for {label(name)} at L0 {best.l0:g}" for name, best in every if not best.at_end]
        ends = [f"{label(name)} at L0 {best.l0:g}" for name, best in every if best.at_end]
        texts = [f"Best: {listed(shown)}."] if shown else []
        return " ".join([*texts, f"At an end of the rates tried: {listed(ends)}."] if ends else texts)

    @classmethod
    def figure(cls, info: RatesInfo) -> Figure:
        """Draw a panel per architecture."""
        shown = style.looks(info.rates)
        figure, grid = _grid(len(shown))
        for axes, (architecture, look) in zip(grid, shown.items(), strict=True):
            own = info.rates[architecture]
            for index, best in enumerate(own):
                _draw_rate(axes, best, look, 0.35 + 0.65 * (index + 1) / len(own))
            axes.set_title(look.label, loc="left", fontweight="bold")
            axes.grid(True)
            style.log_axis(axes.xaxis, [rate for best in own for rate, _ in best.tried])
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0e}".replace("e-0", "e-"))
            axes.set_ylim(bottom=-0.01)
            axes.yaxis.set_major_locator(FixedLocator(_ticks(max(value for best in own for _, value in best.tried))))
            axes.yaxis.set_major_formatter(lambda value, _: f"{100 * np.expm1(value):.3g} %")
            axes.set_xlabel("Learning rate")
            axes.legend(title="L0", fontsize=style.FONT_SIZE - 2, title_fontsize=style.FONT_SIZE - 2)
        grid[0].set_ylabel("FVU above the front")
        return figure


@dataclass(frozen=True, slots=True)
class ImportanceInfo:
    """Architecture -> hyperparameter -> share; the hyperparameters of each by their share, largest first."""

    shares: dict[str, dict[str, float]]


@PLOTS.register("importance")
class Importance(Plot):
    """Which hyperparameter is worth tuning?"""

    section = SECTION
    title = "Importance of hyperparameters"
    caption = (
        "Share of the variance, between runs, of how far FVU lies above the front of their architecture at the same L0 that each "
        "hyperparameter explains by itself: functional ANOVA of a random forest."
    )
    order = 71

    @classmethod
    def info(cls, table: pd.DataFrame, histories: Mapping[str, Path]) -> ImportanceInfo | None:
        """Architectures with enough runs that differ in two hyperparameters or more."""
        if table["fvu"].dropna().empty or hyperparameters(table).shape[1] < 2:
            return None
        try:
            shares = importance(table)
        except ConfigError:  # without scikit-learn
            return None
        found = {}
        for architecture, row in shares.iterrows():
            ordered = row.dropna().sort_values(ascending=False, kind="stable")
            found[str(architecture)] = {str(name): float(share) for name, share in ordered.items()}
        return ImportanceInfo(found) if found else None

    @classmethod
    def figure(cls, info: ImportanceInfo) -> Figure:
        """Draw bars, a panel per architecture."""
        shown = style.looks(info.shares)
        figure, grid = _grid(len(shown), height=0.9 + 0.3 * max(map(len, info.shares.values())))
        for axes, (architecture, look) in zip(grid, shown.items(), strict=True):
            names = list(info.shares[architecture])[::-1]
            axes.barh(names, [info.shares[architecture][name] for name in names], color=look.color, height=0.6)
            axes.set_xlim(0, 1)
            axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
            axes.set_title(look.label, loc="left", fontweight="bold")
            axes.grid(True, axis="x")
        return figure


_ROUND = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)
"""Shares that ticks are at."""


@dataclass(frozen=True, slots=True)
class ParallelInfo:
    """Runs as lines through one axis per hyperparameter, L0 and FVU."""

    axes: tuple[str, ...]
    ticks: tuple[tuple[tuple[float, str], ...], ...]
    """Of each axis: (place between 0 and 1, text)."""
    lines: tuple[tuple[tuple[float, ...], float], ...]
    """(places, excess), the worst first."""
    n_left_out: int = 0


@PLOTS.register("parallel_coordinates")
class ParallelCoordinates(Plot):
    """Which combinations are good?"""

    section = SECTION
    title = "Runs in parallel coordinates"
    caption = (
        "A line per run through its architecture, hyperparameters, L0 and FVU; axes of numbers above 0 are logarithmic. "
        "The darker, the nearer to the front of its architecture at its L0."
    )
    order = 72

    @classmethod
    def info(cls, table: pd.DataFrame, histories: Mapping[str, Path]) -> ParallelInfo | None:
        """Runs of a sweep whose hyperparameters vary beside sparsity and seed."""
        if table["fvu"].dropna().empty or hyperparameters(table).empty:
            return None
        above = excess(table)
        kept = above.dropna().sort_values(ascending=False, kind="stable")
        chosen = kept.iloc[evenly(len(kept), MOST_LINES)]
        runs, varied = table.loc[chosen.index], hyperparameters(table).loc[chosen.index].dropna(axis=1)
        if varied.empty or not (varied.groupby(runs["architecture"]).nunique() > 1).to_numpy().any():  # nothing was chosen for any of them
            return None
        columns = {"architecture": runs["architecture"].map(label), **{str(name): varied[name] for name in varied}}
        columns |= {"L0": runs["l0"], "FVU": runs["fvu"]}
        columns = {name: values for name, values in columns.items() if values.nunique() > 1 or name == "FVU"}
        scaled = {name: _scaled(values) for name, values in columns.items()}
        places = zip(*(places for places, _ in scaled.values()), strict=True)
        lines = tuple((place, float(value)) for place, value in zip(places, chosen, strict=True))
        return ParallelInfo(tuple(scaled), tuple(ticks for _, ticks in scaled.values()), lines, len(kept) - len(chosen))

    @classmethod
    def note(cls, info: ParallelInfo) -> str:
        """What is not drawn."""
        return f"{info.n_left_out:,} more runs are not drawn." if info.n_left_out else ""

    @classmethod
    def figure(cls, info: ParallelInfo) -> Figure:
        """Draw the axes, the lines between them, and a bar of colors."""
        figure = Figure(figsize=(max(5.0, 1.6 * len(info.axes)), 4.0), layout="constrained")
        axes = figure.subplots()
        largest = max((value for _, value in info.lines), default=0.0) or 1.0
        colors = ScalarMappable(Normalize(0, largest), matplotlib.colormaps["cividis"])
        for places, value in info.lines:
            axes.plot(range(len(places)), places, color=colors.cmap(value / largest), linewidth=0.9, alpha=0.8)
        for index, ticks in enumerate(info.ticks):
            axes.axvline(index, color=style.INK, linewidth=0.8)
            for place, text in ticks:
                box = {"facecolor": "white", "alpha": 0.7, "linewidth": 0, "pad": 0.5}
                at: dict[str, Any] = {"textcoords": "offset points", "xytext": (4, 0), "va": "center", "bbox": box}
                axes.annotate(text, (index, place), fontsize=style.FONT_SIZE - 2, **at)
        axes.set_xticks(range(len(info.axes)), info.axes)
        axes.set_yticks([])
        axes.set_ylim(-0.04, 1.04)
        for side in ("left", "bottom"):
            axes.spines[side].set_visible(False)
        axes.tick_params(length=0)
        bar = figure.colorbar(colors, ax=axes, label="FVU above the front", pad=0.02)
        shares = [0.0]
        for share in _ROUND:
            if np.log1p(shares[-1]) + largest / 8 <= np.log1p(share) <= largest:
                shares.append(share)
        bar.set_ticks(np.log1p(shares).tolist(), labels=[f"{100 * share:g} %" for share in shares])
        return figure


@dataclass(frozen=True, slots=True)
class VolumesInfo:
    """Hypervolume over finished runs, per architecture."""

    volumes: dict[str, tuple[tuple[int, float], ...]]


@PLOTS.register("search_hypervolume")
class SearchHypervolume(Plot):
    """Did the search still find better fronts at its end?"""

    section = SECTION
    title = "Progress of the search"
    caption = (
        f"Hypervolume of L0 against FVU, of the runs that had finished, over L0 {L0_WINDOW[0]:g} to {L0_WINDOW[1]:g} with reference "
        f"{REFERENCES['fvu']:g}. Where a line is flat at its end, more trials would bring little."
    )
    order = 73

    @classmethod
    def info(cls, table: pd.DataFrame, histories: Mapping[str, Path]) -> VolumesInfo | None:
        """Sweeps in which a search chose learning rates."""
        if table["fvu"].dropna().empty or not is_searched(table):
            return None
        volumes = {name: tuple(own) for name, own in volumes_of_trials(table).items() if len(own) > 1}
        return VolumesInfo(volumes) if volumes else None

    @classmethod
    def figure(cls, info: VolumesInfo) -> Figure:
        """Draw a line of steps per architecture."""
        figure = Figure(figsize=(7.4, 3.6), layout="constrained")
        axes = figure.subplots()
        axes.grid(True)
        for architecture, look in style.looks(info.volumes).items():
            numbers, volumes = zip(*info.volumes[architecture], strict=True)
            axes.step(numbers, volumes, where="post", color=look.color, label=look.label, linewidth=1.5)
        axes.set_xlabel("Finished runs of the architecture")
        axes.set_ylabel("Hypervolume")
        figure.legend(loc="outside right upper")
        return figure


def _grid(amount: int, height: float = 3.0) -> tuple[Figure, Sequence[Axes]]:
    columns = min(amount, 3)
    rows = -(-amount // columns)
    figure = Figure(figsize=(1.0 + 2.9 * columns, 0.4 + height * rows), layout="constrained")
    grid = list(np.atleast_1d(figure.subplots(rows, columns)).flat)
    for axes in grid[amount:]:
        axes.set_visible(False)
    return figure, grid[:amount]


def _draw_rate(axes: Axes, best: BestRate, look: style.Look, alpha: float) -> None:
    rates, values = np.array(best.tried).T
    line: dict[str, Any] = {"color": look.color, "alpha": alpha}
    axes.scatter(rates, values, marker=look.marker, s=18, **line)
    places = np.geomspace(rates[0], rates[-1], 60)
    parabola = np.polyval(np.polyfit(np.log(rates), values, 2), np.log(places))
    axes.plot(places, parabola, linewidth=1.2, label=f"{best.l0:g}", **line)
    height = float(np.interp(np.log(best.rate), np.log(places), parabola))
    face = "none" if best.at_end else look.color
    axes.scatter([best.rate], [height], marker=look.marker, s=90, edgecolors=look.color, facecolors=face, alpha=alpha, clip_on=False)


def _ticks(highest: float) -> list[float]:
    """Those of _SHARES up to a value that are not too near to one another, as logarithms."""
    found: list[float] = []
    for place in (float(np.log1p(share)) for share in reversed(_SHARES)):
        if place <= highest and (not found or found[-1] - place > 0.07 * highest):
            found.append(place)
    return found


def _scaled(values: "pd.Series[Any]") -> tuple[list[float], tuple[tuple[float, str], ...]]:
    """Places of values between 0 and 1, and ticks."""
    if not pd.api.types.is_numeric_dtype(values):
        names = sorted(set(map(str, values)))
        place = {name: index / max(len(names) - 1, 1) for index, name in enumerate(names)}
        return [place[str(value)] for value in values], tuple((at, name) for name, at in place.items())
    numbers = values.to_numpy(dtype=float)
    scaled = np.log(numbers) if numbers.min() > 0 else numbers
    low, span = scaled.min(), float(np.ptp(scaled)) or 1.0
    distinct = np.unique(numbers)
    shown = distinct if len(distinct) <= 5 else np.interp(np.linspace(0, 1, 4), np.linspace(0, 1, len(distinct)), distinct)
    ticks = tuple((float((np.log(number) if numbers.min() > 0 else number) - low) / span, f"{number:.4g}") for number in shown)
    return ((scaled - low) / span).tolist(), ticks
