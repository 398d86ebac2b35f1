"""Samplers of a search: name -> function that makes the Optuna sampler. One file per family; Optuna is imported inside the functions."""

from collections.abc import Callable
from typing import Any

from sae_core.registry import Registry

MakeSampler = Callable[[int, int], Any]
"""(seed, number of trials of the search) -> optuna.samplers.BaseSampler."""

SAMPLERS: Registry[MakeSampler] = Registry("sampler", "sweeps.samplers")
