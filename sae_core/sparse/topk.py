"""Selecting the largest pre-activations: per token (TopK) and over the whole batch (BatchTopK).

A pre-activation is a product plus the bias of its latent; what is compared is its score, the pre-activation times a factor of the
latent. Nothing here has a gradient.
Shape letters: B tokens in the batch, d_sae latents, N selected entries.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from sae_core.sparse.active import entries_where
from sae_core.sparse.kernels.choice import kernels_for
from sae_core.sparse.latents import Pattern


@torch.no_grad()
def topk_rows(
    products: Float[Tensor, "B d_sae"], bias: Float[Tensor, " d_sae"], factors: Float[Tensor, " d_sae"], k: int
) -> tuple[Pattern, Float[Tensor, " N"]]:
    """The k entries of every token with the largest scores, and their pre-activations."""
    indices, values = kernels_for(products).topk_rows(products, bias, factors, k)
    offsets = torch.arange(0, indices.numel() + 1, k, device=indices.device)
    return Pattern(indices.flatten(), offsets, products.shape[1]), values.flatten()


@torch.no_grad()
def topk_batch(
    products: Float[Tensor, "B d_sae"],
    bias: Float[Tensor, " d_sae"],
    factors: Float[Tensor, " d_sae"],
    n: int,
    hint: Float[Tensor, ""] | None = None,
) -> tuple[Pattern, Float[Tensor, " N"], Float[Tensor, ""]]:
    """The n entries of the whole batch with the largest positive scores.

    Sorting all B * d_sae scores is the slow part of BatchTopK. Only those above `hint` are looked at; where that leaves fewer than n, all
    positive ones are. The result does not depend on the hint. Entries equal to the smallest selected one are all selected, so N can
    exceed n when scores tie.

    Args:
        factors: 0 or above.
        hint: a guess somewhat below the n-th largest score, e.g. from the previous batch; at least 0. A tensor, as is the smallest
            score, so that neither has to be waited for where it is on a GPU.

    Returns:
        The entries, their pre-activations, and the smallest selected score (0 when nothing is positive).
    """
    least = torch.zeros_like(factors) if hint is None else hint / factors
    bound = torch.where(factors > 0, least, torch.inf)  # a factor of 0 makes no score positive
    pattern, values = entries_where(products, bias, bound)
    if len(values) < n and hint is not None:
        return topk_batch(products, bias, factors, n)
    if not len(values):
        return pattern, values, values.new_zeros(())
    scores = values * factors.index_select(0, pattern.indices)
    columns, values, offsets, smallest = kernels_for(products).largest_entries(pattern.indices, values, pattern.offsets, scores, n)
    return Pattern(columns, offsets, pattern.d_sae), values, smallest
