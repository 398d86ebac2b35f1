"""Which L0 is right? Two proxies that need no labels beside the front: the same SAEs in three panels."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.plots import PLOTS, Plot, style
from analysis.plots.frontier import FrontierInfo, FrontierPlot, L0Fvu, draw_fronts
from analysis.words import label, listed

ENOUGH_POINTS = 3
"""Points of a front whose smallest value says something."""


class L0Cosine(FrontierPlot):
    """Sparsity against how alike decoder rows are, on the fronts by reconstruction."""

    y = "decoder_cosine"
    front_by = "fvu"


class L0Projection(FrontierPlot):
    """Sparsity against the decoder projection, on the fronts by reconstruction."""

    y = "decoder_projection"
    front_by = "fvu"


@dataclass(frozen=True, slots=True)
class RightL0Info:
    """All panels have the same settings, with the fronts by reconstruction."""

    reconstruction: FrontierInfo
    proxies: dict[str, FrontierInfo]
    """Column -> its panel."""
    smallest: dict[str, dict[str, tuple[float, float, bool]]]
    """Column -> architecture -> L0 and value of the smallest on its front, and whether that is an end of it."""


@PLOTS.register("right_l0")
class RightL0(Plot):
    """Is the L0 that one would choose by the front the right one?"""

    section = "Frontiers"
    title = "Which L0 is right? Two proxies beside the front"
    caption = (
        "The same SAEs three times. Left: lower left is better, which does not say where L0 is right. Middle: how alike decoder rows are. "
        "Right: how strongly half of all latents answer to any token. At too low an L0 latents mix features that occur together, at too "
        "high a one any features, and both should raise these: the smallest value, circled, is a hint at the right L0 (arXiv:2508.16560), "
        "worth following where both agree."
    )
    order = 15

    @classmethod
    def info(cls, table: pd.DataFrame, histories: Mapping[str, Path]) -> RightL0Info | None:
        """Settings that have FVU and both proxies."""
        plots = (L0Cosine, L0Projection)
        there = all(plot.y in table for plot in plots)
        known = table[(table["fvu"] > 0) & table[[plot.y for plot in plots]].notna().all(axis=1)] if there else table[:0]
        reconstruction = L0Fvu.info(known, histories)
        proxies = {plot.y: info for plot in plots if (info := plot.info(known, histories))}
        if reconstruction is None or len(proxies) < len(plots):
            return None
        return RightL0Info(reconstruction, proxies, {column: _smallest(info) for column, info in proxies.items()})

    @classmethod
    def note(cls, info: RightL0Info) -> str:
        """Where decoder rows are least alike."""
        found = info.smallest[L0Cosine.y]
        inside = [f"L0 {l0:.3g} for {label(name)}" for name, (l0, _, at_end) in found.items() if not at_end]
        ends = [label(name) for name, (_, _, at_end) in found.items() if at_end]
        texts = [L0Cosine.note(info.proxies[L0Cosine.y])]
        if inside:
            texts.append(f"Rows are least alike at {listed(inside)}.")
        if ends:
            texts.append(f"They are least alike at an end of the front for {listed(ends)}: no right L0 shows there.")
        return " ".join(text for text in texts if text)

    @classmethod
    def figure(cls, info: RightL0Info) -> Figure:
        """Draw reconstruction left and both proxies right of it, over the same L0."""
        figure = Figure(figsize=(11.0, 4.2), layout="constrained")
        grid = figure.subplots(1, 3)
        titles = ("Reconstruction", "Cosine of decoder rows", "Decoder projection")
        for title, axes, panel in zip(titles, grid, (info.reconstruction, *info.proxies.values()), strict=True):
            axes.set_title(title, loc="left", fontweight="bold")
            draw_fronts(axes, panel)
        for axes, (column, panel) in zip(grid[1:], info.proxies.items(), strict=True):
            looks = style.looks(panel.series)
            for architecture, (l0, value, _) in info.smallest[column].items():
                axes.scatter([l0], [value], s=130, facecolors="none", edgecolors=looks[architecture].color, linewidths=1.6, zorder=5)
            ys = np.array([point.y for points in panel.series.values() for point in points])
            span = float(np.ptp(ys)) or abs(float(ys[0])) or 1.0
            axes.set_ylim(float(ys.min()) - 0.12 * span, float(ys.max()) + 0.08 * span)
        handles, labels = grid[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 6))
        return figure


def _smallest(info: FrontierInfo) -> dict[str, tuple[float, float, bool]]:
    found = {}
    for architecture, points in info.series.items():
        front = [point for point in points if point.on_front]
        if len(front) >= ENOUGH_POINTS:
            best = min(front, key=lambda point: point.y)
            found[architecture] = (best.x, best.y, best in (front[0], front[-1]))
    return found
