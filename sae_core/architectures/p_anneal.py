"""P-annealing SAE: the penalty moves from L1 towards a count of the active latents (Karvonen et al. 2024, arXiv:2408.00113).

A standard SAE whose penalty is sum_i latents_i^p with p falling from 1 in ten equal steps, as in dictionary_learning (`Lp^p`). At every
step of p the coefficient is multiplied by old over new penalty, so that its strength does not jump. Differs from dictionary_learning:
latents are multiplied by decoder norms, the ratio is that of one batch, not of ten, and EPSILON keeps gradients of small latents finite.
"""

from typing import Annotated, ClassVar, Literal, Self

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from sae_core.config.base import Fraction
from sae_core.config.run import ARCHITECTURES, ArchitectureConfig
from sae_core.sae.elementwise import ElementwiseSAE
from sae_core.sae.functional import mse
from sae_core.sae.loss import LossContext, LossTerms, StepMemory
from sae_core.sparse.pre_acts import PreActs

N_UPDATES = 10
EPSILON = 0.01
"""Added to latents before the power, in units where E||x|| = sqrt(d_in)."""


class PAnnealConfig(ArchitectureConfig):
    """ReLU SAE with a penalty of falling power."""

    sparsity_parameter: ClassVar[str] = "l1_coefficient"
    coefficient_times_l0: ClassVar[float] = 22.0

    architecture: Literal["p_anneal"] = "p_anneal"
    l1_coefficient: Annotated[float, Field(ge=0)] = 1.0
    """Multiplies mean_b sum_i (latents_i * ||W_dec_i||)^p, times what keeps its strength when p changes."""
    p_end: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Power at the end (SAEBench: 0.2)."""
    p_anneal_start: Fraction = 0.15
    """Fraction of the steps during which p is 1; then it falls, and is `p_end` for the last eleventh of the rest."""

    @property
    def schedule_end(self) -> float:
        """Where p is `p_end`."""
        return self.p_anneal_start + (1 - self.p_anneal_start) * N_UPDATES / (N_UPDATES + 1)

    def p_at(self, progress: float) -> float:
        """Power of the penalty when a fraction `progress` of the run has passed."""
        if progress >= self.schedule_end:
            return self.p_end
        way = max(0.0, progress - self.p_anneal_start) / (1 - self.p_anneal_start)
        return 1 - (1 - self.p_end) * int(way * (N_UPDATES + 1)) / N_UPDATES

    @classmethod
    def example(cls, d_in: int, d_sae: int) -> Self:
        return cls(d_sae=d_sae, l1_coefficient=0.5)


@ARCHITECTURES.register("p_anneal")
class PAnneal(ElementwiseSAE):
    """latents = relu((x - b_dec) @ W_enc + b_enc)."""

    Config = PAnnealConfig
    relative_cost = 1.1
    saelens_architecture = "standard"
    config: PAnnealConfig

    p: Tensor
    """Power of the last batch."""
    strength: Tensor
    """Factor that keeps the penalty's strength."""

    def __init__(self, config: PAnnealConfig, d_in: int, d_out: int | None = None, *, generator: torch.Generator | None = None) -> None:
        super().__init__(config, d_in, d_out, generator=generator)
        self.b_enc = nn.Parameter(torch.zeros(self.d_sae))
        self.register_buffer("p", torch.ones((), dtype=torch.float64))
        self.register_buffer("strength", torch.ones(()))
        self._known_p: float | None = None  # what `p` holds: read once, since reading waits for the device

    @classmethod
    def step_memory(cls, config: ArchitectureConfig, d_in: int) -> StepMemory:
        return StepMemory(latents=6.0, latents_in_bfloat16=6.0, inputs=2.0)

    def bound(self) -> Float[Tensor, " d_sae"]:
        return torch.zeros_like(self.b_enc)

    def activate(self, pre_acts: PreActs) -> Float[Tensor, "*E"]:
        return pre_acts.values.relu()

    def loss(self, x: Float[Tensor, "B d_in"], ctx: LossContext) -> LossTerms:
        pre_acts = self.pre_acts(x)
        latents = self.activate(pre_acts)
        penalty = self._penalty(pre_acts, latents, ctx.progress)
        terms = {
            "mse_loss": mse(pre_acts.decode(latents, self.W_dec) + self.output_offset(x), ctx.target_of(x)),
            "l1_loss": self.config.l1_coefficient * ctx.sparsity_scale * self.strength.clone() * penalty,
        }
        return LossTerms.of(terms, latents, pre_acts)

    def _penalty(self, pre_acts: PreActs, latents: Float[Tensor, "*E"], progress: float) -> Float[Tensor, ""]:
        sizes = latents * pre_acts.gather(self.decoder_norms())

        def powers(p: float) -> Tensor:
            return pre_acts.per_token((sizes + EPSILON) ** p - EPSILON**p).mean()

        p, before = self.config.p_at(progress), float(self.p) if self._known_p is None else self._known_p
        penalty = powers(p)
        if p != before:
            with torch.no_grad():
                ratio = powers(before) / penalty
                self.strength.mul_(torch.where(penalty > 0, ratio, torch.ones_like(ratio)))
                self.p.fill_(p)
        self._known_p = p
        return penalty

    def inference_weights(self) -> dict[str, Tensor]:
        """Of a standard SAE."""
        return {name: parameter.detach() for name, parameter in self.named_parameters()}
