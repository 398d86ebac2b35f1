"""LaTeX tables with intervals, for `booktabs`."""

from collections.abc import Mapping, Sequence

import pandas as pd

from analysis import words
from analysis.estimates import Estimate
from analysis.statistics.matched import COMPARED, at_matched_l0, compared_metrics, matched_l0s

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "·": r"$\cdot$",
    "–": "--",
}


def matched_tables(table: pd.DataFrame, title: str) -> dict[str, str]:
    """Metric -> a table of its values at matched L0, a row per architecture.

    Args:
        table: finished runs of one comparison.
        title: of the comparison, for the caption.
    """
    l0s = matched_l0s(table)
    return {
        metric: _table(COMPARED[metric], at_matched_l0(table, metric, l0s), l0s, title)
        for metric in (compared_metrics(table) if l0s else [])
    }


def _table(name: str, values: Mapping[str, Sequence[Estimate | None]], l0s: Sequence[float], title: str) -> str:
    known = [value for row in values.values() for value in row if value]
    covers = sorted({value.covers for value in known})
    caption = f"{name} at matched L0 ({title}). Lower is better."
    caption += f" In brackets: 95 % intervals ({'; '.join(covers)})." if any(value.low is not None for value in known) else ""
    caption += f" {words.EXTRAPOLATED}: beyond an end of the front." if any(value.extrapolated for value in known) else ""
    rows = [f"{escaped(words.label(architecture))} & {' & '.join(map(_cell, row))} \\\\" for architecture, row in values.items()]
    return "\n".join(
        [
            "% \\usepackage{booktabs}",
            "\\begin{table}",
            "  \\centering",
            f"  \\caption{{{escaped(caption)}}}",
            f"  \\begin{{tabular}}{{l{'r' * len(l0s)}}}",
            "    \\toprule",
            f"    Architecture & {' & '.join(f'L0 {l0:g}' for l0 in l0s)} \\\\",
            "    \\midrule",
            *(f"    {row}" for row in rows),
            "    \\bottomrule",
            "  \\end{tabular}",
            "\\end{table}",
            "",
        ]
    )


def _cell(value: Estimate | None) -> str:
    if value is None:
        return "--"
    shown = words.number(value.value) + (f"$^{{{words.EXTRAPOLATED}}}$" if value.extrapolated else "")
    if value.low is None or value.high is None:
        return shown
    return f"{shown} {{\\scriptsize [{words.number(value.low)}, {words.number(value.high)}]}}"


def escaped(text: str) -> str:
    """Text that LaTeX shows as it is."""
    return "".join(_SPECIAL.get(character, character) for character in text)
