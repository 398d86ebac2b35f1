"""What every metric owes: run from the registry, so a new one is tested without a line here."""

import dataclasses
import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from observations import Evaluated, made_up, value

from sae_core.evaluation import ChunkSums, SaeSums, combine
from sae_core.metrics import METRICS
from sae_core.metrics.per_document import ChunkDocuments

NAMES = list(METRICS)
Array = NDArray[np.float64]


def fvu(x: Array, x_hat: Array) -> float:
    return float(((x - x_hat) ** 2).sum() / ((x - x.mean(axis=0)) ** 2).sum())


ORACLES: dict[str, Callable[[dict[str, Array]], float]] = {
    "mse": lambda a: ((a["x"] - a["x_hat"]) ** 2).sum(axis=1).mean(),
    "fvu": lambda a: fvu(a["x"], a["x_hat"]),
    "explained_variance": lambda a: 1 - fvu(a["x"], a["x_hat"]),
    "cosine": lambda a: np.mean([np.dot(u, v) / np.linalg.norm(u) / np.linalg.norm(v) for u, v in zip(a["x"], a["x_hat"], strict=True)]),
    "reconstruction_bias": lambda a: (a["x_hat"] ** 2).sum() / (a["x"] * a["x_hat"]).sum(),
    "fvu_without_latents": lambda a: fvu(a["x"], a["x_hat"] / 2),
    "l0": lambda a: (a["latents"] != 0).sum(axis=1).mean(),
    "dead_fraction": lambda a: 1 - (a["latents"] != 0).any(axis=0).mean(),
    "ce_loss_clean": lambda a: a["ce_clean"].mean(),
    "ce_loss_spliced": lambda a: a["ce_spliced"].mean(),
    "ce_loss_zero_ablated": lambda a: a["ce_zero_ablated"].mean(),
    "ce_loss_mean_ablated": lambda a: a["ce_mean_ablated"].mean(),
    "delta_ce": lambda a: a["ce_spliced"].mean() - a["ce_clean"].mean(),
    "ce_loss_recovered": lambda a: (
        (a["ce_zero_ablated"].mean() - a["ce_spliced"].mean()) / (a["ce_zero_ablated"].mean() - a["ce_clean"].mean())
    ),
    "kl": lambda a: a["kl"].mean(),
}
"""The table's metrics, in NumPy. A new metric brings its own in its unit test."""


def known(name: str, *parts: Evaluated) -> float:
    found = value(name, *parts)
    assert found is not None
    return found


@pytest.mark.parametrize("name", ORACLES)
def test_numpy_agrees(name: str) -> None:
    data = made_up(error=0.7)
    arrays = {field.name: getattr(data, field.name).double().numpy() for field in dataclasses.fields(data)}
    assert known(name, data) == pytest.approx(ORACLES[name](arrays), rel=1e-12)


@pytest.mark.parametrize("name", [name for name in NAMES if not METRICS[name].first_chunk_only])
@pytest.mark.slow
def test_cutting_the_text_into_chunks_changes_nothing(name: str) -> None:
    data = made_up()
    for cuts in ([0, 30, 60], [0, 1, 7, 8, 59, 60]):
        parts = [data.rows(slice(start, end)) for start, end in pairwise(cuts)]
        assert known(name, *parts) == pytest.approx(known(name, data), rel=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_tokens_changes_nothing(name: str) -> None:
    data = made_up()
    shuffled = data.rows(torch.randperm(60, generator=torch.Generator().manual_seed(3)))
    assert known(name, shuffled) == pytest.approx(known(name, data), rel=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_a_better_sae_moves_it_in_the_declared_direction(name: str) -> None:
    worse, better = known(name, made_up(error=0.8)), known(name, made_up(error=0.4))
    match METRICS[name].spec.direction:
        case "min":
            assert better < worse
        case "max":
            assert better > worse
        case direction:
            assert direction == "none"


@pytest.mark.parametrize("name", NAMES)
def test_without_a_language_model_or_features_it_has_a_value_or_none_but_never_nan(name: str) -> None:
    found = value(name, made_up(), bare=True)
    assert found is None or math.isfinite(found)


@pytest.mark.parametrize("name", NAMES)
def test_without_what_it_needs_it_has_no_value(name: str) -> None:
    assert (value(name, made_up(), bare=True) is None) == (METRICS[name].needs is not None)


@pytest.mark.parametrize("name", NAMES)
def test_what_does_not_apply_is_left_out(name: str) -> None:
    seen = made_up().observation(bare=True)
    sums = METRICS[name]().sums(seen)
    alone = SaeSums({other: sums if other == name else {} for other in NAMES}, {}, {})
    values, _ = combine([ChunkSums(0, 60, ChunkDocuments.of(seen.chunk), {"run": alone})])
    assert set(values["run"]) == ({name} if sums else set())


@pytest.mark.parametrize("name", NAMES)
def test_its_spec_carries_its_name_and_a_label(name: str) -> None:
    spec = METRICS[name].spec
    assert spec.name == name and spec.label and spec.label != name


def test_no_data_raises() -> None:
    with pytest.raises(ValueError, match="at least one token, but got 0 chunks with 0 tokens"):
        combine([])
    nothing = made_up(0).observation()
    sums = SaeSums({name: METRICS[name]().sums(nothing) for name in NAMES}, {}, {})
    with pytest.raises(ValueError, match="at least one token, but got 1 chunks with 0 tokens"):
        combine([ChunkSums(0, 0, ChunkDocuments.of(nothing.chunk), {"run": sums})])
