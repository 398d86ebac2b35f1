"""Checks of runs that may be compared: what deserves a second look, as sentences with the numbers.

Repeats of a setting (seeds, orders of the tokens) count as one point at their mean, so nothing is said once per seed. A coefficient is in
the dead zone when a neighbour of at least twice its size gives the same L0 to within CLOSE, when more than DENSE of the latents are still
active (a ReLU SAE starts at about half), or when less than one latent is active per token.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.learning_rates import MISSED, edge_of_rates, requested_l0
from analysis.table import IMPOSSIBLE, numbers, over_seeds
from analysis.words import counted, listed, metric, noun, number, setting

CLOSE = 0.05
"""L0s that differ by a smaller fraction are the same point of a front."""
UNRESPONSIVE_FACTOR = 2.0
"""L0 must respond to a change of the coefficient by this factor."""
DENSE = 0.25
"""A larger share of latents active per token is no sparse code."""
ENOUGH_POINTS = 3
"""Sparsity levels that make a front."""
MANY_DEAD = 0.2
"""Share of dead latents that deserves a second look."""
SINK_SHARE = 0.5
"""Part of the variance that a few rows may carry before FVU says little about all others."""

Row = Any
"""A row of a table, as pandas gives it."""


@dataclass(frozen=True, slots=True)
class Check:
    """Something that may be wrong with runs that may be compared."""

    title: str
    remedy: str
    find: Callable[[pd.DataFrame], list[str]]
    """Runs of one architecture and comparison -> sentences with the numbers."""
    of_all: bool
    """Whether it is about what all runs of a comparison share, and `find` takes those of all architectures."""


CHECKS: dict[str, Check] = {}
"""Name -> check, in the order of their findings."""


def _check(title: str, remedy: str, *, of_all: bool = False) -> Callable[[Callable[[pd.DataFrame], list[str]]], Any]:
    def add(find: Callable[[pd.DataFrame], list[str]]) -> Callable[[pd.DataFrame], list[str]]:
        CHECKS[find.__name__] = Check(title, remedy, find, of_all)
        return find

    return add


@_check(
    "The language model is no better than chance",
    "Its weights may not have loaded, or the text was split by another tokenizer. Every number that follows is about noise: check `model` "
    "and `data` before anything else.",
    of_all=True,
)
def guessing(runs: pd.DataFrame) -> list[str]:
    """The untouched language model predicts no better than one that gives every token the same probability."""
    measured = _known(runs, "ce_loss_clean", "d_vocab")
    bad = measured[(measured["d_vocab"] > 1) & (measured["ce_loss_clean"] >= np.log(measured["d_vocab"].clip(lower=1)))]
    return [
        f"The cross-entropy of the untouched model is {loss:.3f} nats per token; guessing among its {int(d_vocab):,} tokens gives "
        f"ln({int(d_vocab)}) = {math.log(d_vocab):.3f}."
        for loss, d_vocab in bad.head(1).itertuples(index=False)
    ]


@_check(
    "A few rows carry nearly all variance",
    "They are often attention sinks, as the first token of a window is. FVU and the SAEs' training are about them more than about all "
    "other rows. Exclude special tokens (`exclude_special_tokens`) and such rows (`exclude_high_norm: 10`), choose another hook point, or "
    "read delta CE instead of FVU.",
    of_all=True,
)
def sinks(runs: pd.DataFrame) -> list[str]:
    """A few rows of the training activations carry most of their variance."""
    known = _known(runs, "outlier_rows", "outlier_share")
    heavy = known[(known["outlier_share"] > SINK_SHARE) & (known["outlier_rows"] > 0)]
    return [
        f"{counted(int(n_rows), 'row')} of the training activations, at ten times the usual distance from their mean or more, "
        f"{'carries' if n_rows == 1 else 'carry'} {100 * share:.1f} % of the variance."
        for n_rows, share in heavy.sort_values("outlier_share").tail(1).itertuples(index=False)
    ]


@_check(
    "Runs evaluated with different arithmetic",
    "Their metrics may differ in the last digits for that reason alone: evaluate them alike before reading small differences.",
    of_all=True,
)
def arithmetic(runs: pd.DataFrame) -> list[str]:
    """Finished runs whose records name different kernels, precisions or devices of their evaluation."""
    known = runs.loc[runs["status"] == "finished", "eval_arithmetic"].dropna() if "eval_arithmetic" in runs else pd.Series(dtype=str)
    parts = [f"{counted(amount, 'run')} with {kind}" for kind, amount in known.value_counts().items()]
    return [f"Evaluation arithmetic differs: {'; '.join(parts)}."] if len(parts) > 1 else []


@_check(
    "Values that cannot be",
    "They are treated as missing, so such a run is on no front of that metric. Its record was changed, or its evaluation is wrong: delete "
    "the directory of the run and launch the sweep again.",
)
def impossible_values(runs: pd.DataFrame) -> list[str]:
    """A metric of a record has a value that its definition rules out, such as an FVU below 0."""
    found = runs.attrs.get(IMPOSSIBLE, {})
    return [
        f"{listed([f'`{name}` {number(value)}' for name, value in found[run_id].items()])} in run `{run_id}` ({_name(row, runs)})."
        for run_id, row in zip(runs["run_id"], runs.to_dict("records"), strict=True)
        if run_id in found
    ]


@_check("Best learning rate at the edge of its range", "A better one may lie beyond: extend `lr` in that direction.")
def learning_rate(runs: pd.DataFrame) -> list[str]:
    """The best learning rate is the lowest or the highest that was tried."""
    texts = (edge_of_rates(str(variant), tried) for variant, tried in runs.groupby("variant"))
    return [text for text in texts if text]


@_check(
    f"Target L0 missed by more than {100 * MISSED:g} %",
    "A low learning rate cannot move L0: raise `lr` or train longer. Or let the search for the coefficient start nearer: "
    "`sparsity_value` in `table.csv` is the one a run ended with.",
)
def missed_target(runs: pd.DataFrame) -> list[str]:
    """Settings of which a repeat ended further than MISSED from the requested L0."""
    finished = runs[(runs["status"] == "finished") & runs["l0_error"].notna()]
    settings = finished.loc[finished["l0_error"].abs() > MISSED, "setting_hash"]
    missed = []
    for _, seeds in finished[finished["setting_hash"].isin(settings)].groupby("setting_hash", sort=False):
        off = seeds[seeds["l0_error"].abs() > MISSED]
        worst = off.iloc[int(off["l0_error"].abs().argmax())]
        of = f" at worst, {len(off)} of {len(seeds)} {noun(seeds)}s" if len(seeds) > 1 else ""
        missed.append(f"{metric('l0', worst['l0'])} ({metric('l0_error', worst['l0_error'])}{of}) at {_name(worst, runs)}")
    return [f"L0 is {listed(missed)}."] if missed else []


@_check(
    "Coefficients in a dead zone",
    "Such runs add nothing: keep one coefficient of each group and move the others, or request levels with `target_l0`.",
)
def dead_zone(runs: pd.DataFrame) -> list[str]:
    """Coefficients that L0 does not respond to, or so weak or strong that nothing sparse, or nothing at all, was learned."""
    texts = [
        f"L0 is {_values(chain, 'l0', runs)}: it does not respond to the coefficient there."
        for ladder in _ladders(runs)
        for chain in _chains(ladder.sort_values("sparsity_value"), lambda low, high: _close(low, high) and _unresponsive(low, high))
    ]
    settings = over_seeds(runs)
    dense, collapsed = settings[_is_dense(settings)], settings[settings["target_l0"].isna() & (settings["l0"] < 1)]
    if len(dense):
        texts.append(f"L0 is {_values(dense, 'l0', runs)}, of {int(dense['d_sae'].iloc[0])} latents: still dense.")
    if len(collapsed):
        texts.append(
            f"L0 is {_values(collapsed, 'l0', runs)}: fewer than one active latent per token. At 0 it is on no front and in no plot."
        )
    return texts


@_check(f"Points closer than {100 * CLOSE:g} % in L0", "One of them is a wasted run: move it, or leave it out.")
def close_points(runs: pd.DataFrame) -> list[str]:
    """Settings, alike but for their sparsity, whose L0s differ by less than CLOSE; without those of `dead_zone`."""
    return [
        f"L0 is {_values(chain, 'l0', runs)}: less than {100 * CLOSE:g} % apart."
        for ladder in _ladders(runs)
        for chain in _chains(ladder.sort_values("l0"), lambda low, high: _close(low, high) and not _unresponsive(low, high))
    ]


@_check(
    f"Fewer than {ENOUGH_POINTS} points on a front",
    "Too few to compare architectures by: add sparsity levels, or launch the sweep again to finish those that are missing.",
)
def few_points(runs: pd.DataFrame) -> list[str]:
    """Fewer than ENOUGH_POINTS sparsity levels have finished."""
    levels = requested_l0(runs).fillna(-runs["sparsity_value"])  # coefficients below 0, apart from L0s
    n_finished, n_all = levels[(runs["status"] == "finished") & (runs["l0"] > 0)].nunique(dropna=False), levels.nunique(dropna=False)
    return [f"{n_finished} of {counted(n_all, 'sparsity level')} finished."] if n_finished < ENOUGH_POINTS else []


@_check(
    f"More than {100 * MANY_DEAD:g} % dead latents",
    "They are never active on the held-out text, which also counts very rare ones. Lower `lr` or `d_sae`, train on more tokens, set "
    "`resample_every_steps` or, in the TopK family, `dead_after_tokens` far below the training tokens, so that its auxiliary loss "
    "revives them.",
)
def dead_latents(runs: pd.DataFrame) -> list[str]:
    """Settings with more than MANY_DEAD of their latents never active on the held-out text; collapsed ones are `dead_zone`'s."""
    settings = over_seeds(runs)
    many = settings[(settings["dead_fraction"] > MANY_DEAD) & (settings["l0"] >= 1)]
    return [f"The share of dead latents is {_values(many, 'dead_fraction', runs)}."] if len(many) else []


