"""Standard SAE: ReLU latents, L1 penalty weighted by decoder norms.

Bricken et al. 2023 ("Towards Monosemanticity") with the penalty of Anthropic's April 2024 update, which leaves decoder rows
free and multiplies each latent by its row's norm. Same formulas as SAELens' `standard`. With `normalize_decoder` rows keep norm 1, as
Bricken et al. have them.
"""

from typing import Annotated, ClassVar, Literal, Self

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from sae_core.config.base import Positive
from sae_core.config.run import ARCHITECTURES, ArchitectureConfig, TranscoderConfig
from sae_core.sae.elementwise import ElementwiseSAE
from sae_core.sae.functional import mse
from sae_core.sae.loss import LossContext, LossTerms, StepMemory
from sae_core.sparse.pre_acts import PreActs


class StandardConfig(TranscoderConfig):
    """ReLU SAE with an L1 penalty."""

    sparsity_parameter: ClassVar[str] = "l1_coefficient"
    coefficient_times_l0: ClassVar[float] = 22.0
    left_out: ClassVar[tuple[str, ...]] = ("lp_norm", "normalize_decoder")

    architecture: Literal["standard"] = "standard"
    l1_coefficient: Annotated[float, Field(ge=0)] = 1.0
    """Multiplies mean_b sum_i latents_i * ||W_dec_i||, in units where E||x|| = sqrt(d_in)."""
    lp_norm: Positive = 1.0
    """p of the penalty, mean_b (sum_i (latents_i * ||W_dec_i||)^p)^(1/p) (SAELens: 1)."""
    normalize_decoder: bool = False
    """Whether decoder rows are held at norm 1, as in Bricken et al. 2023. Then `decoder_init_norm` must be 1."""

    @property
    def unit_rows(self) -> bool:
        return self.normalize_decoder or self.aligned

    @classmethod
    def example(cls, d_in: int, d_sae: int) -> Self:
        return cls(d_sae=d_sae, l1_coefficient=0.5)


@ARCHITECTURES.register("standard")
class Standard(ElementwiseSAE):
    """latents = relu((x - input_bias) @ W_enc + b_enc)."""

    Config = StandardConfig
    saelens_architecture = "standard"
    transcodes = True
    config: StandardConfig

    def __init__(self, config: StandardConfig, d_in: int, d_out: int | None = None, *, generator: torch.Generator | None = None) -> None:
        super().__init__(config, d_in, d_out, generator=generator)
        self.b_enc = nn.Parameter(torch.zeros(self.d_sae))

    @classmethod
    def step_memory(cls, config: ArchitectureConfig, d_in: int) -> StepMemory:
        return StepMemory(latents=3.0, latents_in_bfloat16=1.6, inputs=2.0)

    def bound(self) -> Float[Tensor, " d_sae"]:
        return torch.zeros_like(self.b_enc)

    def activate(self, pre_acts: PreActs) -> Float[Tensor, "*E"]:
        return pre_acts.values.relu()

    def loss(self, x: Float[Tensor, "B d_in"], ctx: LossContext) -> LossTerms:
        pre_acts = self.pre_acts(x)
        latents = self.activate(pre_acts)
        terms = {
            "mse_loss": mse(pre_acts.decode(latents, self.W_dec) + self.output_offset(x), ctx.target_of(x)),
            "l1_loss": self.config.l1_coefficient * ctx.sparsity_scale * self._penalty(pre_acts, latents),
        }
        return LossTerms.of(terms, latents, pre_acts)

    def _penalty(self, pre_acts: PreActs, latents: Float[Tensor, "*E"]) -> Float[Tensor, ""]:
        norms, p = self.decoder_norms(), self.config.lp_norm
        if p == 1:
            return pre_acts.weighted_mean(latents, norms)
        powers = pre_acts.per_token(_power(latents * pre_acts.gather(norms), p))
        return _power(powers, 1 / p).mean()


def _power(values: Float[Tensor, "*E"], p: float) -> Float[Tensor, "*E"]:
    """values^p, for values of at least 0; the gradient where a value is 0 is 0, as SAELens has it."""
    is_positive = values > 0
    return torch.where(is_positive, values, 1.0) ** p * is_positive
