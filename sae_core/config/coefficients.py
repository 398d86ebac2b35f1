"""Coefficients of losses with warm-ups of their own, beside the sparsity coefficient, whose warm-up is `train.sparsity_warm_up`."""

from dataclasses import dataclass

from sae_core.config.spans import steps_of


@dataclass(frozen=True, slots=True)
class Coefficient:
    """What a term of a loss is multiplied by, and how long it takes to get there."""

    value: float
    """After the warm-up."""
    warm_up: float | str = 0.0
    """A `Span`: how long it rises linearly from 0."""

    def at(self, step: int, n_steps: int, batch_size: int) -> float:
        """What it is at a step: 0 at step 0 of a warm-up of W steps, `value` from step W on."""
        steps = steps_of(self.warm_up, n_steps, batch_size)
        return self.value * min(step / steps, 1.0) if steps else self.value
