"""HierarchicalTopK SAE: one TopK SAE that is good at every smaller k as well (arXiv:2505.24473).

The loss is the mean of the squared errors with the j largest latents of a token, over several j up to k. Its inference form is a TopK
SAE; `frontier` gives one at each j, with the same weights.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from sae_core.architectures.topk import TopK, TopKConfig
from sae_core.architectures.topk_family import TopKFamily, TopKFamilyConfig
from sae_core.config.base import Count, require
from sae_core.config.run import ARCHITECTURES
from sae_core.sae.base import SparseAutoencoder
from sae_core.sparse.active import ActiveLatents, topk_per_token
from sae_core.sparse.kernels.choice import kernels_for
from sae_core.sparse.pre_acts import SparsePreActs


class HierarchicalTopKConfig(TopKFamilyConfig):
    """TopK SAE trained for several numbers of active latents at once."""

    architecture: Literal["hierarchical_topk"] = "hierarchical_topk"
    k: Count
    """Most active latents per token."""
    k_start: Count | None = None
    """`k` at the start of training, from where it goes to `k`; None: `k` all along."""
    inner_ks: Annotated[tuple[Count, ...], Field(strict=False)] | None = None
    """Increasing numbers of active latents below `k` at which the error counts too; default: powers of two. The paper: all, or those."""

    @model_validator(mode="after")
    def _inner_ks_increase(self) -> Self:
        ks = self.inner_ks
        require(
            ks is None or (list(ks) == sorted(set(ks)) and (not ks or ks[-1] < self.k)),
            f"`inner_ks` must increase and be below k, but got inner_ks={list(ks or ())} and k={self.k}. Correct them, or leave them out.",
        )
        return self

    @property
    def levels(self) -> tuple[int, ...]:
        """Numbers of active latents that the SAE is trained for, `k` last."""
        powers = tuple(2**i for i in range(math.ceil(math.log2(self.k))))
        return (*(powers if self.inner_ks is None else self.inner_ks), self.k)

    @property
    def measured_ks(self) -> tuple[int, ...]:
        """The levels below `k` that are measured: those nearest to powers of two, because many levels differ little from one another."""
        inner = self.levels[:-1]
        powers = range((self.k - 1).bit_length()) if inner else ()
        return tuple(sorted({min(inner, key=lambda level: abs(math.log2(level) - power)) for power in powers}))

    @property
    def n_forms(self) -> int:
        return len(self.measured_ks)


@ARCHITECTURES.register("hierarchical_topk")
class HierarchicalTopK(TopKFamily):
    """latents = relu of the k pre-activations of largest score, zero elsewhere."""

    Config = HierarchicalTopKConfig
    relative_cost = 1.6
    saelens_architecture = "topk"
    config: HierarchicalTopKConfig
    selection_memory = 3.1, 2.6

    def select(self, products: Float[Tensor, "B d_sae"], k: float) -> tuple[ActiveLatents, Float[Tensor, " N"]]:
        return topk_per_token(products, self.b_enc, self.score_factors(), round(k))

    def encode(self, x: Float[Tensor, "B d_in"]) -> Float[Tensor, "B d_sae"]:
        products = self.products(x)
        return (products + self.b_enc).relu() * self.select(products, self.config.k)[0].mask()

    def reconstruction_terms(
        self, pre_acts: SparsePreActs, latents: Float[Tensor, " N"], offset: Float[Tensor, "*B d_out"], target: Float[Tensor, "B d_out"]
    ) -> tuple[Float[Tensor, "B d_out"], dict[str, Tensor]]:
        active = pre_acts.active
        k = active.indices.numel() // active.n_tokens
        levels = (*(level for level in self.config.levels if level < k), k)
        scores = latents.detach() * self.score_factors().index_select(0, active.indices)
        order = scores.view(-1, k).argsort(dim=1, descending=True, stable=True)
        errors, x_hat = _NestedErrors.apply(latents, self.W_dec, offset, target, _between(active, order, levels))
        means = errors / (len(target) * len(levels))
        names = [*(f"inner_mse_loss_{level}" for level in levels[:-1]), "mse_loss"]
        return x_hat, dict(zip(names, means.unbind(), strict=True))

    def to_inference(self) -> SparseAutoencoder:
        return self.frontier([self.config.k])[self.config.k]

    def forms(self) -> dict[str, SparseAutoencoder]:
        return {f"k-{k}": sae for k, sae in self.frontier(self.config.measured_ks).items()}

    def frontier(self, ks: Sequence[int] | None = None) -> dict[int, TopK]:
        """The inference forms with fewer active latents: k -> TopK SAE with the weights of this one.

        Args:
            ks: at most `k`; None: those that the SAE was trained for.
        """
        weights, saes = self.folded_weights(), {}
        for k in self.config.levels if ks is None else ks:
            saes[k] = TopK(TopKConfig(d_sae=self.d_sae, k=k, rescale_acts_by_decoder_norm=False), self.d_in)
            saes[k].load_state_dict(weights)
            saes[k].to(self.W_dec.device).eval()
        return saes


Level = tuple[Tensor, ActiveLatents]
"""Places in the list of latents, and the latents there: those that a level adds to the one before."""


def _between(active: ActiveLatents, order: Tensor, levels: Sequence[int]) -> list[Level]:
    """The latents between each two levels of every token.

    Args:
        order: [B, k], which latent of a token is the largest, second, ...
    """
    (n_tokens, k), found = order.shape, []
    starts = torch.arange(0, n_tokens * k, k, device=order.device)[:, None]
    for low, high in zip((0, *levels[:-1]), levels, strict=True):
        places = (order[:, low:high].sort(dim=1).values + starts).flatten()  # ascending within a token, as a list must be
        offsets = torch.arange(0, len(places) + 1, high - low, device=order.device)
        found.append((places, ActiveLatents(active.indices.index_select(0, places), offsets, active.d_sae)))
    return found


class _NestedErrors(torch.autograd.Function):
    """||x_hat_j - target||^2 summed over tokens, for every level j, and the last x_hat (without gradient).

    One reconstruction is in memory, not one a level: the backward pass takes latents off again, from the last level to the first.
    """

    @staticmethod
    def forward(ctx: Any, latents: Tensor, W_dec: Tensor, offset: Tensor, target: Tensor, levels: Sequence[Level]) -> tuple[Tensor, Tensor]:
        error, errors = offset - target, []
        for places, active in levels:
            error = error + _decode(active, latents.index_select(0, places), W_dec)
            errors.append(error.flatten().dot(error.flatten()))
        ctx.save_for_backward(latents, W_dec, error)
        ctx.levels, ctx.offset_shape = levels, offset.shape
        x_hat = error + target
        ctx.mark_non_differentiable(x_hat)
        return torch.stack(errors), x_hat

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        latents, W_dec, error = ctx.saved_tensors
        d_latents, d_W_dec, d_error = torch.zeros_like(latents), torch.zeros_like(W_dec), torch.zeros_like(error)
        for i in reversed(range(len(ctx.levels))):
            places, active = ctx.levels[i]
            values = latents.index_select(0, places)
            d_error = d_error + 2 * grads[0][i] * error
            d_latents[places] = kernels_for(d_error).dots(active.offsets, active.indices, d_error, W_dec)
            d_W_dec += active.sum_by_latent(values, d_error)
            error = error - _decode(active, values, W_dec)
        return d_latents, d_W_dec, d_error.sum_to_size(ctx.offset_shape), None, None


def _decode(active: ActiveLatents, values: Tensor, W_dec: Tensor) -> Tensor:
    return kernels_for(values).weighted_sums(active.offsets, active.indices, values, W_dec)
