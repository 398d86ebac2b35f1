"""The curves of an arm, one per repeat, read at any L0: on all documents, and in every draw of them; and how far they spread over seeds.

Shape letters: S repeats, B draws of documents, P places, L reference levels.

An estimate is, to first order, a weighted sum of a repeat's deviations at the arm's levels. With v_l = weight · standard deviation of level
l, and deviations of one seed that correlate alike between all levels, its variance over seeds is

    within · (sum v_l² - (sum v_l)² / L)  +  between · (sum v_l)² / L

where `within` and `between` are the mean squares of the standardized deviations inside a seed and of the seeds' means (a seed that is lucky
at one level is often lucky at the others: then `between` is the larger one). Both are unbiased however strong that is. What `between` has
beyond `within` is known from S - 1 degrees of freedom, the rest from (S - 1) L.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analysis import interpolation
from analysis.interpolation import FloatArray
from analysis.statistics.choosing import Grid, Reading, front_of, readings
from analysis.statistics.samples import ALL, Samples

POOLING_LEVEL = 0.2
"""Levels share one variance unless Bartlett's test rejects that at this level. It is a generous one: pooling wrongly costs coverage, not
pooling wrongly costs only width."""

Parts = list[tuple[float, float]]
"""Of a variance that is a sum: (variance, degrees of freedom)."""


@dataclass(frozen=True, slots=True)
class Curves:
    """The curves of one arm."""

    samples: Samples
    grid: Grid
    readings: list[list[Reading]]
    """Per repeat."""
    levels: FloatArray
    """[L] mean ln L0 of the settings on the front, ascending."""

    @classmethod
    def of(cls, samples: Samples, grid: Grid, sign: float, *, tries: int | None = None) -> "Curves":
        """Choose the settings that the curves go through."""
        front = grid.runs[front_of(samples, grid.runs, ALL, sign, is_chosen=grid.is_chosen)]
        known = front >= 0
        x = np.where(known, samples.x[ALL][front], 0.0).sum(axis=1) / known.sum(axis=1)
        return cls(samples, grid, readings(samples, grid, sign, tries=tries), np.unique(x))

    @property
    def n_repeats(self) -> int:
        """How many repeats have a curve."""
        return sum(bool(own) for own in self.readings)

    @property
    def span(self) -> tuple[float, float]:
        """ln L0s between which every repeat was measured; of its curves through few of many settings, half of them."""
        ends = [[(x.min(), x.max()) for x in map(self._knots, own)] for own in self.readings if own]
        lows = [np.quantile([low for low, _ in own], 0.5, method="higher") for own in ends]
        highs = [np.quantile([high for _, high in own], 0.5, method="lower") for own in ends]
        return float(max(lows)), float(min(highs))

    def reaches(self, at: FloatArray) -> "tuple[np.ndarray, np.ndarray]":
        """[P] where every repeat can be read (on at least half of its curves), and which of these places lie beyond an end of any."""
        reached, beyond = np.ones(len(at), dtype=bool), np.zeros(len(at), dtype=bool)
        for own in self.readings:
            if own:
                x = [self._knots(one) for one in own]
                reached &= np.mean([interpolation.reaches(knots, at) for knots in x], axis=0) >= 0.5
                beyond |= np.any([interpolation.is_beyond(knots, at) for knots in x], axis=0)
        return reached, reached & beyond

    def at(self, places: FloatArray) -> FloatArray:
        """[S, P] values on all documents."""
        return np.stack([self._mean(own, self.samples.x, self.samples.y, places) for own in self.readings if own])

    def draws_at(self, places: FloatArray) -> FloatArray | None:
        """[B, S, P] values in each draw of documents; None without documents."""
        x, y = self.samples.x_draws, self.samples.y_draws
        if x is None or y is None:
            return None
        return np.stack([self._mean(own, x, y, places) for own in self.readings if own], axis=1)

    def _knots(self, one: Reading) -> FloatArray:
        return self.samples.x[one.part][one.runs]

    def _mean(self, own: Sequence[Reading], x: FloatArray, y: FloatArray, places: FloatArray) -> FloatArray:
        """Mean over those curves of one repeat that reach each place; of all where none does. `x` and `y`: [3, ..., R]."""
        reach = np.array([interpolation.reaches(self._knots(one), places) for one in own])
        weights = np.where(reach.any(axis=0), reach, True) / np.where(reach.any(axis=0), reach.sum(axis=0), len(own))
        read = (interpolation.read(x[one.part][..., one.runs], y[one.part][..., one.runs], places) for one in own)
        return np.asarray(sum(weight * values for weight, values in zip(weights, read, strict=True)))


@dataclass(frozen=True, slots=True)
class Spread:
    """How the curves of an arm spread over its repeats, at matched L0."""

    n: int
    """S."""
    sd: FloatArray
    """[L] standard deviation of each level."""
    df: FloatArray
    """[L] degrees of freedom of each, as if no two levels were correlated."""
    pooled: bool
    p: float | None
    """Of Bartlett's test; None for a single level."""
    within: float
    between: float
    means: FloatArray
    """[S] each repeat's mean deviation over the levels."""

    @classmethod
    def of(cls, values: FloatArray) -> "Spread":
        """The spread of values [S, L] around each level's mean; S is at least 2."""
        n, n_levels = values.shape
        deviations = values - values.mean(axis=0)
        squares = (deviations**2).sum(axis=0)
        p = _bartlett(squares / (n - 1), n) if n_levels > 1 else None
        pooled = p is None or p >= POOLING_LEVEL
        kernel = np.ones((n_levels, n_levels)) if pooled else np.tri(n_levels, k=1) - np.tri(n_levels, k=-2)
        df = kernel.sum(axis=1) * (n - 1)
        sd = np.sqrt(kernel @ squares / df)
        standard = np.divide(deviations, sd, out=np.zeros_like(deviations), where=sd > 0)
        means = standard.mean(axis=1)
        between = n_levels * float((means**2).sum()) / (n - 1)
        rest = float(((standard - means[:, None]) ** 2).sum())
        within = rest / ((n - 1) * (n_levels - 1)) if n_levels > 1 else 0.0
        return cls(n, sd, df, pooled, p, within, between, deviations.mean(axis=1))

    def parts(self, weights: FloatArray) -> Parts:
        """Variance of one repeat's weighted sum of deviations, in two parts: as if levels were independent, and what a seed does to all.

        Args:
            weights: [L].
        """
        v, n_levels = weights * self.sd, len(self.sd)
        inside, common = max(float((v**2).sum() - v.sum() ** 2 / n_levels), 0.0), float(v.sum() ** 2 / n_levels)
        total = self.within * inside + self.between * common
        shared = min(max(self.between - self.within, 0.0) * common, total)
        return [(total - shared, self._local((self.n - 1) * n_levels, v)), (shared, self.n - 1)]

    def beyond_mean(self, weights: FloatArray) -> tuple[float, float]:
        """Variance, and its degrees of freedom, that a weighted sum has beyond that of `scale` times the mean over levels."""
        v = weights * self.sd
        squares, total = (self.sd**2).sum(), self.sd.sum()
        inside = (v**2).sum() - v.sum() ** 2 * squares / total**2 if total > 0 else 0.0
        return self.within * max(float(inside), 0.0), self._local((self.n - 1) * max(len(v) - 1, 1), v)

    def scale(self, weights: FloatArray) -> float:
        """How what is common to all levels enters a weighted sum, relative to the mean over levels: 1 where levels spread alike."""
        return float(weights @ self.sd / self.sd.mean()) if self.sd.any() else float(weights.sum())

    @property
    def variance_of_mean(self) -> float:
        """That which one repeat's mean over the levels would have if the levels of a seed did not correlate."""
        return float((self.sd**2).sum()) / len(self.sd) ** 2

    @property
    def df_of_mean(self) -> float:
        """Degrees of freedom of `variance_of_mean`: fewer where the levels of a seed correlate, since each then says less of its own."""
        n_levels = len(self.sd)
        correlation = max(self.between - self.within, 0.0) / max(self.between + (n_levels - 1) * self.within, 1e-300)
        df = (self.n - 1) * n_levels / (1 + (n_levels - 1) * correlation)
        return self._local(df, np.ones(n_levels) * self.sd)

    def _local(self, df: float, v: FloatArray) -> float:
        """Degrees of freedom, at most those of the levels' own standard deviations."""
        if self.pooled or not v.any():
            return float(df)
        return float(min(df, (v**2).sum() ** 2 / (v**4 / self.df).sum()))


def weights_of(levels: FloatArray, means: FloatArray, places: FloatArray) -> FloatArray:
    """[P, L] how much a curve at each place moves with its value at each level: derivatives of the curve through the means."""
    step = 1e-4 * (np.ptp(means) or 1.0)
    moved = means + step * np.eye(len(levels))
    here = interpolation.read(levels, means, places)
    there = interpolation.read(np.broadcast_to(levels, moved.shape), moved, places)
    return np.asarray((there - here).T / step)


def _bartlett(variances: FloatArray, n: int) -> float:
    """p of all levels having one variance, normal deviations (Bartlett 1937). 0 where a level has none and another has.

    Not Levene's or Brown and Forsythe's test: of 3 values a level, theirs reject 21 % or never where nothing is to be found (8 levels).
    """
    from scipy.special import chdtrc

    n_levels, df = len(variances), n - 1
    if not variances.any():
        return 1.0
    if not variances.all():
        return 0.0
    ratio = n_levels * df * np.log(variances.mean()) - df * np.log(variances).sum()
    return float(chdtrc(n_levels - 1, max(ratio, 0.0) / (1 + (n_levels + 1) / (3 * n_levels * df))))
