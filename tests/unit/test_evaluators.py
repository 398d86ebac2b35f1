"""What an evaluator may return, and be registered with."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sae_core.activations.synthetic import SyntheticActivations, SyntheticSource
from sae_core.architectures.topk import TopK, TopKConfig
from sae_core.metrics.evaluators import Evaluator, HeldOutData, evaluator
from sae_core.records import MetricSpec

SPECS = (MetricSpec("a", "A", "", "max"), MetricSpec("b", "B", "", "none"))


def measured(returned: Any) -> dict[str, float | None]:
    source = SyntheticSource(SyntheticActivations(train_tokens=5_000, eval_tokens=5_000))
    sae = TopK(TopKConfig(d_sae=8, k=2), source.d_in)
    return Evaluator(lambda sae, heldout: returned, SPECS)(sae, HeldOutData(source, Path()))


def test_numbers_of_any_kind_are_values_and_what_is_not_finite_is_none() -> None:
    assert measured({"b": torch.tensor(2.5), "a": np.float32(1)}) == {"a": 1.0, "b": 2.5}
    assert measured({"a": None, "b": float("inf")}) == {"a": None, "b": None}


@pytest.mark.parametrize(
    ("returned", "problem"),
    [
        ({"a": 1.0}, r"its columns \['a', 'b'\], but got \['a'\]"),
        (3.0, "but got float"),
        ({"a": True, "b": 1}, "must be a number, but got True"),
        ({"a": "1.5", "b": 1}, "must be a number, but got '1.5'"),
        ({"a": torch.ones(2), "b": 1}, "a number, but got tensor"),
    ],
)
def test_anything_else_is_refused(returned: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        measured(returned)


def test_it_sees_all_held_out_activations_and_computes_no_gradients() -> None:
    source = SyntheticSource(SyntheticActivations(train_tokens=5_000, eval_tokens=5_000))
    seen = []

    def look(sae: Any, heldout: HeldOutData) -> dict[str, float]:
        seen.extend([torch.is_grad_enabled(), *(len(chunk.x) for chunk in heldout.chunks())])
        return {"a": 0.0, "b": 0.0}

    Evaluator(look, SPECS)(TopK(TopKConfig(d_sae=8, k=2), source.d_in), HeldOutData(source, Path()))
    assert seen == [False, 4_096, 904]


def test_columns_are_its_own() -> None:
    def mine(sae: Any, heldout: HeldOutData) -> dict[str, float]:
        return {}

    for specs in ((), (SPECS[0], SPECS[0]), (dataclasses.replace(SPECS[0], name="l0"),)):
        with pytest.raises(ValueError, match=r"columns of its own, but got .* for 'mine'"):
            evaluator(*specs)(mine)
