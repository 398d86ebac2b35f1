"""How plots look: one color and marker per architecture, axes.

Colors are those of Okabe and Ito, which stay apart for color-blind readers, and every architecture has its own marker, so that no figure
depends on color. Figures are built without pyplot: no global state, no display.
"""

import itertools
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from matplotlib.axis import Axis
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from analysis.words import in_order, label
from sae_core.records import MetricSpec

INK = "#1a1a1a"
"""Text and axes. The HTML report turns it into the reader's own text colour."""
FAINT = "#8a8a8a"
GRID = "#d9d9d9"

MOST_SPANNED = 1e12
"""Factor that a logarithmic axis spans at most: a value below is none that a run can be compared by."""

LONGEST_AXIS_LABEL = 45
"""Characters that fit beside the axis of the lowest figure."""

FONT_SIZE = 9.5
RC: dict[Any, Any] = {
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
    "font.family": ["DejaVu Sans"],
    "font.size": FONT_SIZE,
    "axes.titlesize": FONT_SIZE,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "svg.hashsalt": "sae-sweep",
    "svg.fonttype": "none",  # text stays text: a tenth of the size, and to be searched and edited
}
"""Settings that hold while a figure is built and while it is saved."""


@dataclass(frozen=True, slots=True)
class Look:
    """How an architecture is drawn in every figure."""

    label: str
    color: str
    marker: str


_KNOWN = {
    "standard": (INK, "o"),
    "gated": ("#e69f00", "s"),
    "topk": ("#0072b2", "^"),
    "batchtopk": ("#d55e00", "D"),
    "jumprelu": ("#cc79a7", "v"),
    "matryoshka_batchtopk": ("#009e73", "P"),
    "hierarchical_topk": ("#56b4e9", "X"),
    "p_anneal": ("#b8a600", "h"),
    "matching_pursuit": ("#7a5195", "<"),
    "abstopk": ("#8c564b", ">"),
}
_SPARE = (("#5c6b73", "*"), ("#a6761d", "p"), ("#c51b7d", "d"), ("#66a61e", "H"), ("#3f4fa3", "8"))


_TOGETHER: ContextVar[frozenset[str]] = ContextVar("_TOGETHER", default=frozenset())


@contextmanager
def shown_together(architectures: Iterable[str]) -> Iterator[None]:
    """While it holds, each of these architectures has the same look in every figure, whichever others the figure has."""
    token = _TOGETHER.set(frozenset(architectures))
    try:
        yield
    finally:
        _TOGETHER.reset(token)


def looks(architectures: Iterable[str]) -> dict[str, Look]:
    """The look of each architecture, in reading order: ours as always, further ones by name with the spare looks."""
    drawn = set(architectures)
    spare = itertools.cycle(_SPARE)
    every = {name: Look(label(name), *(_KNOWN.get(name) or next(spare))) for name in in_order(drawn | _TOGETHER.get())}
    return {name: look for name, look in every.items() if name in drawn}


def axis_label(spec: MetricSpec | None, name: str) -> str:
    """A metric's label with its unit, in two lines where one is too long; the column's name where no record described it."""
    if spec is None:
        return name
    text = f"{spec.label} ({spec.unit})" if spec.unit else spec.label
    return text if len(text) <= LONGEST_AXIS_LABEL else text.replace(" (", "\n(", 1)


def l0_axis(axis: Axis, values: Iterable[float]) -> None:
    """Make an axis logarithmic with ticks at doublings (8, 16, 32, ...), wide enough for `values`."""
    drawn = list(values)
    low, high = max(min(drawn), max(drawn) / MOST_SPANNED) / 1.15, max(drawn) * 1.15
    first, last = math.ceil(math.log2(low)), math.floor(math.log2(high))
    if last <= first:  # fewer than two doublings inside: widen to those around
        first, last = math.floor(math.log2(low)), math.ceil(math.log2(high))
        low, high = 2.0**first, 2.0**last
    _log_scale(axis, 2, low, high)
    stride = math.ceil((last - first + 1) / 10)
    axis.set_major_locator(FixedLocator([2.0**power for power in range(first, last + 1, stride)]))


def log_axis(axis: Axis, values: Iterable[float]) -> None:
    """Make an axis logarithmic with plain numbers at 1, 2 and 5 of each decade, wide enough for `values`."""
    drawn = list(values)
    low, high = max(min(drawn), max(drawn) / MOST_SPANNED), max(drawn)
    margin = max((high / low) ** 0.06, 1.05)
    _log_scale(axis, 10, low / margin, high * margin)
    # Less than half a decade may hold no 1, 2 or 5 at all.
    axis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)) if high / low > 4 else MaxNLocator(5))


def _log_scale(axis: Axis, base: int, low: float, high: float) -> None:
    if axis is axis.axes.xaxis:
        axis.axes.set_xscale("log", base=base)
        axis.axes.set_xlim(low, high)
    else:
        axis.axes.set_yscale("log", base=base)
        axis.axes.set_ylim(low, high)
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())
