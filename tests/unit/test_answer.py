"""The answer in words agrees with the numbers it is made of."""

import dataclasses
import re

import numpy as np
import pytest
from simulated_sweeps import Truth, draw

from analysis import compare
from analysis.estimates import Comparison
from analysis.report.answer import answer

FOUR = Truth({"topk": 0.08, "batchtopk": 0.06, "gated": 0.081, "jumprelu": 0.061})


def compared(truth: Truth, seed: int = 0) -> Comparison:
    table, documents = draw(truth, np.random.default_rng(seed))
    return compare(table, l0s=[16, 32], documents=documents)


def test_numbers_in_sentences_are_those_of_the_comparison() -> None:
    found = compared(Truth({"topk": 0.08, "batchtopk": 0.06}))
    (pair,) = found.pairs
    text, method = answer(found)
    assert text.startswith("On average over L0 8 to 64, BatchTopK has ") and "lower FVU than TopK (3 seeds, 50 documents, paired)" in text
    assert pair.gap is not None and pair.adjusted is not None and pair.l0_ratio is not None
    value, low, high = (100 * number for number in (-pair.gap.value, -pair.adjusted[1], -pair.adjusted[0]))
    assert f"{value:.1f} % [{low:.1f}, {high:.1f}] lower" in text
    at = pair.at[32]
    assert at is not None and at.low is not None and at.high is not None
    assert f"at L0 32 {-100 * at.value:.1f} % [{-100 * at.high:.1f}, {-100 * at.low:.1f}] lower" in text
    assert f"needs {-100 * pair.l0_ratio.value:.1f} % fewer latents for the same FVU" in text
    assert method.startswith("Brackets: 95 % intervals of the mean difference; they cover seeds and held-out documents.")


def test_four_architectures_begin_with_the_best() -> None:
    found = compared(FOUR)
    first, *rest = answer(found)
    apart = {frozenset((pair.a, pair.b)) for pair in found.pairs if pair.better}
    best = "BatchTopK" if "BatchTopK has the lowest" in first else "JumpReLU"
    assert first.startswith(f"{best} has the lowest FVU")
    told = frozenset(("batchtopk", "jumprelu")) in apart
    assert ("not told apart" in first or "equivalent" in first) == (not told)
    assert sum("not separable" in line or "lower FVU" in line or "equivalent" in line for line in rest) == 3
    assert any(re.match("(Of the other 3 pairs|All of the other 3 pairs|The other pair)", line) for line in rest)
    assert "corrected for 6 comparisons (Holm)" in rest[-1]


def test_what_cannot_be_told_apart_says_what_would_do() -> None:
    for seed in range(12):
        found = compared(Truth({"topk": 0.08, "batchtopk": 0.0785}), seed)
        (pair,) = found.pairs
        text = answer(found)[0]
        if pair.verdict == "not separable":
            assert "are not separable with 3 seeds: on average over L0 8 to 64 the difference in FVU is " in text
            assert pair.smallest is not None
            assert f"the smallest that could have been seen is {100 * pair.smallest:.1f} %" in text
            assert ("seeds would do" in text) == (pair.seeds_needed is not None)
            return
    pytest.fail("a difference of 2 % must be too small in one of twelve sweeps")


def test_one_seed_speaks_of_these_saes() -> None:
    text = answer(compared(Truth({"topk": 0.08, "batchtopk": 0.06}, n_seeds=1)))[0]
    assert "on text like this, these BatchTopK SAEs have " in text and "one seed cannot tell" in text
    nothing = answer(compared(Truth({"topk": 0.08, "batchtopk": 0.06}, n_seeds=1, n_documents=0)))
    assert len(nothing) == 1 and nothing[0].startswith("In these single runs BatchTopK has the best FVU on average: ")
    assert nothing[0].endswith(
        "But nothing tells how sure that is: one seed, and documents cannot be drawn: the table comes without files of runs."
    )
    assert "[" not in nothing[0]


def test_equivalent_architectures() -> None:
    quiet = Truth({"topk": 0.08, "batchtopk": 0.08}, level_noise=0.002, arm_document_noise=0.01, run_document_noise=0.01)
    assert "are equivalent: their FVU differs by " in answer(compared(quiet))[0]


def test_what_is_equivalent_on_average_shares_the_first_place() -> None:
    quiet = {"level_noise": 0.002, "arm_document_noise": 0.01, "run_document_noise": 0.01}
    lines = answer(compared(Truth({"topk": 0.08, "batchtopk": 0.06, "jumprelu": 0.06}, **quiet)))  # type: ignore[arg-type]
    assert lines[0] in (
        f"{both} have the lowest FVU, equivalent on average." for both in ("BatchTopK and JumpReLU", "JumpReLU and BatchTopK")
    )
    alike = answer(compared(Truth({"topk": 0.06, "batchtopk": 0.06, "jumprelu": 0.06}, **quiet)))[0]  # type: ignore[arg-type]
    assert alike.endswith(" are equivalent in FVU on average.") and alike.count("TopK") == 2


@pytest.mark.parametrize(("tilted", "verdict"), [(1.0, "equivalent"), (0.85, "better")])
def test_an_l0_at_which_the_mean_does_not_hold_is_named(tilted: float, verdict: str) -> None:
    """A front that turns round the other one: worse where sparse, better where dense."""
    table, documents = draw(Truth({"topk": 0.08, "gated": 0.08}, n_documents=0, level_noise=0.002), np.random.default_rng(0))
    of_topk = table["architecture"] == "topk"
    table.loc[of_topk, "fvu"] *= tilted * (table.loc[of_topk, "l0"] / 22.6) ** -0.3
    found = compare(table, l0s=[8, 64], documents=documents)
    (pair,) = found.pairs
    assert pair.verdict == verdict
    text = answer(found)[0]
    assert re.search(r"; but at L0 8 Gated is \d+\.\d % \[.*\] lower", text)
    assert ("at L0 64 TopK is " in text) == (verdict == "equivalent")  # where it is better anyway, nothing need be said


def test_a_single_architecture_has_nothing_to_be_compared_with() -> None:
    assert answer(compared(Truth({"topk": 0.08}))) == ["There is one thing to look at, TopK, and nothing to compare it with."]
    empty = dataclasses.replace(compared(Truth({"topk": 0.08})), arms=())
    assert answer(empty) == []


def test_fronts_apart_are_named() -> None:
    table, _ = draw(Truth({"topk": 0.08, "gated": 0.06}, n_documents=0), np.random.default_rng(0))
    table.loc[table["architecture"] == "gated", "l0"] *= 100
    (line,) = answer(compare(table))
    assert line.endswith("are not compared in FVU: no range of L0 is spanned by both fronts in every repeat.")


def test_other_names_than_architectures_stay_as_they_are() -> None:
    assert "TopK of demo" in answer(compared(Truth({"TopK of demo": 0.08, "TopK of other": 0.06})))[0]
