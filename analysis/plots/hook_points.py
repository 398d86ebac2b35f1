"""Reconstruction at each hook point of crosscoders."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.plots import PLOTS, Plot
from analysis.plots.frontier import FrontierInfo, FrontierPlot, draw_fronts

FVU_AT = "fvu_at_"
"""What names of columns with the FVU at a hook point begin with."""
COLUMNS = 3


@dataclass(frozen=True, slots=True)
class HookPointsInfo:
    """A panel per hook point, with the same settings and the fronts by FVU of all hook points."""

    panels: dict[str, FrontierInfo]
    """Hook point -> its panel, in the order of their names, blocks.2 before blocks.10."""


@PLOTS.register("hook_points")
class HookPoints(Plot):
    """Where do crosscoders reconstruct well?"""

    section = "Frontiers"
    title = "Sparsity against reconstruction, at each hook point"
    caption = (
        "The same crosscoders in every panel, with one FVU per hook point; L0 is of all of them together. "
        "Lower left is better. Lines are the fronts by FVU of all hook points."
    )
    order = 20

    @classmethod
    def info(cls, table: pd.DataFrame, histories: Mapping[str, Path]) -> HookPointsInfo | None:
        """The FVU at each hook point that some run has it at."""
        panels = {}
        for column in sorted((str(name) for name in table if str(name).startswith(FVU_AT)), key=_natural):
            plot: type[FrontierPlot] = type("L0FvuAt", (FrontierPlot,), {"y": column, "front_by": "fvu"})
            if info := plot.info(table, histories):
                panels[column.removeprefix(FVU_AT)] = replace(info, y_label="Fraction of variance unexplained")
        return HookPointsInfo(panels) if panels else None

    @classmethod
    def figure(cls, info: HookPointsInfo) -> Figure:
        """Draw a panel per hook point, all on the same axes."""
        n_panels = len(info.panels)
        columns = 2 if n_panels == 4 else min(n_panels, COLUMNS)
        rows = -(-n_panels // columns)
        figure = Figure(figsize=(1.0 + 3.4 * columns, 0.7 + 2.9 * rows), layout="constrained")
        grid = list(np.atleast_1d(figure.subplots(rows, columns, sharex=True, sharey=True)).flat)
        for axes, (hook_point, panel) in zip(grid, info.panels.items(), strict=False):
            draw_fronts(axes, panel)
            axes.set_title(hook_point, loc="left", fontweight="bold")
        for number, axes in enumerate(grid):
            axes.set_visible(number < n_panels)
            is_lowest = number + columns >= n_panels
            axes.tick_params(labelbottom=is_lowest)
            axes.set_xlabel(axes.get_xlabel() if is_lowest else "")
            axes.set_ylabel("" if number % columns else axes.get_ylabel())
        handles, labels = grid[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 6))
        return figure


def _natural(name: str) -> list[str | int]:
    """A key that sorts numbers in names by their size."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
