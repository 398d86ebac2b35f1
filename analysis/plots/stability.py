"""Seed stability over L0: how alike the latents of two seeds are, how many recur, and what those explain."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from analysis.plots import PLOTS, Plot, style
from analysis.stability import RECURS, SPECS
from analysis.table import finished, over_seeds
from analysis.words import listed

HEADINGS = {"pw_mcc": "PW-MCC", "recurring_latents": "Latents that recur", "recurring_explained": "What they explain"}
"""Column -> what stands over its panel."""


@dataclass(frozen=True, slots=True)
class StabilityInfo:
    """Means over the seeds of each setting, by L0."""

    panels: dict[str, dict[str, tuple[tuple[float, float], ...]]]
    """Column -> architecture -> (L0, value)."""
    n_seeds: tuple[int, ...]
    """Numbers of seeds that settings have."""


@PLOTS.register("stability")
class Stability(Plot):
    """Would another seed have learned the same?"""

    section = "Latents"
    title = "Seed stability"
    caption = (
        "Latents of two seeds are matched one to one by their decoder rows; only those that are alive count. Left: mean |cos| of matched "
        f"latents. Middle: share of latents whose match is at {RECURS:g} or more, so that the other seed has learned them too. Right: "
        "share of what all latents explain that these explain."
    )
    order = 42

    @classmethod
    def info(cls, table: pd.DataFrame, histories: Mapping[str, Path]) -> StabilityInfo | None:
        """Settings of which two seeds were compared."""
        columns = [spec.name for spec in SPECS if spec.name in table and table[spec.name].notna().any()]
        if not columns:
            return None
        runs = table[finished(table) & table[columns[0]].notna() & (table["l0"] > 0).fillna(False)]
        settings = over_seeds(runs).sort_values("l0")
        panels = {
            column: {
                str(name): tuple(zip(own["l0"].tolist(), own[column].tolist(), strict=True))
                for name, own in settings.dropna(subset=[column]).groupby("architecture")
            }
            for column in columns
        }
        seeds = tuple(sorted({int(number) for number in settings["n_seeds"]}))
        return StabilityInfo(panels, seeds) if panels[columns[0]] else None

    @classmethod
    def note(cls, info: StabilityInfo) -> str:
        """How many seeds there are."""
        return f"Means over all pairs of {listed(map(str, info.n_seeds))} seeds."

    @classmethod
    def figure(cls, info: StabilityInfo) -> Figure:
        """Draw a panel per column, side by side."""
        figure = Figure(figsize=(1.0 + 2.7 * len(info.panels), 3.6), layout="constrained")
        grid = figure.subplots(1, len(info.panels), squeeze=False)[0]
        shown = style.looks(info.panels[next(iter(info.panels))])
        for axes, (column, series) in zip(grid, info.panels.items(), strict=True):
            axes.grid(True)
            for architecture, look in shown.items():
                points = series.get(architecture, ())
                line = {"marker": look.marker, "markersize": 5, "linewidth": 1.4, "label": look.label, "clip_on": False}
                axes.plot([l0 for l0, _ in points], [value for _, value in points], color=look.color, **line)
            style.l0_axis(axes.xaxis, [l0 for points in series.values() for l0, _ in points])
            axes.set_ylim(0, 1)
            if column != "pw_mcc":
                axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
            axes.set_title(HEADINGS[column], loc="left", fontweight="bold")
            axes.set_xlabel("L0")
        handles, labels = grid[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 3))
        return figure
