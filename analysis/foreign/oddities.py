"""What is odd about the rows of a published table, in words."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import pandas as pd

from analysis.foreign.known import USUAL
from analysis.learning_rates import MISSED, requested_l0
from analysis.possible import POSSIBLE, SLACK, impossible
from analysis.words import number

ENOUGH_ROWS = 3
"""Rows from which on a column with one value is odd."""


def impossible_in(table: pd.DataFrame) -> "pd.Series[str]":
    """Per row: which of its values cannot be, as one sentence; empty for none."""
    found: list[list[str]] = [[] for _ in range(len(table))]
    for metric, wrong in impossible(table):
        for index in np.flatnonzero(wrong):
            found[index].append(f"{metric} cannot be {number(table[metric].iloc[index])}.")
    return pd.Series([" ".join(texts) for texts in found], index=table.index, dtype="str")


def flags_of(
    table: pd.DataFrame,
    notes: Sequence[Sequence[str]],
    metrics: Sequence[str],
    several: Mapping[str, bool],
    read: Collection[str],
    unasked: Collection[str] = (),
) -> list[str]:
    """Per row: everything odd about it, joined by "; "; empty for nothing.

    Args:
        notes: per row, what was odd about how it was written.
        metrics: columns of metrics.
        several: columns that stand several times in the file.
        read: columns of the file that were read.
        unasked: metrics that a format brings along: that an SAE has none of them is not odd.
    """
    flags = [list(own) for own in notes]
    written = [" ".join(own) for own in notes]

    def add(rows: "pd.Series[bool]", what: str) -> None:
        for index in np.flatnonzero(rows.fillna(False).to_numpy(dtype=bool)):
            flags[index].append(what)

    for metric in metrics:
        values = table[metric].astype(float)
        low, high = POSSIBLE.get(metric, (-np.inf, np.inf))
        usual_low, usual_high = USUAL.get(metric, (low, high))
        if metric not in unasked:
            add(values.isna() & ~pd.Series([f"{metric} " in text for text in written], index=table.index), f"{metric} is missing")
        add(values < usual_low - SLACK, f"{metric} is below {usual_low:g}")
        add(values > usual_high + SLACK, f"{metric} is above {usual_high:g}")
        if (
            metric not in unasked
            and len(values) >= ENOUGH_ROWS
            and values.notna().all()
            and values.nunique() == 1
            and not metric.startswith("ce_loss_")
        ):
            add(values.notna(), f"{metric} is the same in every row")
    if "l0" in table:
        l0, requested = table["l0"], requested_l0(table)
        add(l0 == 0, "l0 is 0")
        add(l0 > table["d_sae"].astype(float), "l0 is above d_sae")
        add((l0 / requested - 1).abs() > MISSED, "l0 is not the one requested")
    for name in read:
        if name in several:
            add(pd.Series(True, index=table.index), f"column {name!r} stands several times in the file")
    return ["; ".join(dict.fromkeys(own)) for own in flags]
