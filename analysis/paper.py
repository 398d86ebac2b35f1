"""Figures and tables for papers: every plot at the width of a column, with fonts embedded, and LaTeX tables with intervals.

Choices worth knowing:
- A plot with panels side by side spans both columns, twice the width and a gutter; a single one keeps to its column.
- Lines that end near the right edge get their names there, in their color, where those do not crowd; else a legend stands below.
- Fonts are embedded as TrueType (`pdf.fonttype` 42), which journals ask for; the same results give the same file, byte for byte.
"""

import logging
import textwrap
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure

from analysis import latex, stability
from analysis.plots import PLOTS, style
from analysis.plots.sizes import Layout, SizesPlot
from analysis.results import read_sweeps
from analysis.table import by_comparison, finished, table_of
from analysis.words import titles
from sae_core import plugins
from sae_core.errors import ConfigError, UnknownNameError, reason_of
from sae_core.files import write_text, written_whole

log = logging.getLogger(__name__)

Style = Literal["paper", "report"]
Format = Literal["pdf", "svg", "png", "eps"]

WIDTH = 3.25
"""Inches of a column of two."""
GUTTER = 0.25
NARROWEST, WIDEST = 2.0, 20.0
FONT_SIZE = 8.0
RC: dict[Any, Any] = {
    **style.RC,
    "font.size": FONT_SIZE,
    "axes.titlesize": FONT_SIZE,
    "axes.linewidth": 0.6,
    "grid.linewidth": 0.4,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.fontsize": FONT_SIZE - 0.5,
    "legend.handlelength": 1.6,
    "legend.columnspacing": 1.0,
    "pdf.fonttype": 42,
    "ps.fonttype": 42,
    "savefig.pad_inches": 0.02,
}
_UPRIGHT = 90
_SHORTEST_LINE = 10
"""Characters that a line of a label has room for at least."""
_SHRUNK = 0.75
"""Of markers and lines, to go with the smaller font."""
_AT_EDGE = 0.85
"""Part of the axis that a line must span to be named at its end."""
_SPACING = 1.2
"""Lines of text between names, at least."""


def write_figures(
    results: "Path | Sequence[Path]",
    out: Path | None = None,
    *,
    kind: Style = "paper",
    width: float = WIDTH,
    form: Format = "pdf",
    layout: Layout = "architectures",
) -> list[Path]:
    """Write every plot that some sweeps have something for, and a LaTeX table of the values at matched L0 of each comparison.

    Args:
        out: directory of the files; by default `figures/` of the first sweep.
        kind: "paper", or "report" for the figures as the report has them.
        width: inches of a column; of the paper's style alone.
        layout: how several sizes share a figure: `SizesPlot.info`.

    Returns:
        The files, figures first.

    Raises:
        ConfigError: a directory is not a sweep's, `out` cannot be written to, or an option has another value.
    """
    for name, value, known in (("--style", kind, Style), ("--format", form, Format), ("--layout", layout, Layout)):
        if value not in get_args(known):
            raise UnknownNameError.of(f"`{name}`", value, get_args(known))
    if not NARROWEST <= width <= WIDEST:
        raise ConfigError(f"`--width` must be {NARROWEST:g} to {WIDEST:g} inches, but got {width:g}. A column of two takes {WIDTH:g}.")
    sweeps = read_sweeps(results)
    try:
        plugins.load(name for sweep in sweeps for name in sweep.plugins)
    except ConfigError as error:  # the records say all the same what came of the runs
        log.warning("%s Its plots are left out.", error)
    stability.measure(sweeps)
    out, table = sweeps[0].paths.directory / "figures" if out is None else Path(out), table_of(sweeps)
    histories = {run.run_id: run.paths.history for sweep in sweeps for run in sweep.runs}
    parts = by_comparison(table[finished(table)])
    names, figures, tables = titles(table), [], []
    draw = partial(_draw, histories=histories, out=out, kind=kind, width=width, form=form, layout=layout)
    try:
        with style.shown_together(table["architecture"].dropna()):
            for number, (comparison, own) in enumerate(parts.items(), start=1):
                prefix = f"{number}-" if len(parts) > 1 else ""
                figures += draw(table[table["comparison_hash"] == comparison], prefix, of_all=False)
                for metric, text in latex.matched_tables(own, names[comparison].full).items():
                    write_text(out / f"{prefix}{metric}.tex", text)
                    tables.append(out / f"{prefix}{metric}.tex")
            figures += draw(table, "", of_all=True)
    except OSError as error:
        raise ConfigError(
            f"figures must be written to a directory that can be written to, but got {str(out)!r}: {reason_of(error)}. Choose another one "
            "with `--out DIR`."
        ) from error
    return [*figures, *tables]


def _draw(
    table: pd.DataFrame,
    prefix: str,
    *,
    of_all: bool,
    histories: Mapping[str, Path],
    out: Path,
    kind: Style,
    width: float,
    form: Format,
    layout: Layout,
) -> list[Path]:
    out.mkdir(parents=True, exist_ok=True)
    files = []
    for name, plot in sorted(PLOTS.items(), key=lambda item: item[1].order):
        if plot.of_all != of_all:
            continue
        options = {"layout": layout} if issubclass(plot, SizesPlot) else {}
        info = plot.info(table, histories, **options)
        if info is None:
            continue
        file = out / f"{prefix}{name}.{form}"
        with matplotlib.rc_context({**(RC if kind == "paper" else style.RC), "svg.hashsalt": prefix + name}):
            figure = plot.figure(info)
            if kind == "paper":
                for_paper(figure, width)
            with written_whole(file) as temporary:
                figure.savefig(temporary, format=form, dpi=300, metadata=_NO_DATE[form])
        files.append(file)
    return files


