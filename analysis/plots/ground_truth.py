"""Ground truth beside reconstruction: the same SAEs in two panels, for activations whose features are known."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from analysis.plots import PLOTS, Plot
from analysis.plots.frontier import FrontierInfo, FrontierPlot, L0Fvu, draw_fronts


class L0Mcc(FrontierPlot):
    """Sparsity against recovery of the features, on the fronts by reconstruction."""

    y = "mcc"
    front_by = "fvu"


@dataclass(frozen=True, slots=True)
class GroundTruthInfo:
    """Both panels have the same settings, with the fronts by reconstruction."""

    reconstruction: FrontierInfo
    recovery: FrontierInfo


@PLOTS.register("ground_truth")
class GroundTruth(Plot):
    """Does what reconstructs best find the features, too?"""

    section = "Frontiers"
    title = "Ground truth beside reconstruction"
    caption = (
        "The same SAEs twice. Left: lower left is better. Right: how well latents match the features that the activations were made of; "
        "upper is better, 1 is all of them. Lines: each architecture's Pareto front by reconstruction, on both sides, so that the right "
        "shows what is found by those who choose by reconstruction."
    )
    order = 14

    @classmethod
    def info(cls, table: pd.DataFrame, histories: Mapping[str, Path]) -> GroundTruthInfo | None:
        """Settings with both metrics; those with FVU 0 have no place on the axis and are left out."""
        known = table[table["mcc"].notna() & (table["fvu"] > 0)] if "mcc" in table else table[:0]
        reconstruction, recovery = L0Fvu.info(known, histories), L0Mcc.info(known, histories)
        return GroundTruthInfo(reconstruction, recovery) if reconstruction and recovery else None

    @classmethod
    def note(cls, info: GroundTruthInfo) -> str:
        """What is not drawn or dotted."""
        return L0Mcc.note(info.recovery)

    @classmethod
    def figure(cls, info: GroundTruthInfo) -> Figure:
        """Draw reconstruction left and ground truth right, over the same L0."""
        figure = Figure(figsize=(8.6, 4.4), layout="constrained")
        left, right = figure.subplots(1, 2, gridspec_kw={"wspace": 0.06})
        for title, axes, panel in (("Reconstruction", left, info.reconstruction), ("Ground truth", right, info.recovery)):
            axes.set_title(title, loc="left", fontweight="bold")
            draw_fronts(axes, panel)
        right.set_ylim(top=1)
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3)
        return figure
