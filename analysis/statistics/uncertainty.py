"""95 % intervals: of a setting, of a front at an L0, of a front everywhere (a band), of a difference between two fronts.

Two things are drawn at random, training (seeds) and text (documents), and their variances add:

- **Seeds**: t, never a bootstrap, which at three seeds covers 75 %. The spread is that of the curves at matched L0, pooled over the levels
  of an arm (`curves.Spread`).
- **Documents**: a bootstrap, paired: one draw for all runs (`samples.py`), every curve read anew in each draw. The seeds' spread contains
  how differently documents treat different seeds already, so that part is subtracted: with v_s the bootstrap variance of each of n seeds
  and v that of their mean, it is (mean v_s - v) / (n - 1).

What this rests on, and how often the intervals cover, is in docs/statistics.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from analysis.estimates import Band, Estimate
from analysis.interpolation import FloatArray
from analysis.statistics.curves import Curves, Parts, Spread, weights_of
from analysis.statistics.samples import ALL, Samples

LEVEL = 0.95
"""Of every interval."""
BAND_PLACES = 48
"""Places of a band."""


@dataclass(frozen=True, slots=True)
class Sum:
    """A weighted sum of an arm's curve over places: its value at one L0, its mean over a window."""

    values: FloatArray
    """[S] of each repeat, on all documents."""
    seeds: Parts
    """Variance of the mean of S repeats; empty with one."""
    own: Parts
    """Of `seeds`, what comes on top of the variance of the mean over levels, times `scale` squared; empty with one repeat."""
    scale: float
    """As `Spread.scale`."""
    draws: FloatArray | None
    """[B, S]."""

    @property
    def mean(self) -> float:
        """Over repeats."""
        return float(self.values.mean())


@dataclass(frozen=True)
class Read:
    """An arm's curves, read at some places: every sum over these places has a variance."""

    curves: Curves
    spread: Spread | None
    """None with one repeat."""
    values: FloatArray
    """[S, P]."""
    draws: FloatArray | None
    """[B, S, P]."""
    weights: FloatArray
    """[P, L]."""

    @classmethod
    def of(cls, curves: Curves, places: FloatArray) -> "Read":
        """Read at `places`, ln L0."""
        at_levels = curves.at(curves.levels)
        spread = Spread.of(at_levels) if len(at_levels) > 1 else None
        weights = weights_of(curves.levels, at_levels.mean(axis=0), places)
        return cls(curves, spread, curves.at(places), curves.draws_at(places), weights)

    def sum(self, coefficients: FloatArray, places: slice) -> Sum:
        """The sum over a slice of the places."""
        values = self.values[:, places] @ coefficients
        draws = None if self.draws is None else self.draws[:, :, places] @ coefficients
        if self.spread is None:
            return Sum(values, [], [], 1.0, draws)
        spread, weights = self.spread, coefficients @ self.weights[places]
        seeds, own = (
            [(variance / spread.n, df) for variance, df in parts] for parts in (spread.parts(weights), [spread.beyond_mean(weights)])
        )
        return Sum(values, seeds, own, spread.scale(weights), draws)


def estimate_at(read: Read, place: int, *, extrapolated: bool = False) -> Estimate:
    """Value of an arm at one of the places that were read."""
    one = read.sum(np.ones(1), slice(place, place + 1))
    samples = read.curves.samples
    documents = documents_of([one], one.draws, samples)
    return made(one.mean, one.seeds, documents, n_seeds=len(one.values), **_of(samples), extrapolated=extrapolated)


def combined(parts: Parts) -> tuple[float, float]:
    """A sum of variances, and its degrees of freedom: the harmonic mean of the parts', each weighted with its share.

    Satterthwaite's formula gives more, and intervals that cover 88 to 93 % where a part with one or two degrees of freedom is most of the
    sum; these cover 94 to 97 %.
    """
    total = float(sum(variance for variance, _ in parts))
    if total <= 0:
        return 0.0, float(min(df for _, df in parts))
    return total, total / float(sum(variance / df for variance, df in parts))


def satterthwaite(parts: Parts) -> tuple[float, float]:
    """A sum of variances of one kind, and its degrees of freedom (Satterthwaite 1946, Biometrics Bulletin 2)."""
    total = float(sum(variance for variance, _ in parts))
    if total <= 0:
        return 0.0, float(min(df for _, df in parts))
    return total, total**2 / float(sum(variance**2 / df for variance, df in parts))


