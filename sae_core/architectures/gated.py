"""Gated SAE: one path decides which latents are active, another how strongly (Rajamanoharan et al. 2024, arXiv:2404.16014).

Formulas of SAELens' `gated`: decoder rows are free and the L1 penalty is weighted by their norms. Differs from the paper: the
decoder is not frozen in the auxiliary reconstruction. With free decoder rows, freezing it there leaves L0 in the hundreds
whatever the coefficient (docs/settings.md); the paper freezes it because its decoder rows have norm 1.
"""

from typing import Annotated, ClassVar, Literal, Self

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from sae_core.config import ARCHITECTURES, ArchitectureConfig
from sae_core.sae import LossContext, LossTerms, SparseAutoencoder, mse, norm_weighted_l1


class GatedConfig(ArchitectureConfig):
    """SAE with separate gate and magnitude, sharing encoder directions."""

    sparsity_parameter: ClassVar[str] = "l1_coefficient"
    coefficient_times_l0: ClassVar[float] = 20.0

    architecture: Literal["gated"] = "gated"
    l1_coefficient: Annotated[float, Field(ge=0)] = 1.0
    """Multiplies mean_b sum_i relu(gate_pre_acts_i) * ||W_dec_i||, in units where E||x|| = sqrt(d_in)."""

    @classmethod
    def example(cls, d_in: int, d_sae: int) -> Self:
        return cls(d_sae=d_sae, l1_coefficient=0.5)


@ARCHITECTURES.register("gated")
class Gated(SparseAutoencoder):
    """latents = 1[u + b_gate > 0] * relu(u * exp(r_mag) + b_mag), with u = (x - b_dec) @ W_enc."""

    Config = GatedConfig
    relative_cost = 1.9
    saelens_architecture = "gated"
    config: GatedConfig

    def __init__(self, config: GatedConfig, d_in: int, *, generator: torch.Generator | None = None) -> None:
        super().__init__(config, d_in, generator=generator)
        self.b_gate = nn.Parameter(torch.zeros(self.d_sae))
        self.r_mag = nn.Parameter(torch.zeros(self.d_sae))
        self.b_mag = nn.Parameter(torch.zeros(self.d_sae))

    def encode(self, x: Float[Tensor, "B d_in"]) -> Float[Tensor, "B d_sae"]:
        return self._gate_and_latents(x)[1]

    def _gate_and_latents(self, x: Tensor) -> tuple[Tensor, Tensor]:
        u = (x - self.b_dec) @ self.W_enc
        # In the precision of u: under autocast a float32 bias would turn every (B, d_sae) matrix below into float32.
        b_gate, r_mag, b_mag = (p.to(u.dtype) for p in (self.b_gate, self.r_mag, self.b_mag))
        gate_pre_acts = u + b_gate
        magnitude = (u * r_mag.exp() + b_mag).relu()
        return gate_pre_acts, magnitude * (gate_pre_acts > 0)

    def loss(self, x: Float[Tensor, "B d_in"], ctx: LossContext) -> LossTerms:
        gate_pre_acts, latents = self._gate_and_latents(x)
        gate = gate_pre_acts.relu()
        terms = {
            "mse_loss": mse(self.decode(latents), x),
            "l1_loss": self.config.l1_coefficient * ctx.sparsity_scale * norm_weighted_l1(gate, self.W_dec),
            "auxiliary_reconstruction_loss": mse(self.decode(gate), x),
        }
        return LossTerms.of(terms, latents)
