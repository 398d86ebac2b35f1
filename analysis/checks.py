"""Checks of the runs of one architecture that may be compared: what deserves a second look, as sentences with the numbers.

Repeats of a setting (seeds, orders of the tokens) count as one point at their mean, so nothing is told once per seed. Choices worth
knowing:

- Learning rates are compared at equal sparsity, because FVU falls with L0. Where an L0 was asked for (a target, or k), a level is an
  L0 asked for, and settings that missed it do not take part. Where a coefficient was given, levels are MATCHED_LEVELS L0s, evenly
  spaced in ln L0, at which the fronts of the rates are read. The rate with the lowest FVU wins a level. An edge of the range is told
  when it wins more than half of the levels: a mean over levels would need every rate at every level, which pruning does not leave.
- The range of rates is what was tried, so that a rate whose runs all diverged or were pruned bounds it, and what the definitions of
  all launches ask for. Where a search may take any rate of a range, one within NEAR_THE_END of its ends, in ln lr, is at the edge. A
  level with runs that are yet to finish has no winner.
- A coefficient is in the dead zone when a neighbour of at least twice its size gives the same L0 to within CLOSE, when more than
  DENSE of the latents are still active (a ReLU SAE starts at about half), or when less than one latent is active per token.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.pareto import common_window, interpolate_at_l0
from analysis.repeats import counted, noun
from analysis.style import metric, setting
from analysis.table import LEARNING_RATES, over_seeds

CLOSE = 0.05
"""L0s that differ by a smaller fraction are the same point of a front."""
MISSED = 0.1
"""Largest relative error of L0 that still hits a target."""
UNRESPONSIVE_FACTOR = 2.0
"""L0 must respond to a change of the coefficient by this factor."""
DENSE = 0.25
"""A larger share of latents active per token is no sparse code."""
NEAR_THE_END = 0.1
"""Part of a searched range, in ln lr, that counts as its end."""
MATCHED_LEVELS = 5
"""L0s at which the fronts of learning rates are compared."""
ENOUGH_POINTS = 3
"""Sparsity levels that make a front."""
MANY_DEAD = 0.2
"""Share of dead latents that deserves a second look."""
LISTED = 6
"""Settings that a sentence names; of further ones it tells the number."""

Row = Any
"""A row of a table, as pandas gives it."""


def learning_rate_at_edge(runs: pd.DataFrame) -> list[str]:
    """The best learning rate is the lowest or the highest that was tried."""
    texts = (_edge(str(variant), tried) for variant, tried in runs.groupby("variant"))
    return [text for text in texts if text]


def close_points(runs: pd.DataFrame) -> list[str]:
    """Settings, alike but for their sparsity, whose L0s differ by less than CLOSE; without those of `dead_zone`."""
    return [
        f"L0 is {_values(chain, 'l0', runs)}: less than {100 * CLOSE:g} % apart."
        for ladder in _ladders(runs)
        for chain in _chains(ladder.sort_values("l0"), lambda one, other: _close(one, other) and not _unresponsive(one, other))
    ]


def missed_target(runs: pd.DataFrame) -> list[str]:
    """Settings of which a repeat ended further than MISSED from the L0 asked for."""
    finished = runs[(runs["status"] == "finished") & runs["l0_error"].notna()]
    missing = finished.loc[finished["l0_error"].abs() > MISSED, "setting_hash"]
    missed = []
    for _, seeds in finished[finished["setting_hash"].isin(missing)].groupby("setting_hash", sort=False):
        off = seeds[seeds["l0_error"].abs() > MISSED]
        worst = off.iloc[int(off["l0_error"].abs().argmax())]
        which = f" at worst, {len(off)} of {len(seeds)} {noun(seeds)}s" if len(seeds) > 1 else ""
        missed.append(f"{metric('l0', worst['l0'])} ({metric('l0_error', worst['l0_error'])}{which}) at {_name(worst, runs)}")
    return [f"L0 is {_listed(missed)}."] if missed else []


def dead_zone(runs: pd.DataFrame) -> list[str]:
    """Coefficients that L0 does not respond to, or so weak or strong that nothing sparse, or nothing at all, was learned."""
    texts = [
        f"L0 is {_values(chain, 'l0', runs)}: it does not respond to the coefficient there."
        for ladder in _ladders(runs)
        for chain in _chains(ladder.sort_values("sparsity_value"), lambda one, other: _close(one, other) and _unresponsive(one, other))
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


def few_points(runs: pd.DataFrame) -> list[str]:
    """Fewer than ENOUGH_POINTS sparsity levels have finished."""
    n_finished, n_asked = (len(_level(some).unique()) for some in (runs[(runs["status"] == "finished") & (runs["l0"] > 0)], runs))
    return [f"{n_finished} of {counted(n_asked, 'sparsity level')} finished."] if n_finished < ENOUGH_POINTS else []


def dead_latents(runs: pd.DataFrame) -> list[str]:
    """Settings with more than MANY_DEAD of their latents never active on the held-out text; collapsed ones are `dead_zone`'s."""
    settings = over_seeds(runs)
    many = settings[(settings["dead_fraction"] > MANY_DEAD) & (settings["l0"] >= 1)]
    return [f"The share of dead latents is {_values(many, 'dead_fraction', runs)}."] if len(many) else []


