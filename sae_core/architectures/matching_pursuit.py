"""Matching pursuit SAE: latents are chosen one by one, each the one that takes most off what is left of x (arXiv:2506.03093).

The encoder is the decoder's transpose, and decoder rows keep norm 1, as a pursuit wants them. Formulas of SAELens' `matching_pursuit`;
differs from it: there rows are free after the start.

Warning: on synthetic data with known features it reconstructs better than any other architecture and finds worse features: it fits
what superposition adds (SynthSAEBench, arXiv:2602.14687). A step costs 2 times (k 8) to 8 times (k 32) one of a standard SAE.
Shape letters: B tokens in the batch, n latents chosen per token, d_in, d_sae.
"""

from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor

from sae_core.architectures.topk_family import CountedConfig
from sae_core.config.base import Count, Positive, require
from sae_core.config.run import ARCHITECTURES
from sae_core.errors import ConfigError
from sae_core.sae.base import SparseAutoencoder
from sae_core.sae.functional import mse
from sae_core.sae.loss import LossContext, LossTerms, StepMemory
from sae_core.sae.normalization import Affine, Normalization
from sae_core.sparse.active import ActiveLatents


class MatchingPursuitConfig(CountedConfig):
    """SAE that chooses at most k latents per token, one after another."""

    is_tied: ClassVar[bool] = True

    architecture: Literal["matching_pursuit"] = "matching_pursuit"
    k: Count
    """Most latents chosen per token (SAELens: `max_iterations`). One that is chosen twice counts once in L0."""
    residual_threshold: Annotated[float, Field(ge=0)] = 0.0
    """A token is done when what is left of it has a smaller norm, in units where E||x|| = sqrt(d_in); 0: never (SynthSAEBench: 0; SAELens:
    0.01)."""
    stop_on_duplicate_support: bool = False
    """Whether a token is done when it chooses a latent again (SynthSAEBench: no; SAELens: yes)."""
    decoder_init_norm: Positive | Literal["search"] = 1.0
    """Norm of each decoder row, at the start and ever after."""

    @model_validator(mode="after")
    def _there_is_no_encoder(self) -> Self:
        given = self.changed("encoder_init", "aligned")
        require(not given, f"matching pursuit has no encoder of its own, but got {given}. Leave it out.")
        return self

    @property
    def unit_rows(self) -> bool:
        return True


@ARCHITECTURES.register("matching_pursuit")
class MatchingPursuit(SparseAutoencoder):
    """r = x - b_dec; k times: i = argmax r . W_dec_i, latent_i += relu(r . W_dec_i), r -= relu(r . W_dec_i) W_dec_i."""

    Config = MatchingPursuitConfig
    relative_cost = 7.0
    saelens_architecture = "matching_pursuit"
    config: MatchingPursuitConfig

    @classmethod
    def step_memory(cls, config: Any, d_in: int) -> StepMemory:
        return StepMemory(latents=1.3, latents_in_bfloat16=1.3, inputs=4.0, weights=3.0)

    def encode(self, x: Float[Tensor, "B d_in"]) -> Float[Tensor, "B d_sae"]:
        indices, values, _ = pursue(x.to(self.W_dec.dtype) - self.b_dec, self.W_dec, self.config)
        return self._dense(indices, values)

    def _dense(self, indices: Int[Tensor, "B n"], values: Float[Tensor, "B n"]) -> Float[Tensor, "B d_sae"]:
        return values.new_zeros(len(values), self.d_sae).scatter_add_(1, indices, values)

    def loss(self, x: Float[Tensor, "B d_in"], ctx: LossContext) -> LossTerms:
        x_hat, indices, values = _Reconstruction.apply(x, self.b_dec, self.W_dec, self.config)
        return LossTerms.of({"mse_loss": mse(x_hat, x)}, self._dense(indices, values))

    @torch.no_grad()
    def fold(self, normalization: Normalization) -> None:
        """As every SAE's, but that latents are in the units of x afterwards: decoder rows keep norm 1. `residual_threshold` follows.

        Raises:
            ConfigError: the normalization is more than a scale and a shift, after which encoder and decoder differ.
        """
        if not isinstance(normalization, Affine):
            super().fold(normalization)
            return
        if isinstance(normalization.inverse, Tensor):
            raise ConfigError(
                "activations of matching pursuit must be normalized by a scale, since its encoder is its decoder's transpose, but got "
                f"normalize_activations={normalization.name!r}. Take 'expected_norm', 'layer_norm' or 'none'."
            )
        self.b_dec.copy_(self.b_dec * normalization.inverse + (0 if normalization.mean is None else normalization.mean))
        threshold = self.config.residual_threshold * normalization.inverse
        self.config = self.config.model_copy(update={"residual_threshold": threshold})

    def saelens_fields(self) -> dict[str, object]:
        fields = ("residual_threshold", "stop_on_duplicate_support")
        return {"max_iterations": self.config.k, **{name: getattr(self.config, name) for name in fields}}


