"""Repeats of a setting: runs that differ in their seed or in the order of their tokens, and in nothing else."""

import pandas as pd

REPEAT = "repeat"
"""Column that `with_repeats` adds."""


def with_repeats(table: pd.DataFrame) -> pd.DataFrame:
    """The table with a column that is equal for runs of one seed and one order of the tokens."""
    orders = table["data_seed"].astype("string").fillna("") if "data_seed" in table else pd.Series("", index=table.index)
    return table.assign(**{REPEAT: table["seed"].astype("string").fillna("") + "/" + orders})


def n_repeats(table: pd.DataFrame) -> int:
    """How many pairs of a seed and an order the table has."""
    return int(with_repeats(table)[REPEAT].nunique())


def noun(table: pd.DataFrame) -> str:
    """What a repeat is: "seed", "order" where only the order of the tokens differs, or "repeat" where both do."""
    orders = table["data_seed"].nunique() if "data_seed" in table else 0
    return "seed" if orders < 2 else "order" if table["seed"].nunique() < 2 else "repeat"


def counted(number: int, one: str) -> str:
    """E.g. "3 seeds"."""
    return f"{number:,} {one}{'s' * (number != 1)}"


def counted_repeats(table: pd.DataFrame) -> str:
    """E.g. "3 seeds", "2 orders of the tokens" or "6 repeats (3 seeds, 2 orders of the tokens)"."""
    kind, number = noun(table), n_repeats(table)
    if kind == "seed":
        return counted(number, "seed")
    orders = f"{counted(table['data_seed'].nunique(), 'order')} of the tokens"
    return orders if kind == "order" else f"{counted(number, 'repeat')} ({counted(table['seed'].nunique(), 'seed')}, {orders})"
