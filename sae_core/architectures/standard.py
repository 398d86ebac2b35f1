"""Standard SAE: ReLU latents, L1 penalty weighted by decoder norms.

Bricken et al. 2023 ("Towards Monosemanticity") with the penalty of Anthropic's April 2024 update, which leaves decoder rows
free and multiplies each latent by its row's norm. Same formulas as SAELens' `standard`.
"""

from typing import Annotated, ClassVar, Literal, Self

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from sae_core.config import ARCHITECTURES, ArchitectureConfig
from sae_core.sae import LossContext, LossTerms, SparseAutoencoder, mse, norm_weighted_l1


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
        return torch.addmm(self.b_enc, x - self.b_dec, self.W_enc).relu()

    def loss(self, x: Float[Tensor, "B d_in"], ctx: LossContext) -> LossTerms:
        latents = self.encode(x)
        l1 = self.config.l1_coefficient * ctx.sparsity_scale * norm_weighted_l1(latents, self.W_dec)
        return LossTerms.of({"mse_loss": mse(self.decode(latents), x), "l1_loss": l1}, latents)
