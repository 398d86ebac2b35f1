"""The pre-activations of a batch as a loss sees them: all of them, or a list of those that can matter.

A loss is written once, in terms of `Entries`. Where few pre-activations are above the bound an architecture gives, it runs on the list, and
everything after the encoder product costs what the active latents cost; early in training, when hundreds are active, it runs on the
whole matrix. Both give the same loss and the same gradients.

Shape letters: B tokens in the batch, N entries in the list, E either (N) or (B, d_sae), d_in, d_sae.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_core.sparse.kernels.choice import kernels_for, lists_are_faster
from sae_core.sparse.latents import Pattern, pre_acts_at, sparse_decode

LISTED_FRACTION = 1 / 5
"""Largest fraction of the pre-activations that is listed; above it products of whole matrices are faster."""


class Entries(ABC):
    """Pre-activations with gradients, and what a loss does with values at the same places."""

    pre_acts: Float[Tensor, "*E"]

    @abstractmethod
    def of_latent(self, parameter: Float[Tensor, " d_sae"]) -> Float[Tensor, "*E"]:
        """A parameter with one number a latent, as it is at each entry; broadcasts against `pre_acts`."""

    @abstractmethod
    def decode(self, latents: Float[Tensor, "*E"], W_dec: Float[Tensor, "d_sae d_in"]) -> Float[Tensor, "B d_in"]:
        """latents @ W_dec."""

    @abstractmethod
    def per_token(self, values: Float[Tensor, "*E"]) -> Float[Tensor, " B"]:
        """The sum over the entries of each token."""

    @abstractmethod
    def weighted_mean(self, values: Float[Tensor, "*E"], weights: Float[Tensor, " d_sae"]) -> Float[Tensor, ""]:
        """The mean over tokens of the sum over latents of value * weight."""

    @abstractmethod
    def sparsity(self, latents: Float[Tensor, "*E"]) -> tuple[Float[Tensor, ""], Bool[Tensor, " d_sae"]]:
        """Mean number of latents that are not 0 per token, and which are not 0 for at least one. Without gradients."""


@dataclass(frozen=True)
class AllEntries(Entries):
    """Every pre-activation, (B, d_sae), in the precision of the encoder product."""

    pre_acts: Float[Tensor, "B d_sae"]

    def of_latent(self, parameter: Tensor) -> Tensor:
        # In the same precision: under autocast a float32 parameter would turn every (B, d_sae) matrix into float32.
        return parameter.to(self.pre_acts.dtype)

    def decode(self, latents: Tensor, W_dec: Tensor) -> Tensor:
        return latents @ W_dec

    def per_token(self, values: Tensor) -> Tensor:
        return values.sum(dim=-1, dtype=torch.promote_types(values.dtype, torch.float32))

    def weighted_mean(self, values: Tensor, weights: Tensor) -> Tensor:
        return (values @ self.of_latent(weights)).float().mean()

    def sparsity(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        nonzero = latents.detach().bool()
        return torch.count_nonzero(nonzero) / len(latents), nonzero.view(torch.int8).amax(dim=0) > 0  # 40 times as fast as any(dim=0)


@dataclass(frozen=True)
class ListedEntries(Entries):
    """The pre-activations of a pattern, (N,), float32."""

    pre_acts: Float[Tensor, " N"]
    pattern: Pattern

    def of_latent(self, parameter: Tensor) -> Tensor:
        return parameter.index_select(0, self.pattern.indices)

    def decode(self, latents: Tensor, W_dec: Tensor) -> Tensor:
        return sparse_decode(latents, W_dec, self.pattern)

    def per_token(self, values: Tensor) -> Tensor:
        return values.new_zeros(self.pattern.n_tokens).index_add(0, self.pattern.tokens, values)

    def weighted_mean(self, values: Tensor, weights: Tensor) -> Tensor:
        return (values * self.of_latent(weights)).sum() / self.pattern.n_tokens

    def sparsity(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        nonzero = latents.detach().bool()
        times_active = torch.zeros(self.pattern.d_sae, device=latents.device).index_add(0, self.pattern.indices, nonzero.float())
        return times_active.sum() / self.pattern.n_tokens, times_active > 0


def entries_above(
    bound: Float[Tensor, " d_sae"],
    x: Float[Tensor, "B d_in"],
    b_dec: Float[Tensor, " d_in"],
    W_enc: Float[Tensor, "d_in d_sae"],
    bias: Float[Tensor, " d_sae"] | None,
) -> Entries:
    """The pre-activations (x - b_dec) @ W_enc + bias: a list of those above their latent's bound where they are few, else all.

    Args:
        bound: below it a pre-activation has no part in the loss: neither its value nor a gradient.
    """
    products = encoder_products(x, b_dec, W_enc)
    most = int(LISTED_FRACTION * products.numel())
    summand = torch.zeros_like(bound) if bias is None else bias
    found = kernels_for(x).entries_above(products, summand, bound, most) if lists_are_faster(x) else None
    if found is None:
        return AllEntries(products if bias is None else products + bias.to(products.dtype))
    indices, values, offsets = found
    pattern = Pattern(indices, offsets, W_enc.shape[1])
    return ListedEntries(pre_acts_at(pattern, values, x, b_dec, W_enc, bias), pattern)


def encoder_products(
    x: Float[Tensor, "B d_in"], b_dec: Float[Tensor, " d_in"], W_enc: Float[Tensor, "d_in d_sae"]
) -> Float[Tensor, "B d_sae"]:
    """(x - b_dec) @ W_enc, without the bias: PyTorch would first write it into every row of the result, which takes half as long again.

    Args:
        x: in any precision; the products are in that of the weights.
    """
    return _Products.apply(x.to(W_enc.dtype), b_dec, W_enc)


class _Products(torch.autograd.Function):
    """As PyTorch's, with one product less in the backward pass: it would make the gradient of every x - b_dec to sum them up for b_dec."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, b_dec: Tensor, W_enc: Tensor) -> Tensor:
        centred = x - b_dec
        ctx.save_for_backward(centred, W_enc)
        # W_enc.T is contiguous, so that autocast rounds it at the speed of memory.
        return torch.nn.functional.linear(centred, W_enc.T)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        centred, W_enc = ctx.saved_tensors
        grad = grads[0]
        d_W_enc = (grad.T @ centred.to(grad.dtype)).T.to(W_enc.dtype)
        d_x = (grad @ W_enc.T.to(grad.dtype)).to(centred.dtype) if ctx.needs_input_grad[0] else None
        return d_x, -(W_enc @ grad.sum(dim=0, dtype=W_enc.dtype)), d_W_enc
