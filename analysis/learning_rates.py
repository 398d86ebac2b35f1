"""Is the best learning rate at the edge of those that were tried?

- Learning rates are compared at equal sparsity, because FVU falls with L0. Where an L0 was requested (a target, or k), a level is a
  requested L0, and settings that missed it do not take part. Where a coefficient was given, levels are MATCHED_LEVELS L0s, evenly spaced
  in ln L0, at which the fronts of the rates are read. The rate with the lowest FVU wins a level. An edge of the range is reported when
  it wins more than half of the levels: a mean over levels would need every rate at every level, which pruning does not leave.
- The range of rates is what was tried, so that a rate whose runs all diverged or were pruned bounds it, and what the definitions of all
  launches request. Where a search may take any rate of a range, one within NEAR_THE_END of its ends, in ln lr, is at the edge. A level
  with runs that are yet to finish has no winner.
"""

import numpy as np
import pandas as pd

from analysis.pareto import common_window, interpolate_at_l0
from analysis.table import LEARNING_RATES, over_seeds
from analysis.words import LISTED, counted, listed

MISSED = 0.1
"""Largest relative error of L0 that still hits a target."""
NEAR_THE_END = 0.1
"""Part of a searched range, in ln lr, that counts as its end."""
MATCHED_LEVELS = 5
"""L0s at which the fronts of learning rates are compared."""


def edge_of_rates(variant: str, tried: pd.DataFrame) -> str:
    """Finding about the learning rates of one variant; empty where the best one has neighbours on both sides, or is unknown."""
    rates = sorted(float(rate) for rate in tried["lr"].dropna().unique())
    winners = _winners(tried) if len(rates) > 1 else []
    if not winners:
        return ""
    architecture = str(tried["architecture"].iloc[0])
    by_sweep = [tried.attrs.get(LEARNING_RATES, {}).get(sweep, {}) for sweep in tried["sweep"].unique()]
    requested = [by_architecture[architecture] for by_architecture in by_sweep if architecture in by_architecture]
    low, high = min([rates[0], *(span["low"] for span in requested)]), max([rates[-1], *(span["high"] for span in requested)])
    searched = any(span["searched"] for span in requested)
    margin = (high / low) ** NEAR_THE_END if searched else 1.0
    ends = (
        ("lowest", "lower", low, [gain for rate, gain in winners if rate <= low * margin], 0.5),
        ("highest", "upper", high, [gain for rate, gain in winners if rate >= high / margin], 2.0),
    )
    for name, side, end, gains, factor in ends:
        if 2 * len(gains) > len(winners):
            near = f"near the {side} end of the learning rates requested, {low:g} to {high:g}"
            known = [gain for gain in gains if not np.isnan(gain)]
            below = f", on average {100 * np.mean(known):.1f} % below the next best rate" if known else ""
            among = listed(f"{rate:g}" for rate in rates) if len(rates) <= LISTED else f"{len(rates)} from {rates[0]:g} to {rates[-1]:g}"
            return (
                f"{f'With {variant}, ' if variant else ''}FVU is lowest {near if searched else f'at the {name} learning rate, {end:g}'}, "
                f"at {len(gains)} of {counted(len(winners), 'sparsity level')}{below} (tried: {among}). Try {factor * end:g} too."
            )
    return ""


def _winners(tried: pd.DataFrame) -> list[tuple[float, float]]:
    """Per level that has one: the learning rate with the lowest FVU, and by which fraction it is below the next (NaN without one)."""
    settings = over_seeds(tried.dropna(subset=["l0", "fvu"]))
    settings = settings.assign(level=requested_l0(settings))
    by_level = dict(list(settings.groupby("level")))
    pending, levels, winners = tried["status"].isin(["trained", "missing"]), requested_l0(tried), []
    for level, runs in tried.groupby(levels):
        at_level = by_level.get(level, settings.iloc[:0])
        hits = at_level[(at_level["l0"] / level - 1).abs() <= MISSED]
        # A rate whose rivals missed the level has won nothing; one whose rivals were pruned or diverged has.
        if runs["lr"].nunique() > 1 and not pending[runs.index].any() and (len(hits) > 1 or len(hits) == len(at_level) == 1):
            winners.append(_best(hits.set_index("lr")["fvu"]))
    given = settings[settings["level"].isna()]
    window = common_window(given, "fvu", by="lr", direction="min")
    if window and not pending[levels.isna()].any():
        fvus = interpolate_at_l0(given, np.geomspace(*window, MATCHED_LEVELS).tolist(), "fvu", by="lr", direction="min")
        winners += [_best(at_level) for _, at_level in fvus.dropna(axis="columns").items()]
    return winners


def _best(fvus: "pd.Series[float]") -> tuple[float, float]:
    """As `_winners`, of one level: FVU by learning rate."""
    ranked = fvus.sort_values()
    return float(ranked.index[0]), float(1 - ranked.iloc[0] / ranked.iloc[1]) if len(ranked) > 1 else np.nan


def requested_l0(table: pd.DataFrame) -> "pd.Series[float]":
    """The L0 that was requested, as a target or as k; NaN where a coefficient was given."""
    return table["target_l0"].fillna(table["sparsity_value"].where(table["sparsity_parameter"] == "k"))
