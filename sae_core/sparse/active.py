"""The active latents of a matrix of latents, listed. Most latents are 0, and a list of the others is all that evaluation needs.

Shape letters: B tokens, N entries, d_sae latents.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from sae_core.sparse.kernels.choice import kernels_for
from sae_core.sparse.latents import Pattern


@torch.no_grad()
def active_entries(latents: Float[Tensor, "B d_sae"]) -> tuple[Pattern, Float[Tensor, " N"]]:
    """Where latents are not 0, and what they are there."""
    zeros = latents.new_zeros(latents.shape[1])
    if latents.numel() == 0 or bool(latents.amin() >= 0):
        return entries_where(latents, zeros, zeros)
    pattern, _ = entries_where(latents.abs(), zeros, zeros)
    return pattern, latents.flatten()[pattern.tokens * pattern.d_sae + pattern.indices]


@torch.no_grad()
def entries_where(
    products: Float[Tensor, "B d_sae"], bias: Float[Tensor, " d_sae"], bound: Float[Tensor, " d_sae"]
) -> tuple[Pattern, Float[Tensor, " N"]]:
    """Where product + bias is above the bound of its latent, and what it is there."""
    found = kernels_for(products).entries_above(products, bias, bound, products.numel())
    assert found is not None, "no limit was given"
    indices, values, offsets = found
    return Pattern(indices, offsets, products.shape[1]), values


def without_zeros(pattern: Pattern, values: Float[Tensor, " N"]) -> tuple[Pattern, Float[Tensor, " M"]]:
    """The entries whose value is not 0."""
    return (pattern, values) if bool(values.bool().all()) else active_entries(pattern.dense(values))


def joined(patterns: Sequence[Pattern]) -> Pattern:
    """The pattern of all tokens, in order, of at least one pattern."""
    counts = torch.cat([pattern.offsets.diff() for pattern in patterns])
    offsets = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    return Pattern(torch.cat([pattern.indices for pattern in patterns]), offsets, patterns[0].d_sae)