@torch.no_grad()
def pursue(
    centered: Float[Tensor, "B d_in"], W_dec: Float[Tensor, "d_sae d_in"], config: MatchingPursuitConfig
) -> tuple[Int[Tensor, "B n"], Float[Tensor, "B n"], Float[Tensor, "B d_in"]]:
    """The latents chosen one after another, what each adds (0 once a token is done), and what is left of each token.

    Args:
        centered: x - b_dec.
    """
    residual, done = centered, torch.zeros(len(centered), dtype=torch.bool, device=centered.device)
    indices: list[Tensor] = []
    values: list[Tensor] = []
    for _ in range(config.k):
        best = (residual @ W_dec.T).max(dim=1).indices
        rows = W_dec.index_select(0, best)
        value = (residual * rows).sum(dim=1).relu() * ~done
        if config.stop_on_duplicate_support:
            again = [(best == index) & (earlier > 0) for index, earlier in zip(indices, values, strict=True)]
            done = torch.stack([done, value == 0, *again]).any(dim=0)
        residual = residual - value[:, None] * rows
        if config.residual_threshold > 0:
            done = done | (residual.norm(dim=1) < config.residual_threshold)
        indices.append(best)
        values.append(value)
        if (config.stop_on_duplicate_support or config.residual_threshold > 0) and bool(done.all()):
            break
    return torch.stack(indices, dim=1), torch.stack(values, dim=1), residual


class _Reconstruction(torch.autograd.Function):
    """x_hat, and which latents with which values make it. The choice has no gradient.

    The backward pass puts latents back on what is left, from the last to the first, so that one residual is in memory, not one per latent.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, b_dec: Tensor, W_dec: Tensor, config: MatchingPursuitConfig) -> tuple[Tensor, Tensor, Tensor]:
        indices, values, residual = pursue(x.to(W_dec.dtype) - b_dec, W_dec, config)
        ctx.save_for_backward(W_dec, residual, indices, values)
        ctx.mark_non_differentiable(indices, values)
        return x - residual, indices, values

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, Tensor, None]:
        W_dec, residual, indices, values = ctx.saved_tensors
        offsets, ones = torch.arange(len(indices) + 1, device=indices.device), torch.ones_like(values[:, 0])
        d_residual, d_W_dec = -grads[0], torch.zeros_like(W_dec)
        for best, value in reversed(list(zip(indices.unbind(1), values.unbind(1), strict=True))):
            rows = W_dec.index_select(0, best)
            residual = residual + value[:, None] * rows
            d_value = -(d_residual * rows).sum(dim=1) * (value > 0)
            d_rows = d_value[:, None] * residual - value[:, None] * d_residual
            d_W_dec += ActiveLatents(best, offsets, len(W_dec)).sum_by_latent(ones, d_rows)
            d_residual = d_residual + d_value[:, None] * rows
        return None, -d_residual.sum(dim=0), d_W_dec, None
