"""What each latent does on the held-out tokens: how often it is active, and what it explains. Formulas: docs/formulas.md (Latents)."""

from collections.abc import Mapping
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from sae_core.activations.files import save_tensors
from sae_core.records import DENSITY_EDGES
from sae_core.sparse.active import ActiveLatents
from sae_core.sparse.kernels.choice import kernels_for
from sae_core.sparse.pre_acts import SPARSE_FRACTION

TIMES_ACTIVE, EXPLAINED = "times_active", "explained"
"""Names in `latents.safetensors`: held-out tokens that a latent is active on, int32 [d_sae]; what it explains, float32 [d_sae]."""


@torch.no_grad()
def explained(
    active: ActiveLatents, values: Float[Tensor, " N"], centered: Float[Tensor, "B d_out"], W_dec: Float[Tensor, "d_sae d_out"]
) -> Float[Tensor, " d_sae"]:
    """sum_t a_ti * W_dec_i . (y_t - mean) of every latent; float64, on the CPU.

    Together that is sum_t (x_hat_t - b_dec) . (y_t - mean), but for what a skip connection adds; y is x itself, of a transcoder its target.

    Args:
        values: a_ti of the active latents, in units of y.
        centered: y - mean.
    """
    if len(values) > SPARSE_FRACTION * active.n_tokens * active.d_sae:
        return (active.dense(values) * (centered @ W_dec.T)).sum(dim=0, dtype=torch.float64).cpu()
    products = values * kernels_for(values).dots(active.offsets, active.indices, centered, W_dec)
    # On the CPU, since on a GPU the sum has no fixed order.
    return active.indices.cpu().bincount(products.double().cpu(), active.d_sae)


def densities(times_active: Float[Tensor, " d_sae"], n_tokens: int) -> list[int]:
    """`RunRecord.latent_densities`."""
    edges = torch.tensor(DENSITY_EDGES, dtype=torch.float64)
    shares = (times_active.double() / n_tokens)[times_active > 0].clamp(edges[0], edges[-1])
    bins = torch.searchsorted(edges[:-1], shares, right=True) - 1
    return [int((times_active == 0).sum()), *bins.bincount(minlength=len(edges) - 1).tolist()]


def write_latents(file: Path, latents: Mapping[str, Tensor]) -> None:
    """Write `latents.safetensors`, atomically.

    Args:
        latents: `TIMES_ACTIVE` and, where it was measured, `EXPLAINED`.
    """
    types = {TIMES_ACTIVE: torch.int32, EXPLAINED: torch.float32}
    save_tensors(file, {name: values.to(types[name]) for name, values in latents.items()})
