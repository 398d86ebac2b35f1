"""TPE, NSGA-II and random search."""

import math
import warnings
from typing import Any

from sweeps.samplers import SAMPLERS

RANDOM_START = 10
"""Points that TPE proposes at random before it has results to learn from: those of random search with the same seed."""
_GOOD_FRACTION = 0.25
"""Part of the trials that TPE models as good. Optuna's tenth is too small for a frontier: of 30 trials, 3 points."""
_POPULATION = (10, 50)
"""Least and most points of a generation of NSGA-II; a fifth of the trials in between."""


@SAMPLERS.register("tpe")
def tpe(seed: int, n_trials: int) -> Any:
    """Tree-structured Parzen estimators."""
    from optuna.samplers import TPESampler

    with warnings.catch_warnings():
        # Deprecated in Optuna 5 without another way to say it; pyproject.toml keeps Optuna below 6.
        warnings.filterwarnings("ignore", "`gamma` has been deprecated", FutureWarning)
        return TPESampler(n_startup_trials=RANDOM_START, gamma=lambda n: math.ceil(_GOOD_FRACTION * n), seed=seed)


@SAMPLERS.register("nsga2")
def nsga2(seed: int, n_trials: int) -> Any:
    """The genetic algorithm NSGA-II."""
    from optuna.samplers import NSGAIISampler

    least, most = _POPULATION
    return NSGAIISampler(population_size=min(max(n_trials // 5, least), most), seed=seed)


@SAMPLERS.register("random")
def random(seed: int, n_trials: int) -> Any:
    """Random search."""
    from optuna.samplers import RandomSampler

    return RandomSampler(seed=seed)
