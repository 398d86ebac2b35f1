"""Rows that may be pooled, as arms whose curves are read once: at every place that any comparison of two arms needs.

The variance of a difference has three parts over seeds: what each arm's levels do on their own (`curves.Spread.parts`), and what a seed
does to an arm as a whole. The last is found from the seeds' own mean differences, seed by seed where all arms have the same repeats, so
that the luck that arms share cancels. A single pair at three seeds has two degrees of freedom for it, so it is pooled over the pairs: each
pair's variance is what independent levels would have, times one factor for all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
import pandas as pd

from analysis.documents import DocumentSums
from analysis.interpolation import FloatArray
from analysis.pareto import By
from analysis.statistics.curves import Curves, Parts, Spread
from analysis.statistics.horizontal import Crossing, crossings
from analysis.statistics.pooling import grids_of, repeats_of
from analysis.statistics.samples import Samples, samples_of
from analysis.statistics.uncertainty import Read, Sum, combined, documents_of, satterthwaite

WINDOW_PLACES = 24
"""Places that a mean over a window is made of."""
FEWEST_DF = 2
"""Degrees of freedom that comparing seed by seed must leave."""


@dataclass
class Side:
    """One arm. Its places are collected first, then read all at once."""

    curves: Curves
    repeats: tuple[str, ...]
    tries: int
    """Settings per level that it chooses among."""
    places: list[FloatArray] = field(default_factory=list)

    def add(self, places: FloatArray) -> slice:
        """Note places to read; which of all places they are."""
        start = sum(map(len, self.places))
        self.places.append(places)
        return slice(start, start + len(places))


@dataclass(frozen=True)
class Plan:
    """Where two arms are read."""

    a: str
    b: str
    l0s: tuple[slice, slice]
    window: tuple[float, float] | None
    """ln L0s that both fronts span."""
    mean: tuple[slice, slice] | None
    """Places evenly over the window."""
    l0_ratio: float | None
    """Mean difference of ln L0 at equal values; None where no value is reached by both."""
    crossings: tuple[Crossing, Crossing] | None
    crossed: tuple[slice, slice] | None


@dataclass(frozen=True)
class Difference:
    """Of two arms, `a` less `b`, on the scale of the samples, with the variances of what it is made of."""

    value: float
    seeds: Parts
    """Empty where an arm has a single repeat: nothing is known about seeds."""
    documents: Parts
    """Empty without documents."""


@dataclass
class Part:
    """Rows that may be pooled."""

    name: str
    samples: Samples
    sign: float
    """1 where a smaller value is better, -1 where a larger one is."""
    sides: Mapping[str, Side]
    plans: list[Plan]
    reads: Mapping[str, Read]
    seed_by_seed: bool
    """Whether differences are taken repeat by repeat."""
    common: Mapping[tuple[str, str], tuple[float, float]]
    """Pairs of arms with two repeats or more -> variance of the difference of their means over levels, and its degrees of freedom."""
    seeds_known: bool
    """Whether every row says which seed it is of."""

    @classmethod
    def of(
        cls,
        name: str,
        rows: pd.DataFrame,
        metric: str,
        *,
        by: By,
        sign: float,
        l0s: Sequence[float],
        pairs: Sequence[tuple[str, str]] | None,
        equal_tries: bool,
        documents: DocumentSums | None,
    ) -> "Part":
        """Choose settings, plan what is read, and read it."""
        samples = samples_of(rows, metric, documents)
        grids = grids_of(rows, samples, by)
        most = min((grid.tries for grid in grids.values()), default=1) if equal_tries else None
        sides = {}
        for arm, grid in grids.items():
            curves = Curves.of(samples, grid, sign, tries=most)
            repeats = tuple(name for name, own in zip(repeats_of(rows, samples, grid), curves.readings, strict=True) if own)
            sides[arm] = Side(curves, repeats, min(grid.tries, most or grid.tries))
        compared = combinations(sides, 2) if pairs is None else [pair for pair in pairs if set(pair) <= set(sides)]
        plans = [_plan(sides, *_better_first(sides, a, b, sign), l0s, sign) for a, b in compared]
        reads = {arm: Read.of(side.curves, np.concatenate(side.places)) for arm, side in sides.items() if side.places}
        spreads = {arm: read.spread for arm, read in reads.items() if read.spread is not None}
        # Where that leaves two degrees of freedom: intervals from one are twelve standard errors wide.
        left = sum(spread.n - 1 for spread in spreads.values()) - max((spread.n - 1 for spread in spreads.values()), default=0)
        seed_by_seed = len({sides[arm].repeats for arm in spreads}) == 1 and left >= FEWEST_DF
        seeds_known = "seed" in rows and bool(rows["seed"].notna().all())
        return cls(name, samples, sign, sides, plans, reads, seed_by_seed, _common(spreads, seed_by_seed), seeds_known)

    def n_seeds(self, plan: Plan) -> int:
        """Repeats of the arm that has fewer."""
        return min(len(self.reads[arm].values) for arm in (plan.a, plan.b))

    def difference(self, plan: Plan, places: tuple[slice, slice], coefficients: tuple[FloatArray, FloatArray]) -> Difference:
        """The difference of two sums over places."""
        sums = [self.reads[arm].sum(own, at) for arm, own, at in zip((plan.a, plan.b), coefficients, places, strict=True)]
        common = self.common.get((plan.a, plan.b)) or self.common.get((plan.b, plan.a))
        seeds: Parts = []
        if common:
            variance, df = common
            seeds = [combined([*sums[0].own, *sums[1].own, (variance * ((sums[0].scale + sums[1].scale) / 2) ** 2, df)])]
        documents = documents_of(sums if seeds else [], _less(*sums), self.samples)
        return Difference(sums[0].mean - sums[1].mean, seeds, documents)

    def mean(self, plan: Plan) -> Difference | None:
        """The mean difference over the window, evenly in ln L0; None without one."""
        even = np.full(WINDOW_PLACES, 1 / WINDOW_PLACES)
        return self.difference(plan, plan.mean, (even, even)) if plan.mean else None

    def at(self, plan: Plan, index: int) -> Difference:
        """The difference at one of the matched L0s."""
        first, second = (slice(own.start + index, own.start + index + 1) for own in plan.l0s)
        return self.difference(plan, (first, second), (np.ones(1), np.ones(1)))

    def l0_ratio(self, plan: Plan) -> Difference | None:
        """The mean difference of ln L0 at equal values."""
        if plan.l0_ratio is None or plan.crossings is None or plan.crossed is None:
            return None
        a, b = plan.crossings
        moved = self.difference(plan, plan.crossed, (a.coefficients, b.coefficients))
        return Difference(plan.l0_ratio, moved.seeds, moved.documents)


def _better_first(sides: Mapping[str, Side], a: str, b: str, sign: float) -> tuple[str, str]:
    """The two arms with the better one, over the window, first: as a sentence about them would say it."""
    spans = [sides[arm].curves.span for arm in (a, b)]
    places = np.linspace(max(low for low, _ in spans), min(high for _, high in spans), WINDOW_PLACES)
    first, second = (sign * float(sides[arm].curves.at(places).mean()) for arm in (a, b))
    return (b, a) if second < first else (a, b)


def _plan(sides: Mapping[str, Side], a: str, b: str, l0s: Sequence[float], sign: float) -> Plan:
    """Note everything that is read of two arms."""
    first, second = sides[a], sides[b]
    at = np.log(np.asarray(l0s, dtype=float))
    slices = first.add(at), second.add(at)
    spans = first.curves.span, second.curves.span
    low, high = max(low for low, _ in spans), min(high for _, high in spans)
    middles = low + (high - low) * (np.arange(WINDOW_PLACES) + 0.5) / WINDOW_PLACES
    mean = (first.add(middles), second.add(middles)) if low < high else None
    found = crossings(first.curves, second.curves, sign)
    return Plan(
        a,
        b,
        slices,
        (low, high) if low < high else None,
        mean,
        found[0] if found else None,
        found[1:] if found else None,
        (first.add(found[1].places), second.add(found[2].places)) if found else None,
    )


def _common(spreads: Mapping[str, Spread], seed_by_seed: bool) -> dict[tuple[str, str], tuple[float, float]]:
    """`Part.common`."""
    if len(spreads) < 2:
        return {}
    df = sum(spread.n - 1 for spread in spreads.values()) - (max(spread.n - 1 for spread in spreads.values()) if seed_by_seed else 0)
    own: dict[tuple[str, str], tuple[float, float]] = {}
    factors = []
    for a, b in combinations(spreads, 2):
        one, other = spreads[a], spreads[b]
        own[a, b] = satterthwaite([(spread.variance_of_mean / spread.n, spread.df_of_mean) for spread in (one, other)])
        if seed_by_seed:
            seen = (one.means - other.means).var(ddof=1) / one.n
        else:
            seen = one.means.var(ddof=1) / one.n + other.means.var(ddof=1) / other.n
        if own[a, b][0] > 0:
            factors.append(seen / own[a, b][0])
    factor = float(np.mean(factors)) if factors else 1.0
    # Relative variances add. With a single pair, its own independent variance cancels.
    return {pair: (factor * variance, 1 / (1 / df + (1 - 1 / len(own)) / own_df)) for pair, (variance, own_df) in own.items()}


def _less(a: Sum, b: Sum) -> FloatArray | None:
    """[B] difference of the means over repeats in each draw."""
    return None if a.draws is None or b.draws is None else a.draws.mean(axis=1) - b.draws.mean(axis=1)