def made(
    value: float,
    seeds: Parts,
    documents: Parts,
    *,
    n_seeds: int,
    n_documents: int,
    raw: bool,
    relative: bool = False,
    extrapolated: bool = False,
) -> Estimate:
    """An estimate on the metric's own scale from one on the scale of the samples.

    Args:
        raw: that scale is the metric's own, not its logarithm.
        relative: the value is a difference of two.
    """
    known: Any = {"n_seeds": n_seeds, "n_documents": n_documents, "extrapolated": extrapolated}
    known |= {"relative": relative and not raw, "raw": raw}
    if not seeds and not documents:
        return Estimate(shown(value, relative=relative, raw=raw), **known)
    variance, df = combined([*seeds, *documents])
    se = float(np.sqrt(variance))
    reach = float(stdtrit(df, (1 + LEVEL) / 2)) * se
    low, middle, high = (shown(one, relative=relative, raw=raw) for one in (value - reach, value, value + reach))
    share = float(sum(part for part, _ in seeds)) / variance if variance else None
    return Estimate(middle, low, high, se, df, **known, share_of_seeds=share)


def _of(samples: Samples) -> Any:
    return {"n_documents": samples.n_documents, "raw": samples.raw}


def shown(value: float, *, relative: bool, raw: bool) -> float:
    """A number on the scale of the samples, for readers: of a difference of logarithms, the ratio minus 1."""
    return float(value if raw else np.expm1(value) if relative else np.exp(value))


def documents_of(sums: Sequence[Sum], draws: FloatArray | None, samples: Samples) -> Parts:
    """Variance over documents of a sum of arms' means over repeats, less what the spread over seeds contains already.

    Args:
        sums: of the arms; empty where no spread over seeds is counted.
        draws: [B] of the sum, or [B, S] of a single arm.
    """
    if draws is None:
        return []
    total = (draws if draws.ndim == 1 else draws.mean(axis=1)).var(ddof=1)
    for one in sums:
        if one.draws is not None and one.draws.shape[1] > 1:
            own, mean = one.draws.var(axis=0, ddof=1).mean(), one.draws.mean(axis=1).var(ddof=1)
            total -= (own - mean) / (one.draws.shape[1] - 1)
    return [(samples.correction * max(float(total), 0.0), samples.df)]


def band_of(curves: Curves) -> Band:
    """A front with its interval, between the ends that every repeat was measured to."""
    low, high = curves.span
    places = np.linspace(low, high, BAND_PLACES if high > low else 1)
    read = Read.of(curves, places)
    estimates = [estimate_at(read, place) for place in range(len(places))]
    return Band(
        tuple(np.exp(places).tolist()),
        tuple(one.value for one in estimates),
        tuple(one.low for one in estimates),
        tuple(one.high for one in estimates),
    )


def of_runs(table: pd.DataFrame, samples: Samples) -> dict[str, Estimate]:
    """Run id -> its value on its own, with the interval over documents alone."""
    return {str(table["run_id"].iloc[row]): _over_documents(samples, np.array([index])) for index, row in enumerate(samples.rows.tolist())}


def _over_documents(samples: Samples, runs: "np.ndarray") -> Estimate:
    value = float(samples.y[ALL][runs].mean())
    draws = None if samples.y_draws is None else samples.y_draws[ALL][:, runs].mean(axis=1)
    return made(value, [], documents_of([], draws, samples), n_seeds=1, **_of(samples))


def of_settings(samples: Samples, runs: "np.ndarray", setting: int, spread: Spread | None) -> Estimate:
    """Mean over the repeats of one setting, at their own L0s.

    Args:
        runs: [settings, repeats] of an arm, every one of them a run.
        spread: of all of these settings.
    """
    own = runs[setting]
    draws = None if samples.y_draws is None else samples.y_draws[ALL][:, own]
    weights = np.eye(len(runs))[setting]
    seeds = [] if spread is None else [(variance / spread.n, df) for variance, df in spread.parts(weights)]
    one = Sum(samples.y[ALL][own], seeds, [], 1.0, draws)
    return made(one.mean, seeds, documents_of([one], draws, samples), n_seeds=len(own), **_of(samples))
