"""Dead latents against L0."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from analysis import style
from analysis.pareto import settings_with_front
from analysis.plots import PLOTS, Plot
from analysis.plots.frontier import Point, draw_fronts, note_of_left_out, series_of
from analysis.table import specs_of
from analysis.thinning import thinned


@dataclass(frozen=True, slots=True)
class DeadFractionInfo:
    """Points per architecture, sorted by L0; on the front are those that are on that of L0 against FVU."""

    series: dict[str, tuple[Point, ...]]
    y_label: str
    n_left_out: int = 0
    """Settings on no front that are left out because there are too many to see."""


@PLOTS.register("dead_fraction")
class DeadFraction(Plot):
    """How much of each dictionary is never used."""

    section = "Latents"
    title = "Dead latents"
    caption = (
        "Share of the latents that were never active in the tokens counted. Such latents cost memory and explain nothing. "
        "Lines: the settings on the front of L0 against FVU. Faint: the others."
    )
    order = 20

    @classmethod
    def info(cls, table: pd.DataFrame, histories: Mapping[str, Path]) -> DeadFractionInfo | None:
        """Means over seeds; settings with L0 0 have no place on the axis and are left out."""
        known = table.dropna(subset=["dead_fraction"])
        settings = settings_with_front(known)
        if settings.empty:
            return None
        finished = known[(known["status"] == "finished") & known["fvu"].notna()]
        label = style.axis_label(specs_of(table).get("dead_fraction"), "dead_fraction")
        shown = thinned(settings)
        return DeadFractionInfo(series_of(shown, finished, "dead_fraction"), label, len(settings) - len(shown))

    @classmethod
    def note(cls, info: DeadFractionInfo) -> str:
        """How many settings are left out."""
        return note_of_left_out(info.n_left_out)

    @classmethod
    def figure(cls, info: DeadFractionInfo) -> Figure:
        """Draw the points, with a line through those on the front."""
        figure, axes = draw_fronts(info.series, info.y_label, height=3.6)
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
        return figure
