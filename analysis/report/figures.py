"""Drawing every registered plot: PNG and SVG files, and SVG that an HTML page can hold inline.

The inline SVG takes its ink, paper and grid colors from the page, so that it reads on light and dark, and its points link
to the rows of their runs.
"""

import html
import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd

from analysis import words
from analysis.plots import PLOTS, style
from sae_core.files import write_text, written_whole

PAGE_COLORS = {
    style.INK: "var(--ink)",
    style.FAINT: "var(--faint)",
    style.GRID: "var(--rule)",
    "#ffffff": "var(--paper)",
    "#0072b2": "var(--blue)",
    "#d55e00": "var(--vermilion)",
    "#009e73": "var(--green)",
}
"""Colors that need another shade on a dark page -> their names in `templates/report.css`."""


def draw_plots(
    table: pd.DataFrame, histories: Mapping[str, Path], directory: Path, prefix: str = "", *, of_all: bool = False
) -> list[dict[str, Any]]:
    """Draw every plot that the table has something for, in the report's order, and write PNG and SVG files.

    Args:
        table: runs that may be compared with each other, or all of them where `of_all`.
        histories: run id -> `history.jsonl`.
        prefix: start of the file names, to keep several comparisons apart.
        of_all: draw the plots of all comparisons together, or else those of one.

    Returns:
        Per plot: `section`, `order`, `title`, `explored`, `caption`, the name of its `file`, and `svg` for inlining in HTML.
    """
    directory.mkdir(parents=True, exist_ok=True)
    drawn, tooltips = [], _tooltips(table)
    for name, plot in sorted(PLOTS.items(), key=lambda item: item[1].order):
        if plot.of_all != of_all:
            continue
        info = plot.info(table, histories)
        if info is None:
            continue
        png, svg = directory / f"{prefix}{name}.png", io.StringIO()
        with matplotlib.rc_context({**style.RC, "svg.hashsalt": prefix + name}):
            figure = plot.figure(info)
            if engine := figure.get_layout_engine():
                engine.execute(figure)
                figure.set_layout_engine(None)  # the layout stands; each format would work it out again, or draw once more to find none
            with written_whole(png) as temporary:
                figure.savefig(temporary, format="png", dpi=160, metadata={"Software": None})
            figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None})
        write_text(png.with_suffix(".svg"), svg.getvalue())
        caption = " ".join(text for text in (plot.caption, plot.note(info)) if text)
        shown = {"section": plot.section, "order": plot.order, "title": plot.title, "explored": plot.explored}
        drawn.append({**shown, "caption": caption, "svg": inline_svg(svg.getvalue(), plot.title, tooltips), "file": png.name})
    return drawn


def inline_svg(svg: str, title: str, tooltips: Mapping[str, str]) -> str:
    """A figure's SVG file as an element that follows the colors of the page around it.

    Args:
        svg: as matplotlib wrote it.
        title: what the figure shows, for screen readers.
        tooltips: run id -> what to show over the points that link to it.
    """
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    # Groups are numbered anew in each figure, and nothing refers to them; what is referred to has a hash of the figure's own.
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg))
    svg = re.sub(r'(<\w+)\s+id="([^"]*)"', lambda found: found[0] if found[2] in used else found[1], svg)
    svg = re.sub(r"\s*\n\s*", " ", svg).replace("font-family: 'DejaVu Sans'; ", "")
    # A tenth of a point is less than a pixel. What is scaled needs its digits.
    svg = re.sub(r' (d|x|y|transform)="[^"a-z]*(rotate|translate)?\(?[^"(]*"', lambda found: re.sub(r"(\.\d)\d+", r"\1", found[0]), svg)
    svg = re.sub(r' d="[^"]*"', lambda found: re.sub(r" ?([A-Zz]) ?", r"\1", found[0]), svg)
    svg = re.sub(r'<svg ([^>]*?)height="[^"]*"([^>]*?)width="[^"]*"', r"<svg \1\2", svg, count=1)
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{html.escape(title)}" ', 1)
    for color, variable in PAGE_COLORS.items():
        svg = svg.replace(color, variable)

    def with_tooltip(match: re.Match[str]) -> str:
        run_id = html.unescape(match["run_id"])
        return f"{match[0]}<title>{html.escape(tooltips.get(run_id, run_id))}</title>"

    return re.sub(r'<a xlink:href="#(?P<run_id>[^"]*)"[^>]*>', with_tooltip, svg)


def linked(svg: str) -> set[str]:
    """The run ids that points of a figure link to."""
    return {html.unescape(run_id) for run_id in re.findall(r'<a xlink:href="#([^"]*)"', svg)}


def _tooltips(table: pd.DataFrame) -> dict[str, str]:
    return {
        row["run_id"]: f"{words.label(row['architecture'])}, {words.setting(row)}: "
        f"L0 {row['l0']:.1f}, FVU {words.number(row['fvu'])}, delta CE {words.number(row['delta_ce'])}"
        for row in table[table["status"] == "finished"].to_dict("records")
    }
