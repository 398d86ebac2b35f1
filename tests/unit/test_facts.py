import pandas as pd

from analysis.facts import MOST_LISTED, _learning_rates


def told(*pairs: tuple[str, float]) -> str:
    return _learning_rates(pd.DataFrame(pairs, columns=["architecture", "lr"]))


def test_one_rate_is_told_once() -> None:
    assert told(("topk", 1e-3), ("gated", 1e-3)) == "0.001"


def test_different_rates_are_told_by_architecture() -> None:
    assert told(("topk", 1e-3), ("topk", 4e-3), ("gated", 1e-3)) == "Gated 0.001; TopK 0.001, 0.004"


def test_of_many_rates_the_range_is_told() -> None:
    rates = [1e-3 * 1.234567**n for n in range(MOST_LISTED + 1)]
    assert told(*(("topk", rate) for rate in rates)) == "TopK 0.001 to 0.0054 (9 values)"
