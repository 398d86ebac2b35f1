"""Evaluators: functions of one's own that measure an exported SAE as they like, and whose numbers are columns of the table.

A `Metric` adds sums up over chunks of held-out text; an evaluator gets the whole SAE and the source of its activations, once: a task's
accuracy with the reconstruction in the model, a probe, a comparison with another dictionary. One that fails loses its own numbers only.
"""

import copy
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae_core.activations.source import ActivationSource, HeldOut
from sae_core.errors import reason_of
from sae_core.metrics.metric import METRICS
from sae_core.records import MetricSpec
from sae_core.registry import Registry
from sae_core.sae.base import SparseAutoencoder

EVALUATORS: Registry["Evaluator"] = Registry("evaluator", "sae_core.metrics")


@dataclass(frozen=True, slots=True)
class HeldOutData:
    """What an evaluator measures on."""

    source: Any
    """The `ActivationSource` that the SAE was trained on: with it a plugin of one's own has its model and its data."""
    directory: Path
    """What the source has prepared, and a place for files."""

    def chunks(self) -> Iterator[HeldOut]:
        """All held-out activations, a chunk at a time, on the source's device; with their text, where there is some."""
        source: ActivationSource = self.source
        return (source.heldout(self.directory, index) for index in range(source.n_eval_chunks(self.directory)))


Function = Callable[[SparseAutoencoder, HeldOutData], Mapping[str, float | None]]


class Evaluator:
    """A registered function, and what its columns are."""

    def __init__(self, function: Function, specs: tuple[MetricSpec, ...]) -> None:
        functools.update_wrapper(self, function)
        self.function, self.specs = function, specs

    @torch.no_grad()
    def __call__(self, sae: SparseAutoencoder, heldout: HeldOutData) -> dict[str, float | None]:
        """Value of each column; None where it has none.

        Raises:
            ValueError: the function returned other columns than it was registered with.
        """
        found = self.function(sae, heldout)
        columns = [spec.name for spec in self.specs]
        if not isinstance(found, Mapping) or sorted(found) != sorted(columns):
            shown = sorted(found) if isinstance(found, Mapping) else type(found).__name__
            raise ValueError(f"an evaluator must return a value for each of its columns {columns}, but got {shown}.")
        return {name: _number(found[name]) for name in columns}


def evaluator(*specs: MetricSpec) -> Callable[[Function], Evaluator]:
    """Register a function as an evaluator, under its own name.

    Args:
        specs: its columns, which it returns a value for; no metric and no other evaluator has them.

    Raises:
        ValueError: there are none, or a name is taken.
    """

    def add(function: Function) -> Evaluator:
        name = function.__name__
        taken = {spec.name for other, entry in EVALUATORS.items() if other != name for spec in entry.specs} | set(METRICS)
        names = [spec.name for spec in specs]
        if not names or len(set(names)) < len(names) or set(names) & taken:
            raise ValueError(f"an evaluator must have columns of its own, but got {names} for {name!r}. Choose names that are not taken.")
        return EVALUATORS.register(name)(Evaluator(function, specs))

    return add


def column_specs() -> dict[str, MetricSpec]:
    """Every column that is measured on held-out data: name -> what it is."""
    of_evaluators = {spec.name: spec for entry in EVALUATORS.values() for spec in entry.specs}
    return {name: METRICS[name].spec for name in METRICS} | of_evaluators


def evaluate_further(sae: SparseAutoencoder, source: ActivationSource, directory: Path) -> tuple[dict[str, float | None], dict[str, str]]:
    """What every evaluator says of an SAE (inference form, for activations that are not normalized).

    Returns:
        Column -> value, None where its evaluator failed; and evaluator -> why it failed.
    """
    values: dict[str, float | None] = {}
    errors: dict[str, str] = {}
    for name, entry in EVALUATORS.items():
        try:
            found = entry(copy.deepcopy(sae), HeldOutData(source, directory))
        except (Exception, SystemExit) as error:  # the boundary of somebody else's code: the run has its other numbers
            found = {spec.name: None for spec in entry.specs}
            errors[name] = reason_of(error)
        values |= found
    return values, errors


def _number(value: Any) -> float | None:
    """A value as records have it: None where it is not finite."""
    if isinstance(value, bool | str) or (isinstance(value, Tensor) and value.numel() != 1):
        raise ValueError(f"a column of an evaluator must be a number, but got {value!r}.")
    return None if value is None or not math.isfinite(value) else float(value)
