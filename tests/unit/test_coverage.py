"""How often 95 % intervals cover the truth of simulated sweeps, and how often equal architectures are called different.

docs/statistics.md has the shares in 1,000 sweeps each (`tests/interval_coverage.py`); here are fewer, with bounds three standard errors
wide.
"""

import numpy as np
import pytest
from interval_coverage import EQUAL, FOUR, TWO, shares
from simulated_sweeps import Truth

from analysis.statistics import samples
from analysis.statistics.uncertainty import LEVEL

pytestmark = pytest.mark.slow

N_SWEEPS = 80


@pytest.mark.parametrize(
    "truth",
    [
        Truth(TWO),
        Truth(TWO, n_seeds=2),
        Truth(TWO, n_seeds=5),
        Truth(TWO, n_seeds=1, level_noise=0.0),
        Truth(TWO, level_noise=0.02, seed_noise=0.02),
        Truth(TWO, shared_noise=0.03),
        Truth(TWO, document_noise=0.4, arm_document_noise=0.15),
        Truth(EQUAL, n_documents=20, length_noise=1.0),
    ],
    ids=["3 seeds", "2 seeds", "5 seeds", "1 seed", "luck over levels", "luck over arms", "documents matter", "few and unequal documents"],
)
def test_intervals_cover(truth: Truth, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "N_DRAWS", 200)
    found = shares(truth, N_SWEEPS)
    # Values of an arm at two L0s and of two arms hang together, so a share is as uncertain as that of the sweeps alone.
    slack = 3 * np.sqrt(LEVEL * (1 - LEVEL) / N_SWEEPS)
    assert LEVEL - slack - 0.01 < found["value"] and LEVEL - slack - 0.01 < found["gap"]


@pytest.mark.parametrize("n_seeds", [2, 3])
def test_equal_architectures_are_rarely_told_apart(n_seeds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "N_DRAWS", 200)
    found = shares(Truth(FOUR, n_seeds=n_seeds), N_SWEEPS)
    assert found["apart"] < 0.05 + 3 * np.sqrt(0.05 * 0.95 / N_SWEEPS)


def test_two_equal_architectures_without_documents_are_rarely_told_apart() -> None:
    """Nothing but two degrees of freedom and a part with more: the case in which Satterthwaite's formula says "better" 7 % of the time."""
    assert shares(Truth(EQUAL, n_documents=0, seed_noise=0.01), 400)["apart"] < 0.06


def test_planted_differences_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "N_DRAWS", 200)
    assert shares(Truth(TWO), 40)["apart"] > 0.9  # 12.5 % at three seeds of 3 % spread