def _is_dense(settings: pd.DataFrame) -> "pd.Series[bool]":
    return requested_l0(settings).isna() & (settings["l0"] > DENSE * settings["d_sae"].astype(float))


def _ladders(runs: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """Settings that differ in nothing but their sparsity, and are neither dense nor collapsed; targets and coefficients apart."""
    settings = over_seeds(runs)
    sparse = settings[~_is_dense(settings) & (settings["l0"] >= 1)]
    keys = [sparse["variant"], sparse["lr"], sparse["target_l0"].isna()]
    several = sparse.groupby(keys, dropna=False)["l0"].transform("size") > 1  # a search takes a rate only once
    for _, ladder in sparse[several].groupby([key[several] for key in keys], dropna=False):
        yield ladder


def _chains(ladder: pd.DataFrame, together: Callable[[Row, Row], bool]) -> Iterator[pd.DataFrame]:
    """Stretches of two settings or more in which every one is `together` with the next."""
    rows = ladder.to_dict("records")
    breaks = [index for index in range(1, len(rows)) if not together(rows[index - 1], rows[index])]
    for start, end in zip([0, *breaks], [*breaks, len(rows)], strict=True):
        if end - start > 1:
            yield ladder.iloc[start:end]


def _close(one: Row, other: Row) -> bool:
    return bool(max(one["l0"], other["l0"]) < (1 + CLOSE) * min(one["l0"], other["l0"]))


def _unresponsive(one: Row, other: Row) -> bool:
    low, high = sorted([one["sparsity_value"], other["sparsity_value"]])
    return bool(pd.isna(one["target_l0"]) and one["sparsity_parameter"] != "k" and high >= UNRESPONSIVE_FACTOR * low)


def _known(runs: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """Distinct rows with all of these numbers."""
    return (
        pd.DataFrame({name: numbers(runs, name) if name in runs else np.nan for name in columns}, index=runs.index)
        .dropna()
        .drop_duplicates()
    )


def _values(settings: pd.DataFrame, column: str, runs: pd.DataFrame) -> str:
    """E.g. "26.6 at l1_coefficient=1 and 26.4 at l1_coefficient=10"."""
    return listed([f"{metric(column, row[column])} at {_name(row, runs)}" for _, row in settings.iterrows()])


def _name(row: Row, runs: pd.DataFrame) -> str:
    return setting(row, with_lr=runs["lr"].nunique() > 1)
