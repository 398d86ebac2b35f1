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

from sae_core.config.run import ARCHITECTURES, ArchitectureConfig
from sae_core.sae.base import SparseAutoencoder
from sae_core.sae.elementwise import ElementwiseSAE
from sae_core.sae.functional import mse
from sae_core.sae.loss import LossContext, LossTerms, StepMemory
from sae_core.sparse.pre_acts import PreActs


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
class Gated(ElementwiseSAE):
    """latents = 1[u + b_gate > 0] * relu(u * exp(r_mag) + b_mag), with u = (x - b_dec) @ W_enc."""

    Config = GatedConfig
    relative_cost = 1.35
    saelens_architecture = "gated"
    config: GatedConfig

    def __init__(self, config: GatedConfig, d_in: int, *, generator: torch.Generator | None = None) -> None:
        super().__init__(config, d_in, generator=generator)
        self.b_gate = nn.Parameter(torch.zeros(self.d_sae))
        self.r_mag = nn.Parameter(torch.zeros(self.d_sae))
        self.b_mag = nn.Parameter(torch.zeros(self.d_sae))

    @classmethod
    def step_memory(cls, config: ArchitectureConfig, d_in: int) -> StepMemory:
        return StepMemory(latents=7.0, latents_in_bfloat16=3.6, inputs=2.0)

    def bias(self) -> None:
        return None

    def bound(self) -> Float[Tensor, " d_sae"]:
        return -self.b_gate.detach()  # where the gate is shut neither path has a gradient

    def activate(self, pre_acts: PreActs) -> Float[Tensor, "*E"]:
        return self._gate_and_latents(pre_acts)[1]

    def to_inference(self) -> SparseAutoencoder:
        """With exp(r_mag) in W_enc and b_gate, which opens the same gates: SAELens, which multiplies twice, then rounds as we do."""
        folded = super().to_inference()
        with torch.no_grad():
            factors = self.r_mag.exp()
            folded.W_enc *= factors
            folded.get_parameter("b_gate").mul_(factors)
            folded.get_parameter("r_mag").zero_()
        return folded

    def _gate_and_latents(self, pre_acts: PreActs) -> tuple[Float[Tensor, "*E"], Float[Tensor, "*E"]]:
        u = pre_acts.values
        gate = (u + pre_acts.gather(self.b_gate)).relu()
        magnitude = (u * pre_acts.gather(self.r_mag).exp() + pre_acts.gather(self.b_mag)).relu()
        return gate, magnitude * gate.detach().sign()

    def loss(self, x: Float[Tensor, "B d_in"], ctx: LossContext) -> LossTerms:
        pre_acts = self.pre_acts(x)
        gate, latents = self._gate_and_latents(pre_acts)
        terms = {
            "mse_loss": mse(pre_acts.decode(latents, self.W_dec) + self.b_dec, x),
            "l1_loss": self.config.l1_coefficient * ctx.sparsity_scale * pre_acts.weighted_mean(gate, self.decoder_norms()),
            "auxiliary_reconstruction_loss": mse(pre_acts.decode(gate, self.W_dec) + self.b_dec, x),
        }
        return LossTerms.of(terms, latents, pre_acts)
