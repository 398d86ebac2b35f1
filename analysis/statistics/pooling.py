"""Which rows may be compared, and what in them is compared: parts of a table, arms, settings, repeats.

Rows on different held-out text, model, hook point or context, and rows whose language model has another cross-entropy to start from, are
never pooled: the table falls into parts, and a note says why.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis import words
from analysis.columns import OF_A_REPEAT, OF_A_SETTING
from analysis.pareto import By
from analysis.statistics.choosing import Grid, grid_of
from analysis.statistics.samples import Samples
from analysis.table import check_columns, finished, numbers
from sae_core.errors import ConfigError

SAME_TEXT = {
    "eval_hash": "held-out text",
    "model": "model",
    "hook_point": "hook point",
    "hook_out": "hook point that is written to",
    "context_size": "context size",
}
"""Columns that rows must agree in to be pooled, where the table has them, and their names."""
CLEAN_CE = "ce_loss_clean"
CLEAN_CE_TOLERANCE = 1e-3
"""Nats per token by which the clean cross-entropy of pooled rows may differ: rounding, not another model or text."""
KEPT_APART = "Runs that differ in"
"""How a sentence begins that says why rows are not pooled."""
_UNKNOWN = "–"
_TELLING = (*OF_A_SETTING, *OF_A_REPEAT, "setting_hash", "sparsity_value", "l0")
"""Columns that tell settings and repeats apart, and order them."""


def parts_of(table: pd.DataFrame, same: Sequence[str]) -> tuple[dict[str, pd.DataFrame], list[str]]:
    """Rows that may be pooled, by name: the `comparison_hash` where that alone tells them apart; and why there are several, as sentences.

    Args:
        same: further columns that pooled rows must agree in.
    """
    check_columns(table, ["l0"])
    rows = table[finished(table)]
    columns = [name for name in dict.fromkeys([*same, *SAME_TEXT]) if name in rows]
    keys = pd.DataFrame({name: rows[name].astype("string").fillna(_UNKNOWN) for name in columns}, index=rows.index)
    keys = keys.assign(**{CLEAN_CE: _clean_ce(rows)}) if CLEAN_CE in rows else keys
    groups: dict[tuple[Any, ...], list[int]] = {}
    for position, key in enumerate(keys.itertuples(index=False, name=None)):
        groups.setdefault(key, []).append(position)
    by_hash = "comparison_hash" in same and "comparison_hash" in rows
    parts: dict[str, pd.DataFrame] = {}
    for number, positions in enumerate(groups.values(), start=1):
        part = rows.iloc[positions]
        name = str(part["comparison_hash"].iloc[0]) if by_hash else str(number)
        parts[f"{name}/{number}" if name in parts else name] = part
    return parts, _why(keys, [name for name in keys if name not in same])


def _why(keys: pd.DataFrame, columns: Sequence[Any]) -> list[str]:
    """One sentence per column in which rows differ."""
    notes = []
    for column in columns:
        values = sorted(keys[column].unique())
        if len(values) > 1:
            values = [words.shortened(value) for value in values]
            what = SAME_TEXT.get(column, "cross-entropy of the clean language model")
            notes.append(f"{KEPT_APART} the {what} are not compared with each other: {words.listed(values)}.")
    return notes


def titles_of(table: pd.DataFrame, parts: Mapping[str, pd.DataFrame]) -> dict[str, str]:
    """Part -> what tells it apart, e.g. "d_sae 512"; empty for a single one."""
    return {name: title.short for name, title in words.titles(table, parts).items()}


def _clean_ce(rows: pd.DataFrame) -> list[str]:
    """The clean cross-entropy of each row, the same text for rows that agree within CLEAN_CE_TOLERANCE."""
    values = numbers(rows, CLEAN_CE)
    named, start = {}, -np.inf
    for value in sorted(set(values[np.isfinite(values)])):
        start = value if value - start > CLEAN_CE_TOLERANCE else start
        named[value] = f"{start:.4f}"
    return [named.get(value, _UNKNOWN) for value in values]


def arm_names(table: pd.DataFrame, by: By) -> "pd.Series[str]":
    """The arm that each row belongs to, by the columns of `by`."""
    names = [by] if isinstance(by, str) else list(dict.fromkeys(by))
    if not names:
        raise ConfigError(f"`by` must name at least one column, but got {by!r}. Name one, e.g. 'architecture'.")
    check_columns(table, names)
    return table[names].astype("string").fillna(_UNKNOWN).agg(", ".join, axis=1)


def grids_of(rows: pd.DataFrame, samples: Samples, by: By) -> dict[str, Grid]:
    """Arm -> its runs, in reading order.

    Args:
        rows: what `samples` were made of.
    """
    names = [by] if isinstance(by, str) else by
    check_columns(rows, names)
    # Few columns, because rows are taken many times.
    sampled = rows[[name for name in dict.fromkeys([*names, *_TELLING]) if name in rows]].iloc[samples.rows]
    if sampled.empty:
        return {}
    arms, repeats = arm_names(sampled, by), _repeats(sampled)
    grids = {}
    for arm in words.in_order(arms):
        index = np.flatnonzero((arms == arm).to_numpy())
        own = sampled.iloc[index]
        grids[arm] = grid_of(own, index, _settings(own, [repeats[position] for position in index], arm), [repeats[i] for i in index])
    return grids


def repeats_of(rows: pd.DataFrame, samples: Samples, grid: Grid) -> tuple[str, ...]:
    """Names of the repeats of an arm, in the order of its columns."""
    names = _repeats(rows.iloc[samples.rows])
    return tuple(sorted({names[run] for run in grid.runs.ravel() if run >= 0}))


def _repeats(rows: pd.DataFrame) -> list[str]:
    return list(words.with_repeats(rows)[words.REPEAT]) if "seed" in rows else ["0"] * len(rows)


def _settings(rows: pd.DataFrame, repeats: Sequence[str], arm: str) -> list[Hashable]:
    """What tells the settings of an arm apart: the hash of their config, or the columns that there are, or their rank in L0."""
    if "setting_hash" in rows and rows["setting_hash"].notna().all():
        keys = list(rows["setting_hash"])
    else:
        columns = [name for name in (*OF_A_SETTING, "sparsity_value") if name in rows]
        keys = list(rows[columns].astype("string").fillna("").itertuples(index=False, name=None))
    if len(set(zip(keys, repeats, strict=True))) == len(keys):
        return keys
    rank = rows["l0"].groupby(list(repeats)).rank(method="first")
    if rank.groupby(list(repeats)).max().nunique() > 1:
        raise ConfigError(
            f"repeats must have the same settings where no column tells settings apart, but those of {arm!r} have different numbers. "
            "Add a column `setting_hash` that is equal for repeats of one setting."
        )
    return list(rank)
