"""What a sweep would take on a cluster that is not at hand: time, cost, disk and network, from the rates in `rates.json`.

A GPU's time is its floating-point operations over what the card does at its data sheet's peak, times a utilization that is assumed. All
matrix products count as dense. Storage is taken to keep up: what it must deliver is said.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib import resources
from typing import Any, Self

import torch

from sae_core.config.run import ARCHITECTURES, RunConfig
from sae_core.costs import training_flops
from sae_core.errors import ConfigError
from sweeps.planning.inputs import SharedActivations
from sweeps.planning.prediction import Costs, model_key

_FORM = "gpus=256,gpu=h200,price=3.5"


@lru_cache
def rates() -> dict[str, Any]:
    """The table: cards, utilization, and what others and we have measured."""
    content: dict[str, Any] = json.loads(resources.files("sweeps.planning").joinpath("rates.json").read_text(encoding="utf-8"))
    return content


@dataclass(frozen=True, slots=True)
class RentedCluster:
    """A cluster as `--cluster` describes it."""

    gpus: int
    """GPUs of all nodes together; each is a slot."""
    gpu: str
    """Name in the table."""
    price: float | None = None
    """Per GPU and hour, in any currency."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """A cluster from, e.g., "gpus=256,gpu=h200,price=3.5".

        Raises:
            ConfigError: with every problem of the text, one per line.
        """
        pairs = [part.partition("=") for part in text.split(",")]
        given, cards = {name.strip(): value.strip() for name, _, value in pairs}, sorted(rates()["cards"])
        problems = [f"unknown key {name!r}; known are gpus, gpu and price" for name in given if name not in ("gpus", "gpu", "price")]
        problems += [f"{name!r} is there more than once" for name in given if sum(pair[0].strip() == name for pair in pairs) > 1]
        gpus, price = _number(given.get("gpus", "")), _number(given.get("price", "0"))
        if not (gpus >= 1 and gpus == int(gpus)):
            problems.append(f"`gpus` must be a whole number from 1 on, but got {given.get('gpus')!r}")
        if given.get("gpu") not in cards:
            problems.append(f"`gpu` must be one of {cards}, but got {given.get('gpu')!r}")
        if not price >= 0:
            problems.append(f"`price` must be a number from 0 on, per GPU and hour, but got {given['price']!r}")
        if problems:
            raise ConfigError("\n".join(f"`--cluster` must be given as {_FORM}, but got {text!r}: {problem}." for problem in problems))
        return cls(int(gpus), given["gpu"], price if "price" in given else None)

    @property
    def slot_bytes(self) -> int:
        """Memory of a GPU."""
        return int(rates()["cards"][self.gpu]["memory_gib"] * 2**30)

    def costs(self, inputs: Sequence[SharedActivations]) -> Costs:
        """Seconds of the parts of a launch."""
        costs = Costs(f"rates of {self.gpu} that are not measured", self._train_seconds)
        for shared in inputs:
            config = shared.config
            dtype = (config.get("model") or {}).get("dtype", "float32")
            per_second = self.gpus * self._flops("harvest", is_low=dtype != "float32")
            costs.harvest[model_key(config)] = shared.source.flops_per_token / per_second
            n_weights = shared.model_bytes / getattr(torch, dtype).itemsize
            costs.evaluate[model_key(config)] = 2 * n_weights / per_second
        return costs

    def bill(self, seconds: Mapping[str, float], read_bytes: int, written_bytes: int) -> dict[str, Any]:
        """What the launch costs, and moves.

        Args:
            seconds: of its parts.
            read_bytes: of stored activations, by all groups.
            written_bytes: of activations and results.
        """
        hours = sum(part for part in seconds.values() if not math.isnan(part)) / 3600
        training = seconds.get("training", math.nan)
        return {
            **asdict(self),
            "gpu_hours": self.gpus * hours,
            "cost": None if self.price is None else self.price * self.gpus * hours,
            "network_bytes": read_bytes + written_bytes,
            "storage_bytes_per_second": read_bytes / training if training > 0 else None,
            "stands_on": self._stands_on(),
        }

    def _train_seconds(self, run: RunConfig, d_in: int) -> float:
        of_standard = training_flops("standard", d_in, run.sae.d_sae, run.n_tokens)
        flops = of_standard * float(ARCHITECTURES[run.sae.architecture].relative_cost)
        return flops / self._flops("train", is_low=run.train.autocast != "off")

    def _flops(self, part: str, *, is_low: bool) -> float:
        """Floating-point operations per second of one GPU."""
        peak = rates()["cards"][self.gpu]["bfloat16_tflops" if is_low else "float32_tflops"]
        return float(peak * 1e12 * rates()["utilization"][part]["value"])

    def _stands_on(self) -> list[str]:
        card, used = rates()["cards"][self.gpu], rates()["utilization"]
        peaks = f"{card['float32_tflops']:g} TFLOP/s in float32, {card['bfloat16_tflops']:g} in bfloat16"
        return [
            f"{self.gpu}: {peaks} ({card['kind']}: {card['source']})",
            *(f"{part}: {100 * entry['value']:g} % of that ({entry['kind']}: {entry['source']})" for part, entry in used.items()),
            "storage: fast enough (assumed)",
        ]


def bill_lines(bill: Mapping[str, Any]) -> list[str]:
    """A bill as lines of the plan."""
    cost = "not known: add price=... per GPU and hour" if bill["cost"] is None else f"{bill['cost']:,.0f} at {bill['price']:g} per GPU-hour"
    rate = bill["storage_bytes_per_second"]
    delivers = f"; storage must deliver {rate / 2**30:,.1f} GiB/s to groups in training" if rate else ""
    return [
        f"cluster     {bill['gpus']} x {bill['gpu']}, {bill['gpu_hours']:,.0f} GPU-hours",
        f"cost        {cost}",
        f"network     {bill['network_bytes'] / 2**40:,.2f} TiB{delivers}",
        *(f"{'stands on' if not number else '':<11} {text}" for number, text in enumerate(bill["stands_on"])),
    ]


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan
