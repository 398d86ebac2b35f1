"""How results look wherever they are shown: names, one colour and marker per architecture, numbers, axes.

Colours are those of Okabe and Ito, which stay apart for colour-blind readers, and every architecture has its own marker,
so that no figure depends on colour. Figures are built without pyplot: no global state, no display.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.axis import Axis
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from sae_core.records import MetricSpec

INK = "#1a1a1a"
"""Text and axes. The HTML report turns it into the reader's own text colour."""
FAINT = "#8a8a8a"
GRID = "#d9d9d9"

MOST_SPANNED = 1e12
"""Factor that a logarithmic axis spans at most: a value below is none that a run can be compared by."""

TERMINAL_WIDTH = 100
"""Columns that text for the terminal takes at most."""

LONGEST_AXIS_LABEL = 45
"""Characters that fit beside the axis of the lowest figure."""

FONT_SIZE = 9.5
RC: dict[Any, Any] = {
    "font.family": ["DejaVu Sans"],
    "font.size": FONT_SIZE,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.linewidth": 0.8,
    "axes.titlesize": FONT_SIZE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "svg.hashsalt": "sae-sweep",
}
"""Settings that hold while a figure is built and while it is saved."""


@dataclass(frozen=True, slots=True)
class Look:
    """How an architecture is drawn in every figure."""

    label: str
    color: str
    marker: str


_KNOWN = {
    "standard": Look("Standard (L1)", INK, "o"),
    "gated": Look("Gated", "#e69f00", "s"),
    "topk": Look("TopK", "#0072b2", "^"),
    "batchtopk": Look("BatchTopK", "#d55e00", "D"),
    "jumprelu": Look("JumpReLU", "#cc79a7", "v"),
    "matryoshka_batchtopk": Look("Matryoshka BatchTopK", "#009e73", "P"),
}
_SPARE = (("#56b4e9", "X"), ("#b8a600", "h"), ("#7a5195", "<"), ("#8c564b", ">"), ("#5c6b73", "*"), ("#a6761d", "p"))


def looks(architectures: Iterable[str]) -> dict[str, Look]:
    """The look of each architecture, in reading order: known ones as always, further ones by name with the spare looks."""
    names = set(architectures)
    known = {name: look for name, look in _KNOWN.items() if name in names}
    further = sorted(names - set(_KNOWN))
    return known | {name: Look(label(name), *_SPARE[i % len(_SPARE)]) for i, name in enumerate(further)}


def by_architecture(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The table's rows per architecture, in reading order."""
    groups = {str(name): rows for name, rows in table.groupby("architecture")}
    return {name: groups[name] for name in looks(groups)}


def label(architecture: str) -> str:
    """A reader's name for an architecture."""
    known = _KNOWN.get(architecture)
    return known.label if known else architecture.replace("_", " ").capitalize()


def setting(row: "Mapping[Any, Any] | pd.Series[Any]", *, with_lr: bool = False) -> str:
    """A reader's name for what a run was asked for: "k=16", "l1_coefficient=0.5 (bandwidth=0.1)" or "target L0 32".

    Args:
        row: of the table, or a mean over seeds.
        with_lr: name the learning rate too, where settings differ in it.
    """
    if pd.notna(row["target_l0"]):
        asked = f"target L0 {row['target_l0']:g}"
    elif pd.notna(row["sparsity_parameter"]) and pd.notna(row["sparsity_value"]):
        asked = f"{row['sparsity_parameter']}={row['sparsity_value']:g}"
    else:
        asked = number(None)  # the run left no record, and nothing says what it was asked for
    further = ", ".join(part for part in (f"lr={row['lr']:.3g}" if with_lr else "", row["variant"]) if part)
    return f"{asked} ({further})" if further else asked


def axis_label(spec: MetricSpec | None, name: str) -> str:
    """A metric's label with its unit, in two lines where one is too long; the column's name where no record described it."""
    if spec is None:
        return name
    text = f"{spec.label} ({spec.unit})" if spec.unit else spec.label
    return text if len(text) <= LONGEST_AXIS_LABEL else text.replace(" (", "\n(", 1)


def number(value: float | None) -> str:
    """A number for a table: four digits, no exponent for ordinary sizes; an en dash for a missing one."""
    if value is None or not math.isfinite(value):
        return "–"
    size = abs(value)
    if size and (size < 1e-4 or size >= 1e6):
        return f"{value:.3g}"
    return f"{value:.{4 if size < 1 else max(3 - int(math.log10(size)), 0)}f}"


def metric(name: str, value: float | None) -> str:
    """A metric's value for a reader: L0 with one decimal, its error and shares of the dictionary in percent, the rest with four digits."""
    if value is None or not math.isfinite(value):
        return number(None)
    if name == "l0":
        return f"{value:.1f}"
    if name == "l0_error":
        return f"{100 * value:+.1f} %"
    return f"{100 * value:.1f} %" if name == "dead_fraction" else number(value)


def count(value: float) -> str:
    """A count in a reader's words: 1000000 -> "1 M", 100352 -> "100 k"."""
    for size, unit in ((1e9, " B"), (1e6, " M"), (1e3, " k")):
        if value >= size * 0.9995:
            return f"{value / size:.3g}{unit}"
    return f"{value:.0f}"


def duration(seconds: float) -> str:
    """Seconds as "12.3 s", "4 min 10 s" or "3 h 20 min"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{int(seconds // 60)} min {int(seconds % 60)} s" if seconds < 3600 else f"{minutes // 60} h {minutes % 60} min"


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