def _edge(variant: str, tried: pd.DataFrame) -> str:
    """What to say about the learning rates of one variant; empty where the best one has neighbours on both sides, or is not known."""
    rates = sorted(float(rate) for rate in tried["lr"].dropna().unique())
    winners = _winners(tried) if len(rates) > 1 else []
    if not winners:
        return ""
    low, high, searched = _asked_rates(tried, rates)
    margin = (high / low) ** NEAR_THE_END if searched else 1.0
    where = f"With {variant}, FVU" if variant else "FVU"
    among = _listed(f"{rate:g}" for rate in rates) if len(rates) <= LISTED else f"{len(rates)} from {rates[0]:g} to {rates[-1]:g}"
    at_ends = (
        ("lowest", "lower", low, [(rate, gain) for rate, gain in winners if rate <= low * margin], 0.5),
        ("highest", "upper", high, [(rate, gain) for rate, gain in winners if rate >= high / margin], 2.0),
    )
    for name, side, end, best, further in at_ends:
        if 2 * len(best) > len(winners):
            place = f"near the {side} end of the learning rates asked for, {low:g} to {high:g}" if searched else ""
            return (
                f"{where} is lowest {place or f'at the {name} learning rate, {end:g}'}, at {len(best)} of "
                f"{counted(len(winners), 'sparsity level')}{_below_the_next([gain for _, gain in best])} (tried: {among}). "
                f"Try {further * end:g} too."
            )
    return ""


def _asked_rates(tried: pd.DataFrame, rates: Sequence[float]) -> tuple[float, float, bool]:
    """The ends of the learning rates that were asked for or tried, and whether a search could take any rate between them."""
    by_sweep = tried.attrs.get(LEARNING_RATES, {})
    architecture = str(tried["architecture"].iloc[0])
    asked = [by_sweep[sweep][architecture] for sweep in tried["sweep"].unique() if architecture in by_sweep.get(sweep, {})]
    low, high = min([rates[0], *(one["low"] for one in asked)]), max([rates[-1], *(one["high"] for one in asked)])
    return low, high, any(one["searched"] for one in asked)


def _below_the_next(gains: Sequence[float]) -> str:
    known = [gain for gain in gains if not np.isnan(gain)]
    return f", on average {100 * np.mean(known):.1f} % below the next best rate" if known else ""


def _winners(tried: pd.DataFrame) -> list[tuple[float, float]]:
    """Of every level that has one: the learning rate with the lowest FVU, and by which fraction it is below the next (NaN without one)."""
    settings = over_seeds(tried.dropna(subset=["l0", "fvu"]))
    pending = tried["status"].isin(["trained", "missing"])
    winners = []
    for level, runs in tried.groupby(_asked_l0(tried)):
        at_level = settings[_asked_l0(settings) == level]
        hits = at_level[(at_level["l0"] / level - 1).abs() <= MISSED]
        # A rate whose rivals missed the level has won nothing; one whose rivals were pruned or diverged has.
        if runs["lr"].nunique() > 1 and not pending[runs.index].any() and (len(hits) > 1 or len(hits) == len(at_level) == 1):
            winners.append(_best(hits.set_index("lr")["fvu"]))
    given = settings[_asked_l0(settings).isna()]
    window = common_window(given, "fvu", by="lr", direction="min")
    if window and not pending[_asked_l0(tried).isna()].any():
        fvus = interpolate_at_l0(given, np.geomspace(*window, MATCHED_LEVELS).tolist(), "fvu", by="lr", direction="min")
        winners += [_best(at_level) for _, at_level in fvus.dropna(axis="columns").items()]
    return winners


def _best(fvus: "pd.Series[float]") -> tuple[float, float]:
    """As `_winners`, of one level: FVU by learning rate."""
    ranked = fvus.sort_values()
    return float(ranked.index[0]), float(1 - ranked.iloc[0] / ranked.iloc[1]) if len(ranked) > 1 else np.nan


def _asked_l0(table: pd.DataFrame) -> "pd.Series[float]":
    """The L0 that was asked for, as a target or as k; NaN where a coefficient was given."""
    return table["target_l0"].fillna(table["sparsity_value"].where(table["sparsity_parameter"] == "k"))


def _level(table: pd.DataFrame) -> "pd.Series[float]":
    """What tells sparsity levels apart: the L0 asked for or else, below 0, the coefficient given."""
    return _asked_l0(table).fillna(-table["sparsity_value"])


def _is_dense(settings: pd.DataFrame) -> "pd.Series[bool]":
    return _asked_l0(settings).isna() & (settings["l0"] > DENSE * settings["d_sae"].astype(float))


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
    breaks = [place for place in range(1, len(rows)) if not together(rows[place - 1], rows[place])]
    for start, end in zip([0, *breaks], [*breaks, len(rows)], strict=True):
        if end - start > 1:
            yield ladder.iloc[start:end]


def _close(one: Row, other: Row) -> bool:
    return bool(max(one["l0"], other["l0"]) < (1 + CLOSE) * min(one["l0"], other["l0"]))


def _unresponsive(one: Row, other: Row) -> bool:
    """Whether coefficients differ so much that L0 should."""
    low, high = sorted([one["sparsity_value"], other["sparsity_value"]])
    return bool(pd.isna(one["target_l0"]) and one["sparsity_parameter"] != "k" and high >= UNRESPONSIVE_FACTOR * low)


def _values(settings: pd.DataFrame, column: str, runs: pd.DataFrame) -> str:
    """E.g. "26.6 at l1_coefficient=1 and 26.4 at l1_coefficient=10"."""
    return _listed([f"{metric(column, row[column])} at {_name(row, runs)}" for _, row in settings.iterrows()])


def _name(row: Row, runs: pd.DataFrame) -> str:
    return setting(row, with_lr=runs["lr"].nunique() > 1)


def _listed(items: Iterable[str]) -> str:
    *first, last = items
    if len(first) >= LISTED:
        first, last = first[: LISTED - 1], f"{len(first) - LISTED + 2} more"
    return f"{', '.join(first)} and {last}" if first else last
