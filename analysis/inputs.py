"""The border to tables that a user brings: read from CSV, concatenated, filtered or made by hand. Nothing here changes its input."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.columns import INTEGERS, TEXTS
from sae_core.errors import ConfigError, UnknownNameError, reason_of

NEEDED = (
    *("run_id", "architecture", "status", "sparsity_parameter", "sparsity_value", "seed", "lr", "d_in", "d_sae", "train_tokens"),
    *("l0", "fvu", "delta_ce", "ce_loss_recovered", "dead_fraction", "target_l0", "l0_error"),
    *("sweep", "variant", "setting_hash", "comparison_hash"),
)
"""Columns that summaries and warnings read."""


def check_columns(table: Any, columns: Iterable[str]) -> None:
    """Make sure that `table` is one and has each of `columns` once.

    Raises:
        ConfigError: it is not, or does not.
    """
    if not isinstance(table, pd.DataFrame):
        raise ConfigError(f"a table must be a pandas DataFrame, but got {type(table).__name__}. Pass what `load_table` returns.")
    names = [str(name) for name in table.columns]
    for column in columns:
        if column not in table.columns:
            raise UnknownNameError.of("a column of the table", str(column), names, "Name a column that it has.")
        if names.count(str(column)) > 1:
            raise ConfigError(f"a table must have each column once, but got {column!r} {names.count(str(column))} times. Drop the others.")


def numbers(table: pd.DataFrame, column: str) -> NDArray[np.float64]:
    """A column as float64, in the table's order; NaN where a value is missing or infinite.

    Raises:
        ConfigError: a value is not a number.
    """
    check_columns(table, [column])
    values = table[column]
    if isinstance(values.dtype, pd.CategoricalDtype):
        values = values.astype(object)
    try:
        if not (pd.api.types.is_numeric_dtype(values) or pd.api.types.is_string_dtype(values) or pd.api.types.is_object_dtype(values)):
            raise TypeError(f"they are {values.dtype}")
        read = pd.to_numeric(values).to_numpy(dtype=float, na_value=np.nan, copy=True)
    except Exception as error:  # whatever pandas raises for what a cell holds
        raise ConfigError(
            f"column {column!r} must hold numbers, but it holds something else: {reason_of(error)}. Convert it, or leave those rows out."
        ) from error
    read[~np.isfinite(read)] = np.nan
    return read


def finished(table: pd.DataFrame) -> NDArray[np.bool_]:
    """Which rows are of finished runs, in the table's order; all of them where it has no `status`."""
    if "status" not in table:
        return np.ones(len(table), dtype=bool)
    check_columns(table, ["status"])
    return np.array([value == "finished" if isinstance(value, str) else False for value in table["status"]], dtype=bool)


def keys(table: pd.DataFrame, by: str | Sequence[str] | None) -> pd.DataFrame:
    """The columns that split the table into groups, numbered from 0 in the table's order.

    Raises:
        ConfigError: there is no such column, or its values cannot be told apart.
    """
    names = [] if by is None else [by] if isinstance(by, str) else by
    if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names) or (by is not None and not names):
        raise ConfigError(f"`by` must name columns of the table, but got {by!r}. Name at least one, e.g. by='architecture'.")
    names = list(dict.fromkeys(names))
    check_columns(table, names)
    groups = table[names].reset_index(drop=True)
    for name in names:
        if not groups[name].map(pd.api.types.is_hashable).all():
            raise ConfigError(f"`by` must name columns of names or numbers, but {name!r} holds lists or dicts. Choose another column.")
    return groups


def as_loaded(table: pd.DataFrame) -> pd.DataFrame:
    """A copy with the types that `load_table` gives its columns, numbered from 0.

    Raises:
        ConfigError: a column that summaries need is missing, repeated or of another kind.
    """
    check_columns(table, NEEDED)
    loaded = table.reset_index(drop=True)
    repeated = loaded.columns[loaded.columns.duplicated()]
    if len(repeated):
        raise ConfigError(f"a table must have each column once, but got {str(repeated[0])!r} twice. Drop one of them.")
    for name in NEEDED:
        if name in TEXTS:
            loaded[name] = loaded[name].astype("str").where(loaded[name].notna(), "" if name == "variant" else np.nan)
        else:
            values = pd.Series(numbers(table, name))
            loaded[name] = values.round().astype("Int64") if name in INTEGERS else values
    return loaded
