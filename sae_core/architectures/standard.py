"""Standard SAE: ReLU latents, L1 penalty weighted by decoder norms.

Bricken et al. 2023 ("Towards Monosemanticity") with the penalty of Anthropic's April 2024 update, which leaves decoder rows
free and multiplies each latent by its row's norm. Same formulas as SAELens' `standard`.
"""

from typing import Annotated, ClassVar, Literal, Self

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from sae_core.config.run import ARCHITECTURES, ArchitectureConfig
from sae_core.sae.base import LossContext, LossTerms, SparseAutoencoder, mse, row_norms
from sae_core.sparse.active import ActiveLatents, active_above
from sae_core.sparse.pre_acts import encoder_products, pre_acts_above


class StandardConfig(ArchitectureConfig):
    """ReLU SAE with an L1 penalty."""

    sparsity_parameter: ClassVar[str] = "l1_coefficient"
    coefficient_times_l0: ClassVar[float] = 22.0

    architecture: Literal["standard"] = "standard"
    l1_coefficient: Annotated[float, Field(ge=0)] = 1.0
    """Multiplies mean_b sum_i latents_i * ||W_dec_i||, in units where E||x|| = sqrt(d_in)."""

    @classmethod
    def example(cls, d_in: int, d_sae: int) -> Self:
        return cls(d_sae=d_sae, l1_coefficient=0.5)


@ARCHITECTURES.register("standard")
class Standard(SparseAutoencoder):
    """latents = relu((x - b_dec) @ W_enc + b_enc)."""

    Config = StandardConfig
    saelens_architecture = "standard"
    config: StandardConfig

    def __init__(self, config: StandardConfig, d_in: int, *, generator: torch.Generator | None = None) -> None:
        super().__init__(config, d_in, generator=generator)
        self.b_enc = nn.Parameter(torch.zeros(self.d_sae))

    def encode(self, x: Float[Tensor, "B d_in"]) -> Float[Tensor, "B d_sae"]:
        return (encoder_products(x, self.b_dec, self.W_enc) + self.b_enc).relu()

    def encode_sparse(self, x: Float[Tensor, "B d_in"]) -> tuple[ActiveLatents, Float[Tensor, " N"]]:
        return active_above(encoder_products(x, self.b_dec, self.W_enc), self.b_enc, torch.zeros_like(self.b_enc))

    def loss(self, x: Float[Tensor, "B d_in"], ctx: LossContext) -> LossTerms:
        pre_acts = pre_acts_above(torch.zeros_like(self.b_enc), x, self.b_dec, self.W_enc, self.b_enc)
        latents = pre_acts.values.relu()
        terms = {
            "mse_loss": mse(pre_acts.decode(latents, self.W_dec) + self.b_dec, x),
            "l1_loss": self.config.l1_coefficient * ctx.sparsity_scale * pre_acts.weighted_mean(latents, row_norms(self.W_dec)),
        }
        return LossTerms.of(terms, pre_acts, latents)
