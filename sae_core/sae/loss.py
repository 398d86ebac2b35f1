"""What a loss is given and returns, and what a training step has in memory.

Shape letters: B tokens in the batch, N active latents, E either (N) or (B, d_sae), d_in, d_sae; d_out width of what is reconstructed (d_in,
for an SAE).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_core.sparse.pre_acts import DensePreActs, PreActs


@dataclass(frozen=True, slots=True)
class LossContext:
    """What a loss may know beyond the batch."""

    sparsity_scale: float | Float[Tensor, ""] = 1.0
    """Factor on sparsity coefficients: rises from 0 to 1 during the sparsity warm-up, then follows the target L0 where there is one."""
    dead: Bool[Tensor, " d_sae"] | None = None
    """Latents inactive for `dead_after_tokens`; None when there are none."""
    progress: float = 1.0
    """Fraction of the run's steps that has passed, for schedules inside a loss; 1 is the end, where they have their final values."""
    target: Float[Tensor, "B d_out"] | None = None
    """What a transcoder reconstructs, in the units of training; None: the batch itself."""

    coefficients: Mapping[str, float] = field(default_factory=dict)
    """What the architecture's further coefficients are at this step (`ArchitectureConfig.coefficients`)."""

    def target_of(self, x: Float[Tensor, "B d_in"]) -> Float[Tensor, "B d_out"]:
        """What is to be reconstructed from the batch x."""
        return x if self.target is None else self.target


@dataclass(frozen=True, slots=True)
class LossTerms:
    """A loss, its named parts, and what the batch showed about sparsity."""

    total: Float[Tensor, ""]
    terms: dict[str, Float[Tensor, ""]]
    """Summands of `total`, coefficients applied."""
    l0: Float[Tensor, ""]
    """Mean number of active latents per token."""
    active: Bool[Tensor, " d_sae"]
    """Latents active for at least one token of the batch."""

    @classmethod
    def of(cls, terms: dict[str, Tensor], latents: Float[Tensor, "*E"], pre_acts: PreActs | None = None) -> "LossTerms":
        """Sum the terms; read sparsity off the latents.

        Args:
            latents: (B, d_sae), or one per value of `pre_acts` where that is given.
        """
        return cls(torch.stack(list(terms.values())).sum(), terms, *(pre_acts or DensePreActs(latents)).sparsity(latents))


@dataclass(frozen=True, slots=True)
class StepMemory:
    """What a training step has in memory at its peak, in float32 tensors, beside what its run keeps. Measured: docs/performance.md."""

    latents: float = 8.0
    """Tensors of shape (B, d_sae)."""
    latents_in_bfloat16: float = 8.0
    """The same where training autocasts."""
    inputs: float = 4.0
    """Tensors of shape (B, d_in)."""
    weights: float = 1.0
    """Tensors of the size of all parameters: their gradients, and what is copied of them."""
    listed_latents: float = 0.0
    """Latents per token that are listed (`sparse.active`), instead of standing in a matrix."""
