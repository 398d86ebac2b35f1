"""Checks of the activations that the runs of a comparison share: what may be wrong with them, as sentences with the numbers."""

import math

import pandas as pd

from analysis.inputs import numbers
from analysis.repeats import counted

SINK_SHARE = 0.5
"""Part of the variance that a few rows may carry before FVU says little about all others."""


def no_better_than_guessing(runs: pd.DataFrame) -> list[str]:
    """The untouched language model predicts no better than one that gives every token the same probability."""
    if not {"ce_loss_clean", "d_vocab"} <= set(runs.columns):
        return []
    told = pd.DataFrame({name: numbers(runs, name) for name in ("ce_loss_clean", "d_vocab")})
    measured = told[(told["d_vocab"] > 1)].dropna()
    bad = measured[measured["ce_loss_clean"] >= measured["d_vocab"].map(math.log)]
    return [
        f"The cross-entropy of the untouched model is {loss:.3f} nats per token; guessing among its {int(d_vocab):,} tokens gives "
        f"ln({int(d_vocab)}) = {math.log(d_vocab):.3f}."
        for loss, d_vocab in bad[["ce_loss_clean", "d_vocab"]].head(1).itertuples(index=False)
    ]


def sinks(runs: pd.DataFrame) -> list[str]:
    """A few rows of the training activations carry most of their variance."""
    if not {"outlier_rows", "outlier_share"} <= set(runs.columns):
        return []
    told = pd.DataFrame({name: numbers(runs, name) for name in ("outlier_rows", "outlier_share")}).dropna()
    heavy = told[(told["outlier_share"] > SINK_SHARE) & (told["outlier_rows"] > 0)].drop_duplicates()
    return [
        f"{counted(int(n_rows), 'row')} of the training activations, at ten times the usual distance from their mean or more, "
        f"{'carries' if n_rows == 1 else 'carry'} {100 * share:.1f} % of the variance."
        for n_rows, share in heavy.sort_values("outlier_share").tail(1).itertuples(index=False)
    ]
