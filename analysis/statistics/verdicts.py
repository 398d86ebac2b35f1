"""From differences and their variances to verdicts: Holm over all pairs, equivalence, and what it would have taken to tell more apart."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import nctdtrinc, stdtr, stdtrit

from analysis.estimates import Verdict
from analysis.statistics.curves import Parts
from analysis.statistics.uncertainty import combined

ALPHA = 0.05
"""Chance of a wrong "better" among all pairs of a comparison, if all arms are the same."""
POWER = 0.8
MOST_SEEDS = 100
"""Seeds beyond which no number is given."""
MOST_DOCUMENTS = 100
"""Times the documents there are, likewise."""


@dataclass(frozen=True, slots=True)
class Contrast:
    """A mean difference, on the scale of the samples."""

    gap: float
    seeds: Parts
    """Empty where nothing is known about seeds."""
    documents: Parts
    n_seeds: int
    n_documents: int
    df_documents: float
    margin: float
    """What counts as equivalent, on the same scale; 0 where nothing does."""


@dataclass(frozen=True, slots=True)
class Judged:
    """What the tests say about a difference, on the scale of the samples."""

    p: float
    p_adjusted: float
    adjusted: tuple[float, float]
    verdict: Verdict
    probability_below: float
    """That the true difference is below 0."""
    smallest: float
    seeds_needed: int | None
    documents_needed: int | None


def judge(tests: Sequence[Contrast]) -> list[Judged]:
    """Judge all pairs of a comparison together."""
    variances = [combined([*test.seeds, *test.documents]) for test in tests]
    scores = [_score(test.gap, variance) for test, (variance, _) in zip(tests, variances, strict=True)]
    p = np.array([2 * float(stdtr(df, -abs(score))) for score, (_, df) in zip(scores, variances, strict=True)])
    p_outside = np.array(
        [float(stdtr(df, _score(abs(test.gap) - test.margin, variance))) for test, (variance, df) in zip(tests, variances, strict=True)]
    )
    adjusted, levels = holm(p)
    outside, _ = holm(p_outside)
    return [
        _judged(test, *variances[index], p[index], adjusted[index], levels[index], outside[index], scores[index])
        for index, test in enumerate(tests)
    ]


def holm(p: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Adjusted p-values, and the level at which each hypothesis was tested: that of the first one kept for all after it.

    Holm (1979), "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6.
    """
    order, n = np.argsort(p, kind="stable"), len(p)
    adjusted = np.minimum(np.maximum.accumulate((n - np.arange(n)) * p[order]), 1.0)
    stop = int(np.argmax(adjusted >= ALPHA)) if (adjusted >= ALPHA).any() else n - 1
    levels = ALPHA / (n - np.minimum(np.arange(n), stop))
    result = np.empty((2, n))
    result[:, order] = adjusted, levels
    return result[0], result[1]


def _judged(
    test: Contrast, variance: float, df: float, p: float, p_adjusted: float, level: float, p_outside: float, score: float
) -> Judged:
    se, here = float(np.sqrt(variance)), "" if test.seeds else " on this text"
    critical = float(stdtrit(df, 1 - level / 2))
    verdict = "better" if p_adjusted < ALPHA else "equivalent" if p_outside < ALPHA else "not separable"
    seeds, documents = (None, None) if verdict != "not separable" else _needed(test, level)
    return Judged(
        p=float(p),
        p_adjusted=float(p_adjusted),
        adjusted=(test.gap - critical * se, test.gap + critical * se),
        verdict=verdict + here if verdict != "not separable" else verdict,  # type: ignore[arg-type]
        probability_below=float(stdtr(df, -score)),
        smallest=float(_found_with_power(df, level)) * se,
        seeds_needed=seeds,
        documents_needed=documents,
    )


def _score(value: float, variance: float) -> float:
    """Value in standard errors; where nothing varies, any difference is certain."""
    return value / float(np.sqrt(variance)) if variance > 0 else float(np.sign(value)) * np.inf if value else 0.0


def _found_with_power(df: "float | NDArray[np.float64]", level: float) -> "float | NDArray[np.float64]":
    """True difference, in standard errors, that a two-sided test at `level` finds with POWER: from the noncentral t distribution."""
    return nctdtrinc(df, 1 - POWER, stdtrit(df, 1 - level / 2))


def _needed(test: Contrast, level: float) -> tuple[int | None, int | None]:
    """Seeds that would tell the difference apart, and, where documents are the larger part of the variance, documents."""
    of_seeds, of_documents = sum(part for part, _ in test.seeds), sum(part for part, _ in test.documents)
    seeds = documents = None
    if test.seeds:
        numbers = np.arange(test.n_seeds + 1, MOST_SEEDS + 1)
        variance = of_seeds * test.n_seeds / numbers + of_documents
        df_now = combined(test.seeds)[1]
        df = _satterthwaite(of_seeds * test.n_seeds / numbers, df_now * (numbers - 1) / (test.n_seeds - 1), of_documents, test.df_documents)
        enough = abs(test.gap) >= _found_with_power(df, level) * np.sqrt(variance)
        seeds = int(numbers[enough][0]) if enough.any() else None
    if of_documents > of_seeds:
        times = np.geomspace(1.25, MOST_DOCUMENTS, 24)
        variance = of_seeds + of_documents / times
        df_seeds = combined(test.seeds)[1] if test.seeds else 1.0
        df = _satterthwaite(np.full(len(times), of_seeds), np.full(len(times), df_seeds), of_documents / times, test.df_documents * times)
        enough = abs(test.gap) >= _found_with_power(df, level) * np.sqrt(variance)
        documents = round(float(times[enough][0]) * test.n_documents) if enough.any() else None
    return seeds, documents


def _satterthwaite(
    a: NDArray[np.float64], df_a: NDArray[np.float64], b: "float | NDArray[np.float64]", df_b: "float | NDArray[np.float64]"
) -> NDArray[np.float64]:
    return np.asarray((a + b) ** 2 / (a**2 / df_a + (b**2 / df_b if np.any(df_b) else 0.0)))
