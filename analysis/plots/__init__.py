"""Plots: `info` turns the table into plain data, which tests check; `figure` only draws it.

A new plot is a class in a file of this package or of a plugin, registered in PLOTS. The report lists it under its section.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
from matplotlib.figure import Figure

from sae_core.registry import Registry


class Plot(ABC):
    """One figure of the report."""

    section: ClassVar[str]
    """Heading it stands under."""
    title: ClassVar[str]
    caption: ClassVar[str]
    """What is drawn and how to read it, in a sentence or two."""
    order: ClassVar[int]
    """Place in the report: sections and plots are sorted by it."""
    explored: ClassVar[bool] = False
    """Whether the report's explorer shows it, too: then the page has it only for readers without JavaScript, and for paper."""
    of_all: ClassVar[bool] = False
    """Whether it is drawn once, of the runs of all comparisons together: what differs between widths, tokens or layers."""

    @classmethod
    @abstractmethod
    def info(cls, table: pd.DataFrame, histories: Mapping[str, Path]) -> Any:
        """Everything that is drawn, as a frozen dataclass of plain data; None where the table has nothing to draw.

        Args:
            table: from `load_table`; runs that may be compared with each other, or all of them for a plot `of_all`.
            histories: run id -> `history.jsonl`, for plots of training.
        """

    @classmethod
    def note(cls, info: Any) -> str:
        """What to add to the caption about this figure, as a sentence; empty for nothing."""
        return ""

    @classmethod
    @abstractmethod
    def figure(cls, info: Any) -> Figure:
        """Draw it."""


PLOTS: Registry[type[Plot]] = Registry("plot", "analysis.plots")
"""Plot name -> Plot subclass."""
