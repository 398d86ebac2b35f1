"""JumpReLU SAE: a learned threshold per latent (Rajamanoharan et al. 2024, arXiv:2407.14435).

Thresholds get their gradient from a rectangle kernel of width `bandwidth` (straight-through estimator). Three sparsity losses,
with the formulas of SAELens: `step` is the paper's; `quadratic` aims at a target L0 (Gemma Scope 2); `tanh` is Anthropic's of
January 2025, whose pre-activation loss is `pre_act_loss_coefficient`. `frequency_scale` makes latents that are active often dearer.

Differs from the paper: thresholds are direct parameters kept at 0 or above, not exp of a parameter; defaults are wide and fast
(bandwidth 0.5, threshold 0.3), because the paper's 0.001 needs billions of tokens before L0 falls (docs/settings.md).
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from sae_core.config.base import Positive, require
from sae_core.config.run import ARCHITECTURES, ArchitectureConfig, TranscoderConfig
from sae_core.sae.base import SparseAutoencoder
from sae_core.sae.elementwise import ElementwiseSAE
from sae_core.sae.functional import mse
from sae_core.sae.loss import LossContext, LossTerms, StepMemory
from sae_core.sparse.pre_acts import PreActs

QUADRATIC_TIMES_L0 = 64.0
"""`coefficient_times_l0` of the quadratic loss: the loss is then 128 (L0 / target - 1)^2."""


class JumpReLUConfig(TranscoderConfig):
    """SAE with a threshold per latent; latents below it are 0."""

    sparsity_parameter: ClassVar[str] = "l0_coefficient"
    coefficient_times_l0: ClassVar[float] = 3.0

    left_out: ClassVar[tuple[str, ...]] = ("frequency_scale",)

    architecture: Literal["jumprelu"] = "jumprelu"
    l0_coefficient: Annotated[float, Field(ge=0)] = 0.1
    """Multiplies the sparsity loss, in units where E||x|| = sqrt(d_in)."""
    sparsity_loss: Literal["step", "quadratic", "tanh"] = "step"
    """step: mean L0. quadratic: mean_b 2/target_l0 * (L0_b - target_l0)^2. tanh: mean_b sum_i tanh(tanh_scale * latents_i * norm_i)."""
    tanh_scale: Annotated[float, Field(gt=0)] = 4.0
    """Steepness of the tanh loss."""
    frequency_scale: Positive | None = None
    """phi: adds sum_i f_i^2 / phi to the sparsity loss, where f_i is the mean over the batch of what the loss counts of latent i: with the
    step loss a latent costs f_i (1 + f_i / phi). Language-Model-SAEs: 0.01, with tanh. None: only how many are active counts."""
    pre_act_loss_coefficient: Annotated[float, Field(ge=0)] = 0.0
    """Multiplies mean_b sum over dead latents of relu(threshold_i - pre_acts_i) * ||W_dec_i||. Not warmed up."""
    init_threshold: Annotated[float, Field(gt=0)] = 0.3
    """Threshold of every latent at the start, in units where E||x|| = sqrt(d_in)."""
    bandwidth: Annotated[float, Field(gt=0)] = 0.5
    """Width of the kernel that gives thresholds their gradient, in the same units."""
    ste_to_input: bool = False
    """Whether the kernel's gradient also reaches the pre-activations (Anthropic) or only the thresholds (the paper)."""
    threshold_lr_factor: Annotated[float, Field(gt=0)] = 5.0
    """Learning rate of the thresholds, as a multiple of the common one."""

    @model_validator(mode="after")
    def _loss_has_its_fields(self) -> Self:
        require(
            self.sparsity_loss != "quadratic" or self.target_l0 is not None,
            "`target_l0` must be given where `sparsity_loss` is quadratic, but got target_l0=None. Set it, or use the step or tanh loss.",
        )
        require(
            self.sparsity_loss == "tanh" or not self.changed("tanh_scale"),
            f"`tanh_scale` must come with `sparsity_loss: tanh`, but got tanh_scale={self.tanh_scale:g} and "
            f"sparsity_loss={self.sparsity_loss!r}. Leave it out, or use the tanh loss.",
        )
        return self

    @property
    def controls_l0(self) -> bool:
        """The quadratic loss aims at the target itself."""
        return self.target_l0 is not None and self.sparsity_loss != "quadratic"

    @classmethod
    def aimed_at(cls, target_l0: float, given: Mapping[str, Any]) -> dict[str, Any]:
        # The quadratic loss has to be strong enough to hold the target against the reconstruction term (docs/sparsity.md).
        kappa = QUADRATIC_TIMES_L0 if given.get("sparsity_loss") == "quadratic" else cls.coefficient_times_l0
        return {"target_l0": target_l0, cls.sparsity_parameter: kappa / target_l0}

    @classmethod
    def example(cls, d_in: int, d_sae: int) -> Self:
        return cls(d_sae=d_sae, l0_coefficient=0.05)


