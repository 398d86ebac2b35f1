"""Every architecture lists the latents that its `encode` says are active, and reconstructs from them as from all."""

import pytest
import torch
from small_runs import sae_with

from sae_core.config.run import ARCHITECTURES
from sae_core.sae.normalization import LayerNorm

D_IN, D_SAE = 16, 96

pytestmark = [
    pytest.mark.usefixtures("kernels"),
    pytest.mark.parametrize("name", sorted(ARCHITECTURES)),
    pytest.mark.parametrize("few_active", [True, False], ids=["few active", "many active"]),
]


@pytest.mark.parametrize("layer_norm", [False, True], ids=["as they are", "layer-normed"])
@pytest.mark.slow
def test_listed_is_as_all(name: str, few_active: bool, layer_norm: bool) -> None:
    sae = sae_with(few_active, name, D_IN, D_SAE).eval().to_inference()
    if layer_norm:
        sae.fold(LayerNorm())
    x = torch.randn(50, D_IN, generator=torch.Generator().manual_seed(1))
    latents, x_hat = sae.reconstruct(x)
    active, _, listed_x_hat = sae.reconstruct_sparse(x)
    assert torch.equal(active.mask(), latents != 0)
    assert 0 < float(active.mask().float().mean()) < 1
    torch.testing.assert_close(listed_x_hat, x_hat, rtol=1e-5, atol=1e-5)


def test_listed_latents_are_those_of_encode(name: str, few_active: bool) -> None:
    sae = sae_with(few_active, name, D_IN, D_SAE).eval().to_inference()
    x = torch.randn(50, D_IN, generator=torch.Generator().manual_seed(2))
    active, values = sae.encode_sparse(x)
    torch.testing.assert_close(active.dense(values), sae.encode(x), rtol=1e-5, atol=1e-6)
    assert bool((values != 0).all())
