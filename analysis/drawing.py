"""Any registered plot of a table as a Matplotlib figure, for notebooks and scripts."""

import io
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from analysis.plots import PLOTS, style
from analysis.table import DIRECTORIES, by_comparison
from analysis.words import titles
from sae_core.errors import ConfigError
from sae_core.layout import RunPaths


def plot(table: pd.DataFrame, name: str = "l0_fvu", **options: Any) -> Figure:
    """Draw a plot. A notebook shows what this returns; `figure.savefig(...)` writes it.

    Args:
        table: from `load_table` or `read_table`, or rows of it.
        name: of the plot; `sae-sweep list` names all.
        options: of the plot's `info`, e.g. `layout="one"` of `sizes_fvu`.

    Raises:
        ConfigError: there is no such plot, the table has nothing for it, or rows that may not share it.
    """
    chosen = PLOTS[name]
    if not chosen.of_all and len(parts := by_comparison(table)) > 1:
        names = [title.short for title in titles(table).values()]
        raise ConfigError(
            f"rows must be comparable to share the plot {name!r}, but got {len(parts)} comparisons: {'; '.join(names)}. "
            "Pass rows of one `comparison_hash`, or draw 'sizes_fvu'."
        )
    directories = table.attrs.get(DIRECTORIES, {})
    histories = {run_id: RunPaths(Path(directory)).history for run_id, directory in directories.items()}
    info = chosen.info(table, histories, **options)
    if info is None:
        raise ConfigError(
            f"the table must have something to draw for the plot {name!r}, but got {len(table)} rows without. {chosen.caption}"
        )
    with matplotlib.rc_context(style.RC), style.shown_together(table["architecture"].dropna()):
        figure = chosen.figure(info)
        figure.draw_without_rendering()
    # IPython shows figures that pyplot did not make only where they say how.
    setattr(figure, "_repr_png_", partial(_png, figure))  # noqa: B010 - no attribute of matplotlib's
    return figure


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    with matplotlib.rc_context(style.RC):
        figure.savefig(file, format="png", dpi=110)
    return file.getvalue()
