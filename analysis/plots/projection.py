"""Which L0 is right? The decoder projection beside the front: the same SAEs in two panels."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.plots import PLOTS, Plot, style
from analysis.plots.frontier import FrontierInfo, FrontierPlot, L0Fvu, draw_fronts
from analysis.words import label, listed

COLUMN = "decoder_projection"


class L0Projection(FrontierPlot):
    """Sparsity against the decoder projection, on the fronts by reconstruction."""

    y = COLUMN
    front_by = "fvu"


@dataclass(frozen=True, slots=True)
class ProjectionInfo:
    """Both panels have the same settings, with the fronts by reconstruction."""

    reconstruction: FrontierInfo
    projection: FrontierInfo
    smallest: dict[str, tuple[float, float, bool]]
    """Architecture -> L0 and value of the smallest projection on its front, and whether that is an end of it."""


@PLOTS.register("decoder_projection")
class Projection(Plot):
    """Is the L0 that one would choose by the front the right one?"""

    section = "Frontiers"
    title = "Which L0 is right? The decoder projection beside the front"
    caption = (
        "The same SAEs twice. Left: lower left is better, which does not say where L0 is right. Right: how strongly half of all latents "
        "answer to any token. At too low an L0 latents mix features that occur together, at too high a one any features, and both raise "
        "it: the smallest value, circled, is near the right L0 (arXiv:2508.16560)."
    )
    order = 15

    @classmethod
    def info(cls, table: pd.DataFrame, histories: Mapping[str, Path]) -> ProjectionInfo | None:
        """Settings that have both values."""
        known = table[table[COLUMN].notna() & (table["fvu"] > 0)] if COLUMN in table else table[:0]
        reconstruction, projection = L0Fvu.info(known, histories), L0Projection.info(known, histories)
        if not reconstruction or not projection:
            return None
        smallest = {}
        for architecture, points in projection.series.items():
            front = [point for point in points if point.on_front]
            if len(front) > 2:
                best = min(front, key=lambda point: point.y)
                smallest[architecture] = (best.x, best.y, best in (front[0], front[-1]))
        return ProjectionInfo(reconstruction, projection, smallest)

    @classmethod
    def note(cls, info: ProjectionInfo) -> str:
        """Where the minima are."""
        texts = [L0Projection.note(info.projection)]
        inside = [f"L0 {l0:.3g} for {label(name)}" for name, (l0, _, at_end) in info.smallest.items() if not at_end]
        ends = [label(name) for name, (_, _, at_end) in info.smallest.items() if at_end]
        if inside:
            texts.append(f"Smallest at {listed(inside)}.")
        if ends:
            texts.append(f"For {listed(ends)} it is smallest at an end of the front: the right L0 may lie beyond.")
        return " ".join(text for text in texts if text)

    @classmethod
    def figure(cls, info: ProjectionInfo) -> Figure:
        """Draw reconstruction left and projections right, over the same L0."""
        figure = Figure(figsize=(8.6, 4.4), layout="constrained")
        left, right = figure.subplots(1, 2, gridspec_kw={"wspace": 0.06})
        for title, axes, panel in (("Reconstruction", left, info.reconstruction), ("Decoder projection", right, info.projection)):
            axes.set_title(title, loc="left", fontweight="bold")
            draw_fronts(axes, panel)
        looks = style.looks(info.projection.series)
        for architecture, (l0, value, _) in info.smallest.items():
            right.scatter([l0], [value], s=130, facecolors="none", edgecolors=looks[architecture].color, linewidths=1.6, zorder=5)
        ys = np.array([point.y for points in info.projection.series.values() for point in points])
        span = float(np.ptp(ys)) or abs(float(ys[0])) or 1.0
        right.set_ylim(float(ys.min()) - 0.12 * span, float(ys.max()) + 0.08 * span)
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3)
        return figure
