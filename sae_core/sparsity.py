"""Schedules of sparsity, as pure functions of the step."""

from sae_core.config import TrainConfig


def sparsity_scale(step: int, n_steps: int, config: TrainConfig) -> float:
    """Factor on sparsity coefficients: 0 at step 0, rising linearly to 1 over the first `sparsity_warm_up` of the steps."""
    warm_up = round(config.sparsity_warm_up * n_steps)
    return min(step / warm_up, 1.0) if warm_up else 1.0
