"""Latent densities: on which share of the held-out tokens latents are active, a panel per architecture."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from analysis.pareto import settings_with_front
from analysis.plots import PLOTS, Plot, style
from analysis.table import evenly
from sae_core.errors import ConfigError
from sae_core.layout import RunPaths
from sae_core.records import DENSITY_EDGES, RunRecord

MOST_CURVES = 5
"""Settings of an architecture that are drawn."""
COLUMNS = 3


@dataclass(frozen=True, slots=True)
class Densities:
    """One setting."""

    l0: float
    shares: tuple[float, ...]
    """Share of the latents per bin of DENSITY_EDGES; means over its runs."""
    never: float
    """Share that was active on no token."""


@dataclass(frozen=True, slots=True)
class DensitiesInfo:
    """Settings per architecture, sorted by L0."""

    series: dict[str, tuple[Densities, ...]]
    n_left_out: int
    """Settings on fronts that are left out because there are too many to see."""


@PLOTS.register("latent_densities")
class LatentDensities(Plot):
    """Are latents rare events, or always on?"""

    section = "Latents"
    title = "Latent densities"
    caption = (
        "How many latents are active on which share of the held-out tokens, for settings on the front of L0 against FVU; the stronger the "
        "color, the larger the L0. Latents at the far right are active on nearly every token, and seldom about one thing."
    )
    order = 40

    @classmethod
    def info(cls, table: pd.DataFrame, histories: Mapping[str, Path]) -> DensitiesInfo | None:
        """Read the records of some settings on each front."""
        known = table["run_id"].isin(list(histories)) & (table["status"] == "finished") & table["fvu"].notna()
        settings = settings_with_front(table[known])
        front = settings[settings["on_front"]]
        series = {}
        for architecture, rows in front.groupby("architecture"):
            chosen = rows.iloc[evenly(len(rows), MOST_CURVES)]
            curves = [_densities(l0, run_ids, histories) for l0, run_ids in zip(chosen["l0"], chosen["run_ids"], strict=True)]
            series[str(architecture)] = tuple(curve for curve in curves if curve)
        series = {name: curves for name, curves in series.items() if curves}
        n_left_out = sum(max(len(rows) - MOST_CURVES, 0) for name, rows in front.groupby("architecture") if name in series)
        return DensitiesInfo(series, n_left_out) if series else None

    @classmethod
    def note(cls, info: DensitiesInfo) -> str:
        """How many settings are not drawn."""
        if not info.n_left_out:
            return ""
        return f"At most {MOST_CURVES} settings per architecture are drawn, chosen evenly; {info.n_left_out:,} are not."

    @classmethod
    def figure(cls, info: DensitiesInfo) -> Figure:
        """Draw a panel of histograms per architecture, all on the same axes."""
        looks = style.looks(info.series)
        columns = min(COLUMNS, len(looks))
        figure = Figure(figsize=(1.0 + 2.5 * columns, 2.3 * math.ceil(len(looks) / columns)), layout="constrained")
        grid = figure.subplots(math.ceil(len(looks) / columns), columns, squeeze=False, sharex=True, sharey=True)
        every = [curve for curves in info.series.values() for curve in curves]
        filled = np.flatnonzero(np.sum([curve.shares for curve in every], axis=0))
        edges = np.array(DENSITY_EDGES)[filled[0] : filled[-1] + 2] if len(filled) else np.array(DENSITY_EDGES[-3:])
        for axes in grid.flat[len(looks) :]:
            axes.set_visible(False)
        for axes, (architecture, look) in zip(grid.flat, looks.items(), strict=False):
            curves = info.series[architecture]
            for place, curve in enumerate(curves, start=1):
                heights = np.array(curve.shares)[filled[0] : filled[-1] + 1] if len(filled) else np.zeros(2)
                drawn: dict[str, Any] = {"color": look.color, "alpha": 0.3 + 0.7 * place / len(curves), "linewidth": 1.2}
                axes.stairs(heights, edges, baseline=None, label=f"L0 {curve.l0:.0f}", **drawn)
            never = [curve.never for curve in curves]
            axes.set_title(look.label, loc="left", fontweight="bold")
            axes.text(0.03, 0.95, _never_text(never), transform=axes.transAxes, va="top", fontsize=8, color=style.FAINT)
            axes.grid(True)
        first = grid[0][0]
        style.log_axis(first.xaxis, [float(edges[0]), float(edges[-1])])
        first.xaxis.set_major_locator(LogLocator(base=10))
        first.xaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
        first.set_ylim(0, 1.25 * max(max(curve.shares) for curve in every) or 1)
        first.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
        figure.supxlabel("Share of tokens on which a latent is active", fontsize=style.FONT_SIZE)
        figure.supylabel("Share of latents", fontsize=style.FONT_SIZE)
        return figure


def _densities(l0: float, run_ids: tuple[str, ...], histories: Mapping[str, Path]) -> Densities | None:
    """None where no run has them: results of earlier versions."""
    counts = [own for run_id in run_ids if (own := _counts(histories[run_id].parent))]
    if not counts:
        return None
    shares = np.mean([np.array(own) / sum(own) for own in counts], axis=0)
    return Densities(float(l0), tuple(shares[1:].tolist()), float(shares[0]))


def _counts(directory: Path) -> list[int] | None:
    try:
        return RunRecord.read(RunPaths(directory).record).latent_densities
    except (ConfigError, OSError):  # it has changed since the table was read
        return None


def _never_text(never: list[float]) -> str:
    low, high = f"{100 * min(never):.0f}", f"{100 * max(never):.0f}"
    return f"never active: {low if low == high else f'{low} to {high}'} %"
