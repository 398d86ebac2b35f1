"""What training steps cost on a machine, as a sum of terms that mean something, fitted to measured steps.

    seconds = fixed + product * B d_in d_sae + latent * B d_sae + active * B A + entry * B A d_in + parameter * d_in d_sae
              + where latents are dead: dead_token * B d_in + dead_parameter * d_in d_sae,    with A = min(L0, dense_share * d_sae)

In words: what every step costs; dense matrix products; passes over pre-activations; finding active entries and ordering them; gathering and
adding their rows; passes over the parameters (gradients, Adam); and the auxiliary loss of dead latents. Work at active entries stops
growing where a dense path takes over.
Letters: B tokens in a batch, d_in width of the activations, d_sae latents.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from sae_core.config.run import RunConfig
from sae_core.config.spans import steps_of

DENSE_SHARES = (1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1.0)
"""Shares of the latents from where on a dense path may take over; the one that fits best is taken."""
START_SHARE = 0.7
"""Share of the latents that is active at the start, where a coefficient sets the sparsity: 0.5 to 0.8 was seen."""
SETTLING = 0.25
"""Steps times learning rate until L0 is what the coefficient wants, beyond SETTLING_WARM_UP times the warm-up: seen for lr 2e-3 to 3e-2."""
SETTLING_WARM_UP = 1.4
_TRAJECTORY_POINTS = 50
_REWEIGHTINGS = 8
_SMALL_ERROR = 0.02


@dataclass(frozen=True, slots=True)
class Step:
    """A training step, as far as its cost goes."""

    d_in: int
    d_sae: int
    batch_size: int
    l0: float
    """Mean number of active latents per token."""
    dead: bool
    """Whether there are dead latents, and the loss revives them."""

    def terms(self, dense_share: float) -> tuple[float, ...]:
        """The amounts that the coefficients of `StepCost` multiply, in their order."""
        weights = self.d_in * self.d_sae
        active = self.batch_size * min(self.l0, dense_share * self.d_sae)
        fixed, latents, x = 1.0, self.batch_size * self.d_sae, self.batch_size * self.d_in
        dead = float(self.dead)
        return fixed, self.batch_size * weights, latents, active, active * self.d_in, weights, dead * x, dead * weights


@dataclass(frozen=True, slots=True)
class StepCost:
    """What the steps of an architecture cost on a machine, with other slots at work. Seconds per unit of each term; see above."""

    fixed: float
    product: float
    latent: float
    active: float
    entry: float
    parameter: float
    dead_token: float
    dead_parameter: float
    dense_share: float
    """Share of the latents beyond which more active ones cost no more."""
    calibration: float
    """After the last step, per unit of `product`: seconds of setting what inference needs."""

    def seconds(self, step: Step) -> float:
        """Of one training step."""
        costs = (self.fixed, self.product, self.latent, self.active, self.entry, self.parameter, self.dead_token, self.dead_parameter)
        return sum(cost * amount for cost, amount in zip(costs, step.terms(self.dense_share), strict=True))

    @classmethod
    def fit(cls, steps: Sequence[Step], seconds: Sequence[float], calibration: float) -> "StepCost":
        """The costs, none of them negative, with the least relative errors; steps that something else held up count little.

        Args:
            seconds: measured, one a step.
            calibration: seconds per unit of `product` of a calibration.

        Raises:
            ValueError: nothing was measured.
        """
        if not steps:
            raise ValueError(f"a fit needs measured steps, but got {len(steps)}.")
        measured = np.asarray(seconds, dtype=np.float64)
        fits = {share: _relative_fit(np.array([step.terms(share) for step in steps]), measured) for share in DENSE_SHARES}
        share = min(fits, key=lambda share: fits[share][1])
        return cls(*fits[share][0].tolist(), dense_share=share, calibration=calibration)


def _relative_fit(terms: NDArray[np.float64], seconds: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """Non-negative coefficients, and the mean absolute relative error they leave."""
    relative = terms / seconds[:, None]
    size = np.maximum(relative.max(axis=0), np.finfo(np.float64).tiny)  # columns of one size: B d_in d_sae is a billion times 1
    weights = np.ones(len(seconds))
    for _ in range(_REWEIGHTINGS):
        coefficients, _ = nnls(weights[:, None] * relative / size, weights)
        errors = np.abs(relative / size @ coefficients - 1)
        weights = 1 / np.sqrt(np.maximum(errors, _SMALL_ERROR))  # so that in the end errors count by their size, not by its square
    return coefficients / size, float(errors.mean())


def run_seconds(run: RunConfig, d_in: int, cost: StepCost, calibration_tokens: int) -> float:
    """Time of a run's training, without anything but its own steps and the calibration after them.

    Args:
        calibration_tokens: training tokens that inference thresholds are calibrated on.
    """
    n_points = min(_TRAJECTORY_POINTS, run.n_steps)
    positions = [(point + 0.5) / n_points for point in range(n_points)]
    sae, batch_size = run.sae.d_sae, run.train.batch_size
    steps = [
        Step(d_in, sae, batch_size, l0_at(run, position), position * run.n_steps * batch_size >= run.train.dead_after_tokens)
        for position in positions
    ]
    mean = sum(cost.seconds(step) for step in steps) / n_points
    n_tokens = min(run.n_steps * batch_size, calibration_tokens)
    return run.n_steps * mean + cost.calibration * n_tokens * d_in * sae


def l0_at(run: RunConfig, position: float) -> float:
    """About how many latents are active per token when a fraction `position` of the steps has passed.

    Where a coefficient sets the sparsity, most latents are active at first and L0 falls by equal ratios to what is wanted; how long that
    takes depends on the warm-up and on the learning rate. Elsewhere it is what the config says.
    """
    wanted = run.sae.expected_l0
    if not run.sae.has_coefficient:
        return wanted
    warm_up = steps_of(run.train.sparsity_warm_up, run.n_steps, run.train.batch_size)
    settled = (SETTLING_WARM_UP * warm_up + SETTLING / run.train.lr) / run.n_steps
    start = max(START_SHARE * run.sae.d_sae, wanted)
    return start * (wanted / start) ** min(position / settled, 1.0)
