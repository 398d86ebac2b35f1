"""sae_core/metrics/sparsity.py, by hand."""

import torch

from sae_core.activations.source import EvalChunk
from sae_core.metrics import METRICS, Observation
from sae_core.sparse.active import active_latents

LATENTS = torch.tensor([[1.0, 0.0, 0.0, -2.0], [0.5, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])


def value(name: str, latents: torch.Tensor) -> float | None:
    metric = METRICS[name]()
    x = torch.ones(len(latents), 2)
    seen = Observation(EvalChunk(x), active_latents(latents)[0], x, None, torch.zeros(latents.shape[1], x.shape[1]))
    return metric.value(metric.sums(seen), len(latents))


def test_l0_counts_what_is_not_0() -> None:
    assert value("l0", LATENTS) == (2 + 1 + 0) / 3


def test_dead_fraction_is_that_of_latents_never_active() -> None:
    assert value("dead_fraction", LATENTS) == 2 / 4
    assert value("dead_fraction", torch.ones(2, 4)) == 0