_NO_DATE: dict[Format, dict[str, Any]] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}, "png": {"Software": None}, "eps": {}}


def for_paper(figure: Figure, width: float = WIDTH) -> None:
    """Give a figure of any plot the width of a column, or of two where it has panels side by side, and names in place of a legend.

    Args:
        width: inches of a column.
    """
    panels = [axes for axes in figure.axes if axes.get_visible()]
    is_wide = len({round(axes.get_position().x0, 2) for axes in panels}) > 1
    size = figure.get_size_inches()
    legends = list(figure.legends)
    handles = [handle for legend in legends for handle in legend.legend_handles if handle is not None]
    labels = [text.get_text() for legend in legends for text in legend.get_texts()]
    for legend in legends:
        legend.remove()
    for axes in panels:
        _shrink(axes)
    wide = 2 * width + GUTTER if is_wide else width
    # What was beside the plot stands below or in it now.
    height = wide * (size[1] / size[0] if is_wide else 0.75)
    figure.set_size_inches(wide, height)
    _wrap_labels(figure, panels)
    if labels and not (len(panels) == 1 and _name_lines(figure, panels[0], labels)):
        longest = max(map(len, labels))
        columns = max(1, min(len(labels), int(wide / (0.35 + 0.062 * longest))))
        figure.set_size_inches(wide, height + 0.16 * -(-len(labels) // columns))
        figure.legend(handles, labels, loc="outside lower center", ncols=columns)


def _wrap_labels(figure: Figure, panels: Sequence[Axes]) -> None:
    """Break labels that are longer than their axis, or a figure's than the figure, into lines that are not."""
    figure.draw_without_rendering()
    upright = [(axes.yaxis.label, axes.get_window_extent().height) for axes in panels]
    upright += [(text, figure.bbox.height) for text in figure.texts if text.get_rotation() == _UPRIGHT]
    level = [(axes.xaxis.label, axes.get_window_extent().width) for axes in panels]
    sizes = [(text, room, text.get_window_extent().height) for text, room in upright]
    sizes += [(text, room, text.get_window_extent().width) for text, room in level]
    for text, room, size in sizes:
        if size > room:
            most = int(max(map(len, text.get_text().split("\n"))) * room / size)
            lines = text.get_text().replace(" (", "\n(").split("\n")  # the unit goes to its own line
            text.set_text("\n".join(part for line in lines for part in _wrapped(line, max(most, _SHORTEST_LINE))))


def _wrapped(line: str, most: int) -> list[str]:
    """Lines of at most `most` characters, as few as there must be and about equally long."""
    wrap = partial(textwrap.wrap, line, break_long_words=False)
    while most > 1 and len(wrap(width=most - 1)) == len(wrap(width=most)):
        most -= 1
    return wrap(width=most)


def _shrink(axes: Axes) -> None:
    for line in axes.get_lines():
        line.set_markersize(line.get_markersize() * _SHRUNK)
        line.set_linewidth(line.get_linewidth() * _SHRUNK)
    for collection in axes.collections:
        if isinstance(collection, PathCollection):
            collection.set_sizes(np.asarray(collection.get_sizes()) * _SHRUNK**2)


def _name_lines(figure: Figure, axes: Axes, labels: Sequence[str]) -> bool:
    """Write each line's name beside its end, in its color; nothing, and False, where that cannot be read."""
    lines = {str(line.get_label()): line for line in axes.get_lines() if str(line.get_label()) in labels and np.size(line.get_xdata())}
    if set(lines) != set(labels):
        return False
    figure.draw_without_rendering()
    lasts = {name: (np.asarray(line.get_xdata())[-1], np.asarray(line.get_ydata())[-1]) for name, line in lines.items()}
    ends = {name: tuple(axes.transData.transform(last).tolist()) for name, last in lasts.items()}
    box = axes.get_window_extent()
    spacing = _SPACING * FONT_SIZE * figure.dpi / 72
    if any(x < box.x0 + _AT_EDGE * box.width for x, _ in ends.values()) or len(ends) * spacing > box.height:
        return False
    places = _apart({name: y for name, (_, y) in ends.items()}, spacing, box.y0 + spacing / 2, box.y1)
    if max(abs(places[name] - y) for name, (_, y) in ends.items()) > 2 * spacing:
        return False
    right = max(x for x, _ in ends.values())
    for name, line in lines.items():
        x, y = (72 / figure.dpi * shift for shift in (right - ends[name][0], places[name] - ends[name][1]))
        place: dict[str, Any] = {"textcoords": "offset points", "xytext": (x + 5, y), "annotation_clip": False, "va": "center"}
        axes.annotate(name, lasts[name], color=line.get_color(), fontsize=FONT_SIZE - 0.5, **place)
    return True


def _apart(places: Mapping[str, float], spacing: float, low: float, high: float) -> dict[str, float]:
    """Positions moved as little as a pass up and a pass down need, so that neighbours are `spacing` apart."""
    names = sorted(places, key=places.__getitem__)
    moved = [places[name] for name in names]
    for index in range(1, len(moved)):
        moved[index] = max(moved[index], moved[index - 1] + spacing)
    over = max(0.0, moved[-1] - high)
    moved[-1] -= over
    for index in range(len(moved) - 2, -1, -1):
        moved[index] = min(moved[index], moved[index + 1] - spacing)
    # Half of what was pushed up goes down again, where there is room.
    shift = min(sum(place - places[name] for place, name in zip(moved, names, strict=True)) / len(moved), max(moved[0] - low, 0.0))
    shift = max(shift, min(moved[-1] - high, 0.0))  # and the other way round, never above the top
    return {name: place - shift for name, place in zip(names, moved, strict=True)}
