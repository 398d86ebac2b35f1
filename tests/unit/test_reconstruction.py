"""sae_core/metrics/reconstruction.py, by hand. Properties: tests/property/test_metrics_properties.py."""

import pytest
import torch

from sae_core.activations.source import EvalChunk
from sae_core.metrics import METRICS, Observation
from sae_core.sparse.active import active_latents

# Errors (1, 0), (0, -1): squared 1 and 1. Mean of x (2, 1), deviations (1, 2) and (-1, -2): variance 10.
X = [[3.0, 3.0], [1.0, -1.0]]
X_HAT = [[2.0, 3.0], [1.0, 0.0]]


def value(name: str, x: list[list[float]], x_hat: list[list[float]]) -> float | None:
    metric = METRICS[name]()
    inactive, _ = active_latents(torch.zeros(len(x), 4))
    seen = Observation(EvalChunk(torch.tensor(x)), inactive, torch.tensor(x_hat), None, torch.zeros(4, len(x[0])))
    return metric.value(metric.sums(seen), len(x))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mse", (1 + 1) / 2),
        ("fvu", 2 / 10),
        ("explained_variance", 8 / 10),
        # 15 / (sqrt(18) * sqrt(13)) and 1 / (sqrt(2) * 1)
        ("cosine", (15 / (18 * 13) ** 0.5 + 1 / 2**0.5) / 2),
        # (4 + 9 + 1) / (6 + 9 + 1)
        ("reconstruction_bias", 14 / 16),
    ],
)
def test_by_hand(name: str, expected: float) -> None:
    assert value(name, X, X_HAT) == pytest.approx(expected, rel=1e-12)


def test_shrinkage_is_below_1() -> None:
    assert value("reconstruction_bias", X, [[0.9 * v for v in row] for row in X]) == pytest.approx(0.9)


def test_a_reconstruction_of_nothing() -> None:
    zeros = [[0.0, 0.0], [0.0, 0.0]]
    assert value("cosine", X, zeros) == 0
    assert value("reconstruction_bias", X, zeros) is None  # 0 / 0


def test_sums_are_exact_where_float32_would_not_be() -> None:
    # Squares near 1e6 and a variance of 1/64: a float32 sum of the squares would leave nothing of it.
    x = [[1000.0 + 0.25 * (i % 2), 0.0] for i in range(2000)]
    assert value("fvu", x, [[1000.125, 0.0]] * 2000) == 1
