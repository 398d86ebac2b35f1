"""A calibration with round numbers, for tests."""

from typing import Any

from sae_core.config.run import ARCHITECTURES
from sweeps.planning.calibration import Calibration, ModelCost, StageCost, machine
from sweeps.planning.measuring import PRECISIONS
from sweeps.planning.step_cost import StepCost

STEP_SECONDS = 0.5


def calibration(**changes: Any) -> Calibration:
    """Every training step takes `STEP_SECONDS`; stages start in 1, 2, 3 and 4 s; a model's costs are round numbers."""
    nothing = dict.fromkeys(("product", "latent", "active", "entry", "parameter", "dead_token", "dead_parameter", "calibration"), 0.0)
    step = StepCost(fixed=STEP_SECONDS, dense_share=1.0, **nothing)
    fields = {
        "made_at": "2026-11-20",
        "machine": machine(),
        "n_slots": 2,
        "steps": {name: dict.fromkeys(PRECISIONS, step) for name in ARCHITECTURES},
        "model": ModelCost(check=1.5, load=0.5, tokenise=1e-3, product=1e-6, logit=1e-7, sae=1e-8),
        "stages": StageCost(harvest=1.0, train=2.0, evaluate=3.0, rest=4.0),
    }
    return Calibration(**{**fields, **changes})
