"""Ground truth beside reconstruction: the same SAEs in two panels, for activations whose features are known."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import style
from analysis.pareto import settings_with_front
from analysis.plots import PLOTS, Plot
from analysis.plots.frontier import Point, draw_series, note_of_left_out, series_of
from analysis.table import specs_of
from analysis.thinning import thinned

RECONSTRUCTION, RECOVERY, TRUE_L0 = "fvu", "mcc", "true_l0"


@dataclass(frozen=True, slots=True)
class GroundTruthInfo:
    """Points per architecture, sorted by L0. Both panels have the same settings; `on_front` is by reconstruction in both."""

    reconstruction: dict[str, tuple[Point, ...]]
    recovery: dict[str, tuple[Point, ...]]
    labels: tuple[str, str]
    """Of the y axes."""
    true_l0: float | None
    """Features active per token."""
    n_left_out: int = 0
    """Settings on no front that are left out because there are too many to see."""


@PLOTS.register("ground_truth")
class GroundTruth(Plot):
    """Does what reconstructs best find the features, too?"""

    section = "Frontiers"
    title = "Ground truth beside reconstruction"
    caption = (
        "The same SAEs twice. Left: lower left is better. Right: how well latents match the features that the activations were made of; "
        "upper is better, 1 is all of them. Lines: each architecture's Pareto front by reconstruction, on both sides, so that the right "
        "shows what is found by those who choose by reconstruction. Dotted: how many features are active on a token, on average."
    )
    order = 14

    @classmethod
    def info(cls, table: pd.DataFrame, histories: Mapping[str, Path]) -> GroundTruthInfo | None:
        """Settings with both metrics; those with FVU 0 have no place on the axis and are left out."""
        if RECOVERY not in table:
            return None
        known = table[(table["status"] == "finished") & table[RECOVERY].notna()]
        settings = settings_with_front(known, RECONSTRUCTION)
        drawn = settings[settings[RECONSTRUCTION] > 0]
        if drawn.empty:
            return None
        specs = specs_of(table)
        shown = thinned(drawn)
        true_l0 = known[TRUE_L0].mean() if TRUE_L0 in known else None
        return GroundTruthInfo(
            reconstruction=series_of(shown, known, RECONSTRUCTION),
            recovery=series_of(shown, known, RECOVERY),
            labels=(style.axis_label(specs.get(RECONSTRUCTION), RECONSTRUCTION), style.axis_label(specs.get(RECOVERY), RECOVERY)),
            true_l0=float(true_l0) if pd.notna(true_l0) else None,
            n_left_out=len(drawn) - len(shown),
        )

    @classmethod
    def note(cls, info: GroundTruthInfo) -> str:
        """How many settings are left out."""
        return note_of_left_out(info.n_left_out)

    @classmethod
    def figure(cls, info: GroundTruthInfo) -> Figure:
        """Draw reconstruction left and ground truth right, over the same L0."""
        figure = Figure(figsize=(8.6, 4.4), layout="constrained")
        left, right = figure.subplots(1, 2, gridspec_kw={"wspace": 0.06})
        panels = (("Reconstruction", left, info.reconstruction), ("Ground truth", right, info.recovery))
        for (title, axes, series), label in zip(panels, info.labels, strict=True):
            axes.set_title(title, loc="left", fontweight="bold")
            axes.set_ylabel(label)
            _panel(axes, series, info.true_l0)
        style.log_axis(left.yaxis, [end for points in info.reconstruction.values() for point in points for end in point.y_range if end > 0])
        right.set_ylim(top=1)
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3)
        return figure


def _panel(axes: Axes, series: Mapping[str, tuple[Point, ...]], true_l0: float | None) -> None:
    axes.grid(True)
    for architecture, look in style.looks(series).items():
        draw_series(axes, series[architecture], look)
    ends = [end for points in series.values() for point in points for end in point.x_range if end > 0]
    style.l0_axis(axes.xaxis, ends)
    low, high = axes.get_xlim()
    if true_l0 is not None and low < true_l0 < high:
        axes.axvline(true_l0, color=style.FAINT, linestyle=":", linewidth=1.2, zorder=1)
        axes.annotate(
            "true L0", (true_l0, 1), xycoords=("data", "axes fraction"), xytext=(4, -2), textcoords="offset points",
            va="top", fontsize=8, color=style.FAINT,
        )  # fmt: skip
    axes.set_xlabel("L0 (active latents per token)")
