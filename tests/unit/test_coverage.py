"""How often 95 % intervals cover the truth of simulated sweeps, and how often equal architectures are called different.

docs/statistics.md has the shares in 1,000 sweeps each; here are fewer, with bounds three standard errors wide.
"""

import numpy as np
import pytest
from simulated_sweeps import Truth, draw

from analysis.statistics import samples
from analysis.statistics.parts import Part
from analysis.statistics.uncertainty import LEVEL, estimate_at, made
from analysis.statistics.verdicts import Contrast, judge

pytestmark = pytest.mark.slow

TWO, FOUR = {"a": 0.08, "b": 0.07}, dict.fromkeys("abcd", 0.08)
N_SWEEPS = 80


def shares(truth: Truth, n_sweeps: int) -> dict[str, float]:
    """Share of intervals that cover, of values at L0 12 and 32 and of mean differences; share of sweeps with any pair told apart."""
    generator = np.random.default_rng(len(truth.arms) + truth.n_seeds)
    covered: dict[str, list[bool]] = {"value": [], "gap": [], "apart": []}
    for _ in range(n_sweeps):
        table, documents = draw(truth, generator)
        part = Part.of("", table, "fvu", by="architecture", sign=1.0, l0s=(12.0, 32.0), pairs=None, equal_tries=False, documents=documents)
        for arm, read in part.reads.items():
            for place, l0 in enumerate((12.0, 32.0)):
                one = estimate_at(read, place)
                covered["value"].append(bool(one.low is not None and one.high is not None and one.low < truth.fvu(arm, l0) < one.high))
        tests = []
        for plan in part.plans:
            gap = part.mean(plan)
            assert gap is not None
            about = {"n_seeds": truth.n_seeds, "n_documents": truth.n_documents}
            estimate = made(gap.value, gap.seeds, gap.documents, raw=False, relative=True, **about)
            true = truth.arms[plan.a] / truth.arms[plan.b] - 1
            covered["gap"].append(bool(estimate.low is not None and estimate.high is not None and estimate.low < true < estimate.high))
            tests.append(Contrast(gap.value, gap.seeds, gap.documents, truth.n_seeds, truth.n_documents, part.samples.df, 0.05))
        covered["apart"].append(any(one.verdict.startswith("better") for one in judge(tests)))
    return {name: float(np.mean(found)) for name, found in covered.items()}


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
    ],
    ids=["3 seeds", "2 seeds", "5 seeds", "1 seed", "luck over levels", "luck over arms", "documents matter"],
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
    assert shares(Truth({"a": 0.08, "b": 0.08}, n_documents=0, seed_noise=0.01), 400)["apart"] < 0.06


def test_planted_differences_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "N_DRAWS", 200)
    assert shares(Truth(TWO), 40)["apart"] > 0.9  # 12.5 % at three seeds of 3 % spread
