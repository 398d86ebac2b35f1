"""Dead latents against L0."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from analysis import style
from analysis.plots import PLOTS, Plot
from analysis.table import over_seeds, specs_of


@dataclass(frozen=True, slots=True)
class DeadFractionInfo:
    """Per architecture, (L0, dead fraction) of each setting, sorted by L0, means over seeds."""

    series: dict[str, tuple[tuple[float, float], ...]]
    y_label: str


@PLOTS.register("dead_fraction")
class DeadFraction(Plot):
    """How much of each dictionary is never used."""

    section = "Latents"
    title = "Dead latents"
    caption = "Share of the latents that were never active in the tokens counted. Such latents cost memory and explain nothing."
    order = 20

    @classmethod
    def info(cls, table: pd.DataFrame, histories: Mapping[str, Path]) -> DeadFractionInfo | None:
        """Means over seeds; settings with L0 0 have no place on the axis and are left out."""
        settings = over_seeds(table).dropna(subset=["l0", "dead_fraction"])
        drawn = settings[settings["l0"] > 0].sort_values("l0")
        if drawn.empty:
            return None
        series = {
            str(architecture): tuple(zip(rows["l0"].astype(float), rows["dead_fraction"].astype(float), strict=True))
            for architecture, rows in drawn.groupby("architecture")
        }
        return DeadFractionInfo(series, style.axis_label(specs_of(table).get("dead_fraction"), "dead_fraction"))

    @classmethod
    def figure(cls, info: DeadFractionInfo) -> Figure:
        """Draw one line per architecture."""
        figure = Figure(figsize=(7.4, 3.6), layout="constrained")
        axes = figure.subplots()
        axes.grid(True)
        for architecture, look in style.looks(info.series).items():
            axes.plot(
                *zip(*info.series[architecture], strict=True), color=look.color, marker=look.marker,
                markersize=6, linewidth=1.4, markeredgecolor="white", markeredgewidth=0.6, label=look.label, clip_on=False, zorder=3,
            )  # fmt: skip
        style.l0_axis(axes.xaxis, [x for series in info.series.values() for x, _ in series])
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
        axes.set_xlabel("L0 (active latents per token)")
        axes.set_ylabel(info.y_label)
        figure.legend(loc="outside right upper")
        return figure
