"""Training curves: squared error and L0 over training tokens, a pair of panels per architecture."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis.plots import PLOTS, Plot, style
from analysis.table import evenly
from analysis.words import count, listed
from sae_core.errors import DamagedFileError
from sae_core.records import read_history
from sae_core.validation import LARGEST

log = logging.getLogger(__name__)

MOST_CURVES = 24
"""Curves of an architecture that are drawn."""
MAX_POINTS = 100
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
        "On training batches, in training form. One curve per run; the stronger the color, the larger its sparsity setting. "
        "A run whose error still falls at the end would gain from more tokens."
    )
    order = 30

    @classmethod
    def info(cls, table: pd.DataFrame, histories: Mapping[str, Path]) -> TrainingCurvesInfo | None:
        """Read and thin the histories of the table's runs."""
        there = table[[run_id in histories and histories[run_id].is_file() for run_id in table["run_id"]]]
        chosen = {str(name): _chosen(rows)["run_id"] for name, rows in there.groupby("architecture")}  # sorted by sparsity, as the table is
        damaged: list[str] = []
        curves = {
            name: tuple(curve for run_id in run_ids if (curve := _curve(run_id, histories[run_id], damaged)))
            for name, run_ids in chosen.items()
        }
        curves = {name: found for name, found in curves.items() if found}
        n_left_out = len(there) - sum(map(len, chosen.values()))
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
            texts.append(f"history.jsonl of {listed(info.damaged)} {are} left out.")
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
            curves = info.curves[architecture]
            for place, curve in enumerate(curves, start=1):
                drawn: dict[str, Any] = {"color": look.color, "alpha": 0.3 + 0.7 * place / len(curves), "linewidth": 1.1}
                upper.plot(curve.tokens, curve.mse, **drawn)
                lower.plot(curve.tokens, curve.l0, **drawn)
            upper.set_title(look.label, loc="left", fontweight="bold")
            _same_axes(upper, lower, every)
            if column == 0:
                upper.set_ylabel("Squared error")
                lower.set_ylabel("L0")
            else:  # the same axes as on the left
                upper.tick_params(labelleft=False)
                lower.tick_params(labelleft=False)
        return figure


def _chosen(rows: pd.DataFrame) -> pd.DataFrame:
    """At most MOST_CURVES runs: all of them, or evenly over settings, one run of each, or over runs where settings are few."""
    settings = rows.drop_duplicates("setting_hash")
    candidates = rows if len(rows) <= MOST_CURVES or len(settings) < MOST_CURVES else settings
    return candidates.iloc[evenly(len(candidates), MOST_CURVES)]


def _curve(run_id: str, file: Path, damaged: list[str]) -> Curve | None:
    """None where there is no curve, or a damaged one, which is added to `damaged`."""
    try:
        history = read_history(file)
        kept = [history[index] for index in evenly(len(history), MAX_POINTS)]
        tokens, mse, loss, l0 = (np.array([_number(row.get(name)) for row in kept]) for name in ("tokens", "mse_loss", "loss", "l0"))
    except (DamagedFileError, OverflowError) as error:
        log.warning("a training curve is left out: %s", error)
        damaged.append(run_id)
        return None
    mse = np.where(np.isnan(mse), loss, mse)  # runs without an `mse_loss` term still log the total loss
    return Curve(run_id, tuple(tokens.tolist()), tuple(mse.tolist()), tuple(l0.tolist())) if history else None


def _number(value: Any) -> float:
    number = float(value) if isinstance(value, int | float) else math.nan
    return number if abs(number) <= LARGEST else math.nan


def _same_axes(upper: Axes, lower: Axes, every: Sequence[Curve]) -> None:
    """Give a pair of panels the axes that fit all curves of the figure."""
    if errors := [value for curve in every for value in curve.mse if value > 0]:
        style.log_axis(upper.yaxis, errors)
    if l0s := [value for curve in every for value in curve.l0 if value > 0]:
        style.l0_axis(lower.yaxis, l0s)
    for axes in (upper, lower):
        axes.set_visible(True)
        axes.grid(True)
        axes.set_xlim(0, max((value for curve in every for value in curve.tokens if value > 0), default=1.0) * 1.02)
        axes.xaxis.set_major_locator(MaxNLocator(4))
    upper.tick_params(labelbottom=False)
    lower.set_xlabel("Training tokens")
    lower.xaxis.set_major_formatter(lambda value, _: count(value))
