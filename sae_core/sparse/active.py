"""Active latents: which latents of which tokens are not 0, their values, and the selections that find them.

A sparse SAE has tens of active latents in thousands: a list of them is all that decoding, gradients and evaluation need.
`ActiveLatents.dense` is the reference each path is tested against. Nothing here has a gradient.

Shape letters: B tokens in the batch, N active latents in the whole batch, d_in, d_sae.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_core.sparse.kernels.choice import kernels_for


@dataclass(frozen=True)
class ActiveLatents:
    """Indices of the active latents, token by token (the layout of a CSR matrix). Their values are kept beside it."""

    indices: Int[Tensor, " N"]
    """Ascending within a token."""
    offsets: Int[Tensor, " B_plus_1"]
    """Those of token b are `indices[offsets[b]:offsets[b + 1]]`."""
    d_sae: int

    @property
    def n_tokens(self) -> int:
        return self.offsets.numel() - 1

    @cached_property
    def tokens(self) -> Int[Tensor, " N"]:
        """The token of each active latent."""
        all_tokens = torch.arange(self.n_tokens, device=self.offsets.device)
        return torch.repeat_interleave(all_tokens, self.offsets.diff(), output_size=self.indices.numel())

    @cached_property
    def _by_latent(self) -> tuple[Int[Tensor, " N"], Int[Tensor, " N"], Int[Tensor, " d_sae_plus_1"]]:
        """The same sorted by latent (CSC layout): their numbers, their tokens, and the offsets of the latents."""
        return kernels_for(self.indices).sort_columns(self.indices, self.offsets, self.d_sae)

    def dense(self, values: Float[Tensor, " N"]) -> Float[Tensor, "B d_sae"]:
        """The matrix of latents with these values, 0 elsewhere."""
        flat = self.tokens * self.d_sae + self.indices
        return values.new_zeros(self.n_tokens * self.d_sae).index_add(0, flat, values).view(self.n_tokens, self.d_sae)

    def mask(self) -> Bool[Tensor, "B d_sae"]:
        """True where a latent is active."""
        return self.dense(torch.ones(self.indices.shape, device=self.indices.device)) > 0

    def sum_by_latent(self, weights: Float[Tensor, " N"], rows: Float[Tensor, "B d_in"]) -> Float[Tensor, "d_sae d_in"]:
        """`dense(weights).T @ rows`, as sums over the tokens where a latent is active."""
        order, tokens, offsets = self._by_latent
        return kernels_for(rows).weighted_sums(offsets, tokens, weights.index_select(0, order), rows)

    def groups(self, widths: Sequence[int]) -> "ActiveLatents":
        """The same latents in the same order, in B * G rows: row b * G + g has those of token b between widths g - 1 and g.

        Args:
            widths: increasing; the last is d_sae.
        """
        group_of = torch.zeros(self.d_sae, dtype=torch.int64, device=self.indices.device)
        for width in widths[:-1]:
            group_of[width:] += 1
        rows = self.tokens * len(widths) + group_of.index_select(0, self.indices)
        offsets = torch.searchsorted(rows, torch.arange(self.n_tokens * len(widths) + 1, device=rows.device))
        return ActiveLatents(self.indices, offsets, self.d_sae)


def joined(parts: Sequence[ActiveLatents]) -> ActiveLatents:
    """The active latents of the tokens of at least one part, in order."""
    counts = torch.cat([part.offsets.diff() for part in parts])
    return ActiveLatents(torch.cat([part.indices for part in parts]), _offsets(counts), parts[0].d_sae)


@torch.no_grad()
def active_latents(latents: Float[Tensor, "B d_sae"]) -> tuple[ActiveLatents, Float[Tensor, " N"]]:
    """The latents that are not 0, and their values."""
    zeros = latents.new_zeros(latents.shape[1])
    active, _ = active_above(latents.abs(), zeros, zeros)
    return active, latents.flatten()[active.tokens * active.d_sae + active.indices]


def without_zeros(active: ActiveLatents, values: Float[Tensor, " N"]) -> tuple[ActiveLatents, Float[Tensor, " M"]]:
    """Those whose value is not 0."""
    return (active, values) if bool(values.all()) else active_latents(active.dense(values))


@torch.no_grad()
def active_above(
    products: Float[Tensor, "B d_sae"], bias: Float[Tensor, " d_sae"], bound: Float[Tensor, " d_sae"]
) -> tuple[ActiveLatents, Float[Tensor, " N"]]:
    """The latents whose pre-activation, product + bias, is above their bound, and the pre-activations."""
    above = kernels_for(products).values_above(products, bias, bound, products.numel())
    assert above is not None, "no limit was given"
    indices, values, offsets = above
    return ActiveLatents(indices, offsets, products.shape[1]), values


@torch.no_grad()
def topk_per_token(
    products: Float[Tensor, "B d_sae"], bias: Float[Tensor, " d_sae"], factors: Float[Tensor, " d_sae"], k: int
) -> tuple[ActiveLatents, Float[Tensor, " N"]]:
    """The k latents of every token with the largest scores, (product + bias) * factor, and their pre-activations."""
    indices, values = kernels_for(products).topk_rows(products, bias, factors, k)
    offsets = torch.arange(0, indices.numel() + 1, k, device=indices.device)
    return ActiveLatents(indices.flatten(), offsets, products.shape[1]), values.flatten()


@torch.no_grad()
def topk_per_batch(
    products: Float[Tensor, "B d_sae"],
    bias: Float[Tensor, " d_sae"],
    factors: Float[Tensor, " d_sae"],
    n: int,
    hint: Float[Tensor, ""] | None = None,
) -> tuple[ActiveLatents, Float[Tensor, " N"], Float[Tensor, ""]]:
    """The n latents of the whole batch with the largest positive scores, (product + bias) * factor.

    Sorting all B * d_sae scores is the slow part of BatchTopK. Only those above `hint` are sorted; where that leaves fewer than n, all
    positive ones are. The result does not depend on the hint. Scores equal to the smallest selected one are all selected, so N can
    exceed n when scores tie.

    Args:
        factors: 0 or above.
        hint: a guess somewhat below the n-th largest score, e.g. from the previous batch; at least 0. A tensor, as is the smallest
            score, so that neither has to be waited for where it is on a GPU.

    Returns:
        The latents, their pre-activations, and the smallest selected score (0 when nothing is positive).
    """
    least = torch.zeros_like(factors) if hint is None else hint / factors
    bound = torch.where(factors > 0, least, torch.inf)  # a factor of 0 makes no score positive
    active, values = active_above(products, bias, bound)
    if len(values) < n and hint is not None:
        return topk_per_batch(products, bias, factors, n)
    if not len(values):
        return active, values, values.new_zeros(())
    scores = values * factors.index_select(0, active.indices)
    smallest = _kth_smallest(scores, max(1, len(scores) - n + 1))
    keep = scores >= smallest
    kept = keep.nonzero().squeeze(1)
    offsets = _offsets(keep.long()).index_select(0, active.offsets)
    return ActiveLatents(active.indices.index_select(0, kept), offsets, active.d_sae), values.index_select(0, kept), smallest


def _kth_smallest(values: Float[Tensor, " N"], k: int) -> Float[Tensor, ""]:
    if values.device.type == "cpu":  # NumPy takes a tenth of PyTorch's time
        return torch.from_numpy(np.partition(values.numpy(), k - 1))[k - 1]
    return values.kthvalue(k).values


def _offsets(counts: Int[Tensor, " R"]) -> Int[Tensor, " R_plus_1"]:
    return torch.nn.functional.pad(counts.cumsum(0), (1, 0))