@ARCHITECTURES.register("jumprelu")
class JumpReLU(ElementwiseSAE):
    """latents = z * 1[z > threshold], with z = (x - input_bias) @ W_enc + b_enc."""

    Config = JumpReLUConfig
    relative_cost = 1.2
    straight_through = frozenset({"threshold"})
    saelens_architecture = "jumprelu"
    transcodes = True
    config: JumpReLUConfig

    def __init__(self, config: JumpReLUConfig, d_in: int, d_out: int | None = None, *, generator: torch.Generator | None = None) -> None:
        super().__init__(config, d_in, d_out, generator=generator)
        self.b_enc = nn.Parameter(torch.zeros(self.d_sae))
        self.threshold = nn.Parameter(torch.full((self.d_sae,), config.init_threshold))

    @classmethod
    def step_memory(cls, config: ArchitectureConfig, d_in: int) -> StepMemory:
        return StepMemory(latents=6.0, latents_in_bfloat16=3.5, inputs=2.0)

    def bound(self) -> Float[Tensor, " d_sae"]:
        # In training, a pre-activation within the kernel moves its threshold.
        return self.threshold.detach() - (self.config.bandwidth / 2 if self.training else 0)

    def activate(self, pre_acts: PreActs) -> Float[Tensor, "*E"]:
        return self._latents_and_active(pre_acts)[0]

    def _latents_and_active(self, pre_acts: PreActs) -> tuple[Float[Tensor, "*E"], Float[Tensor, "*E"]]:
        threshold = pre_acts.gather(self.threshold)
        latents, active = _JumpReLU.apply(pre_acts.values, threshold, self.config.bandwidth, self.config.ste_to_input)
        return latents, active

    def lr_factors(self) -> dict[str, float]:
        return {"threshold": self.config.threshold_lr_factor}

    def to_inference(self) -> SparseAutoencoder:
        with torch.no_grad():
            self.threshold.clamp_(min=0)  # the last optimizer step may have left one below
        return super().to_inference()

    def loss(self, x: Float[Tensor, "B d_in"], ctx: LossContext) -> LossTerms:
        cfg = self.config
        with torch.no_grad():
            self.threshold.clamp_(min=0)
        pre_acts = self.pre_acts(x) if ctx.dead is None or not cfg.pre_act_loss_coefficient else self.all_pre_acts(x)
        latents, active = self._latents_and_active(pre_acts)
        terms = {
            "mse_loss": mse(pre_acts.decode(latents, self.W_dec) + self.output_offset(x), ctx.target_of(x)),
            "l0_loss": cfg.l0_coefficient * ctx.sparsity_scale * self._sparsity(pre_acts, latents, active),
        }
        if cfg.pre_act_loss_coefficient > 0:
            terms["pre_act_loss"] = cfg.pre_act_loss_coefficient * self._pre_act_loss(pre_acts, ctx.dead)
        return LossTerms.of(terms, latents, pre_acts)

    def _sparsity(self, pre_acts: PreActs, latents: Tensor, active: Tensor) -> Tensor:
        cfg, counts = self.config, active
        if cfg.sparsity_loss == "tanh":
            counts = torch.tanh(cfg.tanh_scale * latents * pre_acts.gather(self.decoder_norms()))
        per_token = pre_acts.per_token(counts)
        if cfg.sparsity_loss == "quadratic":
            assert cfg.target_l0 is not None, "the config is checked: a quadratic loss has a target"
            per_token = 2 / cfg.target_l0 * (per_token - cfg.target_l0) ** 2
        if cfg.frequency_scale is None:
            return per_token.mean()
        return per_token.mean() + (pre_acts.per_latent(counts) ** 2).sum() / cfg.frequency_scale

    def _pre_act_loss(self, pre_acts: PreActs, dead: Tensor | None) -> Tensor:
        if dead is None:
            return pre_acts.values.new_zeros(())
        below = (pre_acts.gather(self.threshold) - pre_acts.values).relu()
        return pre_acts.weighted_mean(below, dead * self.decoder_norms())


class _JumpReLU(torch.autograd.Function):
    """(z, threshold) -> latents and 1[z > threshold], with the straight-through gradients of the paper's section 3.

    With K = 1[|z - threshold| < bandwidth / 2] / bandwidth and g, h the gradients of latents and of 1[z > threshold]:
    d threshold = -K * (threshold * g + h), summed over tokens; d z = 1[z > threshold] * g   (+ K * (threshold * g + h) with `to_input`).
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, threshold: Tensor, bandwidth: float, to_input: bool) -> tuple[Tensor, Tensor]:
        active = _is_positive(z - threshold)
        ctx.save_for_backward(z, threshold, active)
        ctx.bandwidth, ctx.to_input = bandwidth, to_input
        return z * active, active

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        z, threshold, active = ctx.saved_tensors
        g, h = grads
        near = _is_positive(ctx.bandwidth / 2 - (z - threshold).abs())
        kernel = (threshold * g + h) * near / ctx.bandwidth
        d_z = active * g
        # A product with ones is the fastest sum over tokens. In a list a threshold belongs to one entry.
        d_threshold = kernel if threshold.shape == z.shape else (kernel.new_ones(1, len(kernel)) @ kernel).squeeze(0)
        return d_z + kernel if ctx.to_input else d_z, -d_threshold, None, None


def _is_positive(x: Tensor) -> Tensor:
    """1[x > 0] in the precision of x: on CPUs four times as fast as by way of booleans."""
    return x.relu().sign()
