"""The figure of growth.py: a panel for each thing that costs grow with, on logarithmic axes with lines of slope 1."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from analysis.plots import style


@dataclass(frozen=True, slots=True)
class Point:
    """What one size costs, in seconds."""

    panel: str
    program: str
    x: int
    median: float
    low: float
    high: float
    measured: bool
    """Not computed from smaller sizes."""


@dataclass(frozen=True, slots=True)
class Panel:
    """How a panel is labelled."""

    title: str
    x_label: str
    y_label: str
    scale: float
    """Seconds -> the unit of y."""
    slope: int = 1
    """Of the guide: what the cost would do if it were proportional, or shared out without loss."""


_COLUMNS = 3
_DASHED, _DOTTED = (0, (4, 2)), (0, (1, 2))
_STEP, _GROUP = "one step (ms)", "all SAEs, one batch (ms)"
PANELS = {
    "saes": Panel("SAEs on one stream", "number of SAEs", _GROUP, 1e3),
    "d_sae": Panel("Dictionary size", "d_sae", _STEP, 1e3),
    "k": Panel("Active latents", "k", _STEP, 1e3),
    "d_in": Panel("Width of the activations", "d_in", _STEP, 1e3),
    "tokens": Panel("Training tokens", "tokens", "training of one SAE (s)", 1.0),
    "workers": Panel("Workers", "processes of one core", "16 SAEs, 40 batches (s)", 1.0, slope=-1),
}
_PROGRAMS = {"ours": ("SAE Sweep", "#0072b2", "o"), "saelens": ("SAELens", "#d55e00", "s")}


def draw(points: Sequence[Point], directory: Path) -> list[Path]:
    """Write growth.png and growth.svg."""
    panels = [name for name in PANELS if any(point.panel == name for point in points)]
    with mpl.rc_context(style.RC):
        n_rows = math.ceil(len(panels) / _COLUMNS)
        figure = Figure(figsize=(9.6, 0.5 + 2.6 * n_rows), layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.1))
        for axes, name in zip_longest(figure.subplots(n_rows, _COLUMNS, squeeze=False).flat, panels):
            if name is None:
                axes.set_axis_off()
            else:
                _draw_panel(axes, PANELS[name], [point for point in points if point.panel == name])
        figure.legend(handles=_legend(points), loc="outside lower center", ncols=4)
        paths = [directory / "growth.png", directory / "growth.svg"]
        figure.savefig(paths[0], dpi=160)
        figure.savefig(paths[1], metadata={"Date": None})
    return paths


def last_growth(points: Sequence[Point]) -> float:
    """Exponent of cost against size between the two largest sizes: 1 is proportional."""
    before, last = sorted(points, key=lambda point: point.x)[-2:]
    return math.log(last.median / before.median) / math.log(last.x / before.x)


def _draw_panel(axes: Axes, panel: Panel, points: Sequence[Point]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.grid(True)
    for program, (_, color, marker) in _PROGRAMS.items():
        mine = sorted((point for point in points if point.program == program), key=lambda point: point.x)
        if mine:
            _draw_line(axes, mine, panel.scale, color, marker)
    _frame(axes, panel, points)
    _guide(axes, panel, [point for point in points if point.program == "ours"])


def _draw_line(axes: Axes, points: Sequence[Point], scale: float, color: str, marker: str) -> None:
    measured = [point for point in points if point.measured]
    computed = [point for point in points if not point.measured]
    y = [scale * point.median for point in measured]
    ranges = [[scale * (point.median - point.low) for point in measured], [scale * (point.high - point.median) for point in measured]]
    axes.errorbar(
        [point.x for point in measured], y, yerr=ranges, color=color, marker=marker, markersize=5, markeredgecolor="white",
        markeredgewidth=0.6, linewidth=1.6, elinewidth=0.9, zorder=3,
    )  # fmt: skip
    if computed:
        further = [*measured[-1:], *computed]
        axes.plot([p.x for p in further], [scale * p.median for p in further], color=color, linewidth=1.2, linestyle=_DASHED, zorder=2)
        x, y = [point.x for point in computed], [scale * point.median for point in computed]
        axes.scatter(x, y, s=24, color="white", edgecolor=color, marker=marker, zorder=3)


def _frame(axes: Axes, panel: Panel, points: Sequence[Point]) -> None:
    """Titles, limits and ticks."""
    axes.set_title(panel.title, loc="left", fontweight="bold")
    axes.set_xlabel(panel.x_label)
    axes.set_ylabel(panel.y_label)
    sizes = sorted({point.x for point in points})
    low, high = (panel.scale * end for end in (min(point.low for point in points), max(point.high for point in points)))
    axes.set_xlim(sizes[0] / 1.25, sizes[-1] * 1.25)
    axes.set_ylim(low / 1.5, high * 1.5)
    axes.xaxis.set_major_locator(FixedLocator(sizes))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _size(round(value))))
    decades = range(math.floor(math.log10(low / 1.5)), math.ceil(math.log10(high * 1.5)) + 1)
    digits = (1,) if high / low > 200 else (1, 3) if high / low > 20 else (1, 2, 5)
    axes.yaxis.set_major_locator(FixedLocator([digit * 10.0**decade for decade in decades for digit in digits]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_locator(NullLocator())


def _guide(axes: Axes, panel: Panel, points: Sequence[Point]) -> None:
    """A line of the panel's slope through our largest size that was measured, and the slope that was found there."""
    measured = [point for point in points if point.measured]
    if not measured:
        return
    last = max(measured, key=lambda point: point.x)
    ends = axes.get_xlim()
    y = [panel.scale * last.median * (x / last.x) ** panel.slope for x in ends]
    axes.plot(ends, y, color=style.FAINT, linewidth=0.9, linestyle=_DOTTED, zorder=1, scalex=False, scaley=False)
    if len(measured) > 1:
        corner = (0.97, 0.05, "right", "bottom") if panel.slope > 0 else (0.03, 0.05, "left", "bottom")
        text = f"slope at the end {last_growth(measured):.2f}".replace("-", "−")
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
        axes.text(*corner[:2], text, transform=axes.transAxes, ha=corner[2], va=corner[3], fontsize=8, color=style.INK, bbox=box)


def _legend(points: Sequence[Point]) -> list[Line2D]:
    present = {point.program for point in points}
    found = [
        Line2D([], [], color=color, marker=marker, markersize=5, markeredgecolor="white", label=label)
        for program, (label, color, marker) in _PROGRAMS.items()
        if program in present
    ]
    if not all(point.measured for point in points):
        found.append(Line2D([], [], color=style.INK, linestyle=_DASHED, label="extrapolated"))
    return [
        *found,
        Line2D([], [], color=style.FAINT, linewidth=0.9, linestyle=_DOTTED, label="proportional, or shared without loss"),
    ]


def _size(value: int) -> str:
    """1024 -> "1k", 1048576 -> "1M"; others as they are."""
    for unit, name in ((2**20, "M"), (2**10, "k")):
        if value >= unit and value % unit == 0:
            return f"{value // unit}{name}"
    return str(value)
