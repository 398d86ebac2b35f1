"""Latents kept as lists of entries, with a decoder and an encoder whose gradients touch only those.

A sparse SAE has tens of active latents in thousands. Only the product x @ W_enc has to be dense; decoding is a weighted sum of a few
decoder rows, and the gradients of W_dec and W_enc are sums over the tokens where a latent was active. Nothing of size
(entries, d_in) is ever made. `Pattern.dense` is the reference each path is tested against.

Shape letters: B tokens in the batch, N entries in the whole batch, d_in, d_sae.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_core.sparse.kernels.choice import kernels_for


@dataclass(frozen=True)
class Pattern:
    """Which latents of which tokens are listed, token by token (the layout of a CSR matrix)."""

    indices: Int[Tensor, " N"]
    """The latent of each entry; ascending within a token."""
    offsets: Int[Tensor, " B_plus_1"]
    """Entries of token b are `offsets[b]:offsets[b + 1]`."""
    d_sae: int

    @property
    def n_tokens(self) -> int:
        return self.offsets.numel() - 1

    @cached_property
    def by_latent(self) -> "LatentOrder":
        """The same entries, latent by latent."""
        return LatentOrder(*kernels_for(self.indices).sort_columns(self.indices, self.offsets, self.d_sae))

    @cached_property
    def tokens(self) -> Int[Tensor, " N"]:
        """The token of each entry."""
        all_tokens = torch.arange(self.n_tokens, device=self.offsets.device)
        return torch.repeat_interleave(all_tokens, self.offsets.diff(), output_size=self.indices.numel())

    def rings(self, widths: Sequence[int]) -> "Pattern":
        """The same entries in the same order, in B * R rows: row b * R + r has those of token b between widths r - 1 and r.

        Args:
            widths: increasing; the last is d_sae.
        """
        latents = torch.arange(self.d_sae, device=self.indices.device)
        # `tensor(widths)` and `bincount` would wait for a GPU.
        ring_of = torch.zeros_like(latents)
        for width in widths[:-1]:
            ring_of += latents >= width
        rows = self.tokens * len(widths) + ring_of.index_select(0, self.indices)
        offsets = torch.searchsorted(rows, torch.arange(self.n_tokens * len(widths) + 1, device=rows.device))
        return _Rings(self.indices, offsets, self.d_sae, of=self, ring_of=ring_of, n_rings=len(widths))

    def mask(self) -> Bool[Tensor, "B d_sae"]:
        """True at the entries."""
        return self.dense(torch.ones(self.indices.shape, device=self.indices.device)) > 0

    def dense(self, values: Float[Tensor, " N"]) -> Float[Tensor, "B d_sae"]:
        """A matrix with these values at the entries and 0 elsewhere."""
        flat = self.tokens * self.d_sae + self.indices
        return values.new_zeros(self.n_tokens * self.d_sae).index_add(0, flat, values).view(self.n_tokens, self.d_sae)


@dataclass(frozen=True)
class _Rings(Pattern):
    of: Pattern
    ring_of: Int[Tensor, " d_sae"]
    n_rings: int

    @cached_property
    def by_latent(self) -> "LatentOrder":
        """That of the pattern, which is sorted once for both; only the rows have other numbers."""
        order = self.of.by_latent
        rings = self.ring_of.repeat_interleave(order.offsets.diff(), output_size=order.tokens.numel())
        return LatentOrder(order.order, order.tokens * self.n_rings + rings, order.offsets)


@dataclass(frozen=True, slots=True)
class LatentOrder:
    """Entries sorted by latent (the CSC layout of the same matrix), so that weight gradients are sums without atomics."""

    order: Int[Tensor, " N"]
    tokens: Int[Tensor, " N"]
    offsets: Int[Tensor, " d_sae_plus_1"]

    def sum_rows(self, weights: Float[Tensor, " N"], rows: Float[Tensor, "B d_in"]) -> Float[Tensor, "d_sae d_in"]:
        """Row i: the sum over the entries of latent i of weight * rows[token]; that is `pattern.dense(weights).T @ rows`."""
        return kernels_for(rows).weighted_sums(self.offsets, self.tokens, weights.index_select(0, self.order), rows)


def sparse_decode(values: Float[Tensor, " N"], W_dec: Float[Tensor, "d_sae d_in"], pattern: Pattern) -> Float[Tensor, "B d_in"]:
    """`pattern.dense(values) @ W_dec`, with gradients for the values and for W_dec."""
    return _Decode.apply(values, W_dec, pattern)


def pre_acts_at(
    pattern: Pattern,
    values: Float[Tensor, " N"],
    x: Float[Tensor, "B d_in"],
    b_dec: Float[Tensor, " d_in"],
    W_enc: Float[Tensor, "d_in d_sae"],
    bias: Float[Tensor, " d_sae"] | None,
) -> Float[Tensor, " N"]:
    """The pre-activations `(x - b_dec) @ W_enc + bias` at the entries, with gradients only there.

    Args:
        values: those pre-activations, computed without gradient.
        x: the batch; it gets no gradient.
    """
    return _PreActs.apply(values, x, b_dec, W_enc, bias, pattern)


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, W_dec: Tensor, pattern: Pattern) -> Tensor:
        ctx.save_for_backward(values, W_dec)
        ctx.pattern = pattern
        return kernels_for(values).weighted_sums(pattern.offsets, pattern.indices, values, W_dec)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        values, W_dec = ctx.saved_tensors
        pattern, grad = ctx.pattern, grads[0].contiguous()
        d_values = kernels_for(grad).dots(pattern.offsets, pattern.indices, grad, W_dec)
        return d_values, pattern.by_latent.sum_rows(values, grad), None


class _PreActs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, x: Tensor, b_dec: Tensor, W_enc: Tensor, bias: Tensor | None, pattern: Pattern) -> Tensor:
        ctx.save_for_backward(x, b_dec, W_enc)
        ctx.pattern, ctx.has_bias = pattern, bias is not None
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None, Tensor, Tensor, Tensor | None, None]:
        x, b_dec, W_enc = ctx.saved_tensors
        grad = grads[0].contiguous()
        # Transposed: the layout that W_enc is kept in.
        d_W_enc = ctx.pattern.by_latent.sum_rows(grad, x - b_dec).T
        d_bias = grad.new_zeros(W_enc.shape[1]).index_add(0, ctx.pattern.indices, grad)
        return None, None, -(W_enc @ d_bias), d_W_enc, d_bias if ctx.has_bias else None, None
