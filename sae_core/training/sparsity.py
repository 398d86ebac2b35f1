"""Schedules of sparsity, and the controller that finds the coefficient for a wanted L0."""

import math
from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor

from sae_core.config.run import RunConfig, TrainConfig
from sae_core.config.spans import steps_of

GAIN = 20.0
"""Strength of the controller over a whole run: an L0 off by a factor e for all of it would move the log-coefficient by this much."""
MAX_GAIN_PER_STEP = 0.05
"""Bound for short runs: the SAE follows a changed coefficient only after some tens of steps."""
MEMORY = 0.9
"""Weight of the past in the moving average of log L0."""
MAX_ERROR = 1.0
"""Errors of log L0 are clipped to this: far from the target the coefficient rises steadily instead of winding up."""
MAX_LOG_FACTOR = 6.0
"""Bound of the log-factor, a factor of 400 either way: where it is reached, more sparsity pressure is not what the SAE lacks. The demo
needs 1.4. A coefficient times L0 grows with d_in at most in proportion, so that models a hundred times as wide would need 6."""
MIN_LR_FACTOR = 0.1
"""Below this fraction of the peak learning rate the gain rises no further."""
MIN_L0 = 0.1
"""Taken for the L0 of a batch without active latents."""


def sparsity_scale(step: int, n_steps: int, config: TrainConfig) -> float:
    """Factor on sparsity coefficients: a linear warm-up, 1, and a linear decay that mirrors it.

    Step 0 sees 0 and step W of the warm-up 1; the last step sees `sparsity_decay_to`, and the step D before it 1.
    """
    warm_up = steps_of(config.sparsity_warm_up, n_steps, config.batch_size)
    decay = steps_of(config.sparsity_decay, n_steps, config.batch_size)
    rise = min(step / warm_up, 1.0) if warm_up else 1.0
    left = min((n_steps - 1 - step) / decay, 1.0) if decay else 1.0
    return min(rise, config.sparsity_decay_to + (1 - config.sparsity_decay_to) * left)


def gain(n_steps: int) -> float:
    """How much the controller of a run of `n_steps` steps moves its log-factor in a step, per unit of its error."""
    return min(GAIN / n_steps, MAX_GAIN_PER_STEP)


@dataclass(slots=True)
class L0Controller:
    """Adjusts a sparsity coefficient while the SAE trains, so that its L0 ends at a target.

    Integral control in logarithms, one update a step from the L0 of the batch:

        mean <- MEMORY * mean + (1 - MEMORY) * ln L0
        log_factor <- log_factor + gain / max(lr_factor, MIN_LR_FACTOR) * clip(mean - ln target, -MAX_ERROR, MAX_ERROR)
        log_factor <- clip(log_factor, -MAX_LOG_FACTOR, MAX_LOG_FACTOR)

    It starts when the sparsity warm-up has ended and goes on through the learning-rate decay, because L0 drifts there. An SAE follows
    a changed coefficient as fast as its learning rate lets it, so the gain rises as the rate falls. The state stays on the device: no
    step waits for it. What it was measured to reach: docs/sparsity.md.
    """

    log_target: float | Float[Tensor, ""]
    gain: float
    first_step: int
    log_factor: Float[Tensor, ""]
    """Natural logarithm of what the configured coefficient is multiplied by."""
    mean_log_l0: Float[Tensor, ""]
    holds: bool = False
    """Whether the target is the mean of the steps before the first one."""

    @classmethod
    def start(cls, target_l0: float, n_steps: int, config: TrainConfig, device: torch.device) -> Self:
        """A controller at step 0."""
        zero, target = torch.zeros((), device=device), math.log(target_l0)
        return cls(
            target,
            gain(n_steps),
            steps_of(config.sparsity_warm_up, n_steps, config.batch_size),
            zero,
            torch.full((), target, device=device),
        )

    @classmethod
    def hold(cls, first_step: int, n_steps: int, device: torch.device) -> Self:
        """A controller that does nothing before a step, and from there on holds the L0 that it finds."""
        gain = min(GAIN / (n_steps - first_step), MAX_GAIN_PER_STEP)
        log_target, log_factor, mean = (torch.zeros((), device=device) for _ in range(3))
        return cls(log_target, gain, first_step, log_factor, mean, holds=True)

    def update(self, l0: Float[Tensor, ""], step: int, lr_factor: float) -> None:
        """Take the L0 of the batch of `step` into account, a step made at `lr_factor` of the peak learning rate."""
        log_l0 = l0.detach().float().clamp_min(MIN_L0).log()
        begins = 0 if self.holds else self.first_step
        self.mean_log_l0 = log_l0 if step <= begins else torch.lerp(log_l0, self.mean_log_l0, MEMORY)
        if self.holds and (step < self.first_step or step == 0):
            self.log_target = self.mean_log_l0.clone()  # a checkpoint takes no tensor twice
        if step >= self.first_step:
            error = (self.mean_log_l0 - self.log_target).clamp(-MAX_ERROR, MAX_ERROR)
            moved = self.log_factor + self.gain / max(lr_factor, MIN_LR_FACTOR) * error
            self.log_factor = moved.clamp(-MAX_LOG_FACTOR, MAX_LOG_FACTOR)

    @property
    def factor(self) -> Float[Tensor, ""]:
        """What the configured coefficient is multiplied by now."""
        return self.log_factor.exp()

    def state(self) -> dict[str, Tensor]:
        """The tensors that a checkpoint keeps."""
        tensors = {"log_factor": self.log_factor, "mean_log_l0": self.mean_log_l0}
        return tensors | ({"log_target": self.log_target} if isinstance(self.log_target, Tensor) else {})


def controller_of(run: RunConfig, device: torch.device) -> L0Controller | None:
    """A controller at step 0, where the sparsity coefficient of a run is adjusted: to reach a target L0, or to hold one in a KL stage.

    A KL stage needs one because its loss weighs what is reconstructed twice, so that the same coefficient would lead to a larger L0.
    """
    if run.sae.controls_l0 and run.sae.target_l0:
        return L0Controller.start(run.sae.target_l0, run.n_steps, run.train, device)
    if run.train.kl_stage and run.sae.has_coefficient and run.sae.target_l0 is None:
        return L0Controller.hold(run.kl_stage_start, run.n_steps, device)
    return None
