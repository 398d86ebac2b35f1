"""Every architecture trains the same whatever kernels do the work: with few active latents, which are listed, and with many."""

from typing import Any

import pytest
import torch
from small_runs import context_of, sae_with
from torch import Tensor

from sae_core.config.run import ARCHITECTURES
from sae_core.sae.base import SparseAutoencoder
from sae_core.sae.loss import LossTerms
from sae_core.sparse.kernels.choice import Choice, using_kernels
from sae_core.sparse.pre_acts import SPARSE_FRACTION, PreActs, SparsePreActs

D_IN, D_SAE = 16, 96
JUMPRELU = [
    {"sparsity_loss": loss, "ste_to_input": to_input, "target_l0": 8.0 if loss == "quadratic" else None}
    for loss in ("step", "quadratic", "tanh")
    for to_input in (False, True)
]
VARIANTS = [(name, {}) for name, cls in ARCHITECTURES.items() if not cls.Config.is_tied]  # a pursuit lists nothing
VARIANTS += [("jumprelu", fields) for fields in JUMPRELU]

pytestmark = [
    pytest.mark.parametrize(("name", "fields"), VARIANTS, ids=str),
    pytest.mark.parametrize("few_active", [True, False], ids=["few active", "many active"]),
]


def step(sae: SparseAutoencoder, choice: Choice, autocast: bool = False) -> tuple[LossTerms, dict[str, Tensor], PreActs]:
    """Loss and gradients of a batch for which some latents are dead, and the entries that the loss was computed on."""
    x = torch.randn(64, D_IN, generator=torch.Generator().manual_seed(1))
    dead = torch.zeros(D_SAE, dtype=torch.bool)
    dead[::9] = True
    seen: list[PreActs] = []
    of = LossTerms.of
    with using_kernels(choice), pytest.MonkeyPatch.context() as patch:
        patch.setattr(LossTerms, "of", lambda terms, latents, entries=None: seen.append(entries) or of(terms, latents, entries))
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = sae.loss(x, context_of(sae, 0.7, dead))
        sae.zero_grad()
        loss.total.backward()
    return loss, {key: value.grad.clone() for key, value in sae.named_parameters() if value.grad is not None}, seen[0]


def distances(found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """|found - expected| / |expected| of each."""
    assert found.keys() == expected.keys()
    return {key: float((found[key] - expected[key]).norm().detach() / expected[key].norm().detach()) for key in expected}


@pytest.mark.slow
def test_loss_and_gradients_are_the_same(name: str, fields: dict[str, Any], few_active: bool) -> None:
    sae = sae_with(few_active, name, D_IN, D_SAE, **fields)
    fast, gradients, entries = step(sae, "fast")
    reference, expected, _ = step(sae, "reference")
    assert isinstance(entries, SparsePreActs) or not few_active
    assert (float(fast.l0) < SPARSE_FRACTION * D_SAE) == few_active
    assert max(distances(fast.terms, reference.terms).values()) < 1e-4
    assert max(distances(gradients, expected).values()) < 1e-4 and expected.keys() == dict(sae.named_parameters()).keys()
    torch.testing.assert_close(fast.l0, reference.l0)
    assert torch.equal(fast.active, reference.active)


LARGEST = {"abstopk": 0.1}
"""Largest distances of gradients where they are not below 0.07: latents of either sign let sums over tokens cancel."""


@pytest.mark.slow
def test_under_autocast_a_list_is_no_further_from_float32_than_a_matrix(name: str, fields: dict[str, Any], few_active: bool) -> None:
    # It rounds the encoder product only, a matrix whatever comes after it too. Either may find a latent near its threshold active.
    sae = sae_with(few_active, name, D_IN, D_SAE, **fields)
    exact, expected, _ = step(sae, "reference")
    loss, gradients, _ = step(sae, "fast", autocast=True)
    of_matrix = distances(step(sae, "reference", autocast=True)[1], expected)
    assert max(distances(loss.terms, exact.terms).values()) < 0.02
    for key, distance in distances(gradients, expected).items():
        assert distance < min(LARGEST.get(name, 0.07), of_matrix[key] + 1e-3), key
