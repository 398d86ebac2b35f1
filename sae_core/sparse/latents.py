"""Latents kept as lists of active entries, with a decoder and an encoder whose gradients touch only those.

A TopK SAE has k active latents in thousands. Only the product x @ W_enc has to be dense; decoding is a weighted sum of k
decoder rows, and the gradients of W_dec and W_enc are sums over the tokens where a latent was active. Nothing of size
(active entries, d_in) is ever made. `dense()` is the reference each path is tested against.

Shape letters: B tokens in the batch, N active entries in the whole batch, d_in, d_sae.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag

# The CSR layout has been "in beta" since PyTorch 1.8; the one product we ask of it is tested against the dense one.
warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state", category=UserWarning)


@dataclass(frozen=True, slots=True)
class SparseLatents:
    """The active latents of a batch, token by token (the layout of a CSR matrix)."""

    values: Float[Tensor, " N"]
    indices: Int[Tensor, " N"]
    """Which latent each value belongs to; ascending within a token."""
    offsets: Int[Tensor, " B_plus_1"]
    """Entries of token b are `offsets[b]:offsets[b + 1]`."""
    d_sae: int

    @property
    def n_tokens(self) -> int:
        return self.offsets.numel() - 1

    def tokens(self) -> Int[Tensor, " N"]:
        """Which token each value belongs to."""
        counts = self.offsets.diff()
        return torch.repeat_interleave(torch.arange(self.n_tokens, device=counts.device), counts, output_size=self.values.numel())

    def where(self, keep: Bool[Tensor, " N"]) -> "SparseLatents":
        """Only the entries marked in `keep`."""
        kept_before = torch.nn.functional.pad(keep.cumsum(0), (1, 0))
        kept = keep.nonzero().squeeze(1)
        return SparseLatents(self.values[kept], self.indices[kept], kept_before[self.offsets], self.d_sae)

    def dense(self) -> Float[Tensor, "B d_sae"]:
        """The same latents as a dense matrix."""
        flat = self.tokens() * self.d_sae + self.indices
        out = self.values.new_zeros(self.n_tokens * self.d_sae)
        return out.index_add(0, flat, self.values).view(self.n_tokens, self.d_sae)

    def active(self) -> Bool[Tensor, " d_sae"]:
        """Latents that are non-zero for at least one token."""
        seen = torch.zeros(self.d_sae, dtype=torch.bool, device=self.indices.device)
        seen[self.indices[self.values != 0]] = True
        return seen


@dataclass(frozen=True, slots=True)
class LatentOrder:
    """Entries sorted by latent (the CSC layout of the same matrix), so that weight gradients are sums without atomics."""

    order: Int[Tensor, " N"]
    tokens: Int[Tensor, " N"]
    offsets: Int[Tensor, " d_sae_plus_1"]

    @classmethod
    def of(cls, latents: SparseLatents) -> "LatentOrder":
        order = torch.argsort(latents.indices, stable=True)
        counts = torch.bincount(latents.indices, minlength=latents.d_sae)
        return cls(order, latents.tokens()[order], torch.nn.functional.pad(counts.cumsum(0), (1, 0)))

    def scatter_rows(self, weights: Float[Tensor, " N"], rows: Float[Tensor, "B d_in"]) -> Float[Tensor, "d_sae d_in"]:
        """Row i: the sum over entries of latent i of weight * rows[token]; that is `latents.T @ rows`."""
        return embedding_bag(self.tokens, rows, self.offsets, mode="sum", per_sample_weights=weights[self.order], include_last_offset=True)


def sparse_decode(latents: SparseLatents, W_dec: Float[Tensor, "d_sae d_in"], order: LatentOrder) -> Float[Tensor, "B d_in"]:
    """`latents.dense() @ W_dec`, with gradients for the values and for W_dec. `order` is `LatentOrder.of(latents)`."""
    return _Decode.apply(latents.values, W_dec, latents, order)


def pre_acts_at(
    entries: SparseLatents,
    x: Float[Tensor, "B d_in"],
    b_dec: Float[Tensor, " d_in"],
    W_enc: Float[Tensor, "d_in d_sae"],
    b_enc: Float[Tensor, " d_sae"],
    order: LatentOrder,
) -> Float[Tensor, " N"]:
    """The pre-activations `(x - b_dec) @ W_enc + b_enc` at chosen entries, with gradients only there.

    Args:
        entries: where; its `values` are those pre-activations, computed without gradient.
        x: the batch; it gets no gradient.
    """
    return _PreActs.apply(entries.values, x, b_dec, W_enc, b_enc, entries, order)


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, W_dec: Tensor, latents: SparseLatents, order: LatentOrder) -> Tensor:
        ctx.save_for_backward(values, W_dec)
        ctx.latents, ctx.order = latents, order
        return embedding_bag(latents.indices, W_dec, latents.offsets, mode="sum", per_sample_weights=values, include_last_offset=True)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        values, W_dec = ctx.saved_tensors
        latents, grad = ctx.latents, grads[0].contiguous()
        # d value = <grad of its token, its decoder row>: a product sampled at the active entries.
        pattern = torch.sparse_csr_tensor(
            latents.offsets, latents.indices, torch.zeros_like(values), (latents.n_tokens, latents.d_sae), check_invariants=False
        )
        d_values = torch.sparse.sampled_addmm(pattern, grad, W_dec.T, beta=0.0).values()
        return d_values, ctx.order.scatter_rows(values, grad), None, None


class _PreActs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, values: Tensor, x: Tensor, b_dec: Tensor, W_enc: Tensor, b_enc: Tensor, entries: SparseLatents, order: LatentOrder
    ) -> Tensor:
        ctx.save_for_backward(x, b_dec, W_enc)
        ctx.entries, ctx.order = entries, order
        return values.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None, Tensor, Tensor, Tensor, None, None]:
        x, b_dec, W_enc = ctx.saved_tensors
        grad = grads[0]
        d_W_enc = ctx.order.scatter_rows(grad, x - b_dec).T.contiguous()
        d_b_enc = grad.new_zeros(W_enc.shape[1]).index_add(0, ctx.entries.indices, grad)
        return None, None, -(W_enc @ d_b_enc), d_W_enc, d_b_enc, None, None
