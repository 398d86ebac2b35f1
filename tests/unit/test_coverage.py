"""How often 95 % intervals cover the truth of simulated sweeps, and how often equal architectures are called different.

docs/statistics.md has the shares in 1,000 sweeps each (`tests/interval_coverage.py`); here are fewer, with bounds three standard errors
wide.
"""

import numpy as np
import pytest
from interval_coverage import EQUAL, FOUR, TWO, shares
from scipy.special import stdtrit
from simulated_sweeps import Truth

from analysis.statistics import samples
from analysis.statistics.uncertainty import LEVEL, combined

N_SWEEPS = 60


@pytest.mark.slow
@pytest.mark.parametrize(
    "truth",
    [
        Truth(TWO),
        Truth(TWO, n_seeds=2),
        Truth(TWO, n_seeds=1, level_noise=0.0),
        Truth(TWO, level_noise=0.02, seed_noise=0.02),
        Truth(TWO, shared_noise=0.03),
        Truth(TWO, document_noise=0.4, arm_document_noise=0.15),
        Truth(EQUAL, n_documents=20, length_noise=1.0),
    ],
    ids=["3 seeds", "2 seeds", "1 seed", "luck over levels", "luck over arms", "documents matter", "few and unequal documents"],
)
def test_intervals_cover(truth: Truth, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "N_DRAWS", 200)
    found = shares(truth, N_SWEEPS)
    # Values of an arm at two L0s and of two arms hang together, so a share is as uncertain as that of the sweeps alone.
    slack = 3 * np.sqrt(LEVEL * (1 - LEVEL) / N_SWEEPS)
    assert LEVEL - slack - 0.01 < found["value"] and LEVEL - slack - 0.01 < found["gap"]


@pytest.mark.slow
def test_equal_architectures_are_rarely_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "N_DRAWS", 200)
    found = shares(Truth(FOUR), N_SWEEPS)
    assert found["apart"] < 0.05 + 3 * np.sqrt(0.05 * 0.95 / N_SWEEPS)


@pytest.mark.parametrize("share", [0.15, 0.5, 0.85])
@pytest.mark.parametrize(("df", "other"), [(2, 10), (2, 40), (4, 19), (10, 19)])
def test_a_sum_of_two_variances_covers(df: int, other: int, share: float) -> None:
    """Satterthwaite's formula covers less than 93 % where a part with two degrees of freedom is most of the sum."""
    generator, n, covered = np.random.default_rng(0), 3000, 0
    for one, rest, z in zip(generator.chisquare(df, n), generator.chisquare(other, n), generator.normal(size=n), strict=True):
        variance, degrees = combined([(share * one / df, df), ((1 - share) * rest / other, other)])
        covered += abs(z) < stdtrit(degrees, (1 + LEVEL) / 2) * np.sqrt(variance)
    assert 0.935 < covered / n < 0.98


@pytest.mark.slow
def test_planted_differences_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "N_DRAWS", 200)
    assert shares(Truth(TWO), 40)["apart"] > 0.9  # 12.5 % at three seeds of 3 % spread
