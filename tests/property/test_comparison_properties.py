"""What holds for every comparison, also of tables with runs missing, failed, dense, of L0 0 or of values without a logarithm."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis import compare
from analysis.estimates import Comparison
from analysis.report.answer import answer
from analysis.statistics.indicators import attainment, epsilons
from analysis.statistics.matched import at_matched_l0, bands

pytestmark = pytest.mark.slow


def odd_table(seed: int, *, positive: bool = False) -> pd.DataFrame:
    """Up to four arms with up to three seeds and five levels each, several learning rates, and every kind of hole."""
    rng = np.random.default_rng(seed)
    rows = []
    for arm in range(int(rng.integers(2, 5))):
        for repeat in range(int(rng.integers(1, 4))):
            for level in range(int(rng.integers(1, 6))):
                l0 = float(2 ** (3 + level) * np.exp(rng.normal(0, rng.choice([0, 0.01, 0.3]))))
                usual = 0.5 * l0**-0.5 * np.exp(rng.normal(0, 0.05))
                odd = [usual, 0.1, usual, usual] if positive else [usual, 0.1, np.nan, -0.01]
                rows.append(
                    {
                        "architecture": f"a{arm}",
                        "seed": repeat,
                        "sparsity_value": float(level),
                        "lr": float(rng.choice([1e-3, 1e-3, 2e-3])),
                        "l0": l0 if rng.random() > 0.05 or positive else 0.0,
                        "fvu": float(rng.choice(odd, p=[0.9, 0.04, 0.03, 0.03])),
                        "status": "finished" if rng.random() > 0.05 else "failed",
                        "variant": "",
                    }
                )
    table = pd.DataFrame(rows)
    table.attrs["metrics"] = {"fvu": {"name": "fvu", "label": "", "unit": "", "direction": "min"}}
    return table


def numbers(content: Any) -> Iterator[float]:
    for inner in content.values() if isinstance(content, dict) else content if isinstance(content, list | tuple) else []:
        yield from numbers(inner)
    if isinstance(content, float):
        yield content


@pytest.mark.parametrize("seed", range(20))
def test_any_table_is_compared_without_nan(seed: int) -> None:
    table = odd_table(seed)
    for compared in (compare(table), compare(table, equal_tries=True)):
        assert all(map(math.isfinite, numbers(dataclasses.asdict(compared))))
        assert all("nan" not in line for line in answer(compared))
        for pair in compared.pairs:
            assert (pair.better is not None) == pair.verdict.startswith("better")
            if pair.gap is not None and pair.gap.low is not None and pair.gap.high is not None:
                assert pair.gap.low <= pair.gap.value <= pair.gap.high
    at_matched_l0(table, "fvu", [8, 16, 32])
    bands(table, "fvu")
    epsilons(table)
    attainment(table)


def told(compared: Comparison) -> dict[frozenset[str], tuple[float | None, ...]]:
    """Numbers of each pair, whatever its order."""
    return {
        frozenset((pair.a, pair.b)): (
            None if pair.gap is None else round(pair.gap.value, 9),
            None if pair.gap is None or pair.gap.se is None else round(pair.gap.se, 9),
            None if pair.p is None else round(pair.p, 9),
        )
        for pair in compared.pairs
    }


@pytest.mark.parametrize("seed", range(6))
def test_neither_the_order_of_rows_nor_the_unit_of_the_metric_matters(seed: int) -> None:
    table = odd_table(seed, positive=True)
    shuffled = table.sample(frac=1, random_state=seed)
    scaled = table.assign(fvu=1000 * table["fvu"])
    for other in (shuffled, scaled):
        other.attrs = table.attrs
        assert told(compare(other)) == told(compare(table))


@pytest.mark.parametrize("seed", range(6))
def test_an_arm_compared_with_its_copy_does_not_differ(seed: int) -> None:
    table = odd_table(seed, positive=True)
    own = table[table["architecture"] == "a0"]
    twice = pd.concat([own, own.assign(architecture="copy")], ignore_index=True)
    twice.attrs = table.attrs
    (pair,) = compare(twice).pairs
    assert pair.gap is None or pair.gap.value == 0
    assert pair.better is None
