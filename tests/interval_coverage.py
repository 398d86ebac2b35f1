"""How often 95 % intervals cover the truth of simulated sweeps, and how often equal architectures are called different.

PYTHONPATH=. python tests/interval_coverage.py 1000              # the table of docs/statistics.md
PYTHONPATH=. python tests/interval_coverage.py 1000 "2 seeds"    # a row of it
"""

import sys

import numpy as np
from simulated_sweeps import Truth, draw

from analysis.statistics.margins import Ideal
from analysis.statistics.parts import Difference, Part
from analysis.statistics.uncertainty import estimate_at, made
from analysis.statistics.verdicts import Contrast, judge

L0S = (12.0, 32.0)
TWO, EQUAL, FOUR = {"a": 0.08, "b": 0.07}, dict.fromkeys("ab", 0.08), dict.fromkeys("abcd", 0.08)

CASES = {
    "two architectures, 3 seeds": Truth(TWO),
    "2 seeds": Truth(TWO, n_seeds=2),
    "5 seeds": Truth(TWO, n_seeds=5),
    "1 seed (text alone)": Truth(TWO, n_seeds=1, level_noise=0.0),
    "two equal architectures, 3 seeds": Truth(EQUAL),
    "four equal architectures, 3 seeds": Truth(FOUR),
    "four equal architectures, 2 seeds": Truth(FOUR, n_seeds=2),
    "half of the variance is the seed's, at all levels; four equal architectures": Truth(FOUR, level_noise=0.02, seed_noise=0.02),
    "half of the variance is the seed's, alike in both architectures": Truth(TWO, level_noise=0.02, shared_noise=0.02),
    "two equal architectures, no sums per document": Truth(EQUAL, n_documents=0, seed_noise=0.01),
    "no sums per document, 2 seeds": Truth(EQUAL, n_documents=0, seed_noise=0.01, n_seeds=2),
    "20 documents": Truth(EQUAL, n_documents=20),
    "20 documents, 1 seed": Truth(EQUAL, n_documents=20, n_seeds=1, level_noise=0.0),
    "lengths of documents spread by a factor of 4.5 (ln: 1.5)": Truth(EQUAL, length_noise=1.5),
    "documents differ by 50 % and by 20 % per architecture; 1 % spread of each run": Truth(
        TWO, document_noise=0.5, arm_document_noise=0.2, level_noise=0.01
    ),
    "spread rises fourfold from the sparsest to the densest level": Truth(TWO, level_factors=(0.5, 0.8, 1.26, 2.0)),
    "L0 varies by 3 % per run": Truth(TWO, l0_noise=0.03),
    "eight levels": Truth(TWO, l0s=(4.0, 8.0, 12.0, 16.0, 24.0, 32.0, 48.0, 64.0)),
}


def shares(truth: Truth, n_sweeps: int) -> dict[str, float]:
    """Share of intervals that cover: of values at L0S, differences there, mean differences and horizontal gaps; and `apart`, of sweeps
    with any pair told apart."""
    generator = np.random.default_rng(len(truth.arms) + truth.n_seeds)
    covered: dict[str, list[bool]] = {"value": [], "at": [], "gap": [], "l0_ratio": [], "apart": []}
    for _ in range(n_sweeps):
        table, documents = draw(truth, generator)
        part = Part.of("", table, "fvu", by="architecture", sign=1.0, l0s=L0S, pairs=None, equal_tries=False, documents=documents)
        for arm, read in part.reads.items():
            for place, l0 in enumerate(L0S):
                one = estimate_at(read, place)
                covered["value"].append(bool(one.low is not None and one.high is not None and one.low < truth.fvu(arm, l0) < one.high))
        tests = []
        for plan in part.plans:
            gap, ratio = part.mean(plan), part.l0_ratio(plan)
            assert gap is not None
            true = float(np.log(truth.arms[plan.a] / truth.arms[plan.b]))
            covered["gap"].append(_covers(truth, gap, true))
            covered["at"] += [_covers(truth, part.at(plan, place), true) for place in range(len(L0S))]
            covered["l0_ratio"] += [_covers(truth, ratio, -true / truth.slope)] if ratio else []
            margin = Ideal(0.0, "").margin(np.log([0.08]), raw=False)
            about = (part.n_seeds(plan), part.samples.n_documents, part.samples.df)
            tests.append(Contrast(gap.value, gap.seeds, gap.documents, *about, margin))
        covered["apart"].append(any(one.verdict.startswith("better") for one in judge(tests)))
    return {name: float(np.mean(found)) for name, found in covered.items()}


def _covers(truth: Truth, one: Difference, true: float) -> bool:
    about = {"n_seeds": truth.n_seeds, "n_documents": truth.n_documents}
    estimate = made(one.value, one.seeds, one.documents, raw=True, **about)
    return bool(estimate.low is not None and estimate.high is not None and estimate.low < true < estimate.high)


def main(n_sweeps: int, names: list[str]) -> None:
    """Print the rows of the table."""
    for name in names or CASES:
        found = {key: f"{100 * share:.1f} %" for key, share in shares(CASES[name], n_sweeps).items()}
        wrong = found["apart"] if len(set(CASES[name].arms.values())) == 1 else ""
        sys.stdout.write(f"| {name} | {found['value']} | {found['at']} | {found['gap']} | {found['l0_ratio']} | {wrong} |\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
