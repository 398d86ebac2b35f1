"""What a calibration measures in each slot: training steps of every architecture, and a language model's passes over text.

Training is real: learners of all architectures take their steps in turn, on random activations. They start with most latents active, and a
high learning rate brings the others from there to a few within `COEFFICIENT_STEPS`, so that both the dense and the sparse end are seen.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch

from sae_core.activations.source import EvalChunk, source_of
from sae_core.config.run import ARCHITECTURES, RunConfig, TrainConfig
from sae_core.evaluation import evaluate_chunk
from sae_core.sae.base import SparseAutoencoder
from sae_core.training.loop import Learner
from sweeps.planning.step_cost import Step

PRECISIONS: tuple[str, ...] = get_args(TrainConfig.model_fields["autocast"].annotation)


class Size(NamedTuple):
    """Of the SAEs and batches measured."""

    d_in: int
    d_sae: int
    batch_size: int


SIZES = (Size(512, 1024, 1024), Size(512, 2048, 256), Size(128, 4096, 512), Size(128, 1024, 1024), Size(64, 128, 512))
"""Far enough apart to tell the terms of `StepCost` from each other, and small enough for all of them in half a minute."""
COEFFICIENT_STEPS, FIXED_L0_STEPS, SKIPPED_STEPS = 14, 7, 2
"""Steps of a run that starts dense; of one whose L0 is set; and how many of them do not count: memory is first touched, code compiled."""
LEARNING_RATE = 3e-2
L0_SHARES = (1 / 128, 1 / 32)
"""L0s measured, as shares of the latents."""
CALIBRATION_BATCHES = 2
EVAL_SAES, EVAL_D_SAE = 4, 1024


@dataclass(slots=True)
class Measured:
    """Steps of one architecture in one precision, and its calibrations for inference."""

    steps: list[Step] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    calibration_seconds: float = 0.0
    calibration_products: float = 0.0
    """Sum of B d_in d_sae."""

    def add(self, other: "Measured") -> None:
        """Take in what another slot measured."""
        self.steps += other.steps
        self.seconds += other.seconds
        self.calibration_seconds += other.calibration_seconds
        self.calibration_products += other.calibration_products


@dataclass(frozen=True, slots=True)
class ModelSeconds:
    """A language model's work in a slot."""

    load: float
    """Importing what it needs and reading its weights."""
    harvest: float
    """Per training token."""
    evaluate: float
    """Per held-out token and SAE, everything included."""
    sae: float
    """Per held-out token, SAE and d_in d_sae, without the language model."""


SlotMeasurements = tuple[dict[tuple[str, str], Measured], ModelSeconds]
"""(architecture, precision) -> its steps; and the language model."""


def measure_slot(activations: dict[str, Any], cache: str) -> SlotMeasurements:
    """Everything that is measured in a slot, on one core; run in a process of its own beside those of the other slots.

    Args:
        activations: an ActivationsConfig of a language model, as JSON, real paths in it.
        cache: its prepared cache.
    """
    torch.set_num_threads(1)
    measured: dict[tuple[str, str], Measured] = {}
    for precision in PRECISIONS:
        for size in SIZES:
            _measure_steps(size, precision, measured)
    return measured, _measure_model(activations, Path(cache))


def _measure_steps(size: Size, precision: str, measured: dict[tuple[str, str], Measured]) -> None:
    """Train a group of all architectures, of one size, for a few steps."""
    learners = [Learner.start(run, size.d_in, torch.device("cpu")) for run in _runs(size, precision)]
    seconds: list[list[float]] = [[] for _ in learners]
    batches = _batches(size)
    while not all(learner.done for learner in learners):
        x = next(batches)
        for learner, taken in zip(learners, seconds, strict=True):
            if not learner.done:
                before = learner.seconds
                learner.train_step(x)
                taken.append(learner.seconds - before)
    for learner, taken in zip(learners, seconds, strict=True):
        here = measured.setdefault((learner.run.sae.architecture, precision), Measured())
        rows = learner.history[SKIPPED_STEPS:]
        here.steps += [Step(*size, l0=float(row["l0"] or 0), dead=bool(row["dead_latents"])) for row in rows]
        here.seconds += smoothed(taken[SKIPPED_STEPS:])
        if not learner.run.sae.has_coefficient:
            here.calibration_seconds += _seconds(lambda learner=learner: learner.calibrate(iter([next(batches)] * CALIBRATION_BATCHES)))
            here.calibration_products += CALIBRATION_BATCHES * size.batch_size * size.d_in * size.d_sae


def _batches(size: Size) -> Iterator[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    while True:
        yield torch.randn(size.batch_size, size.d_in, generator=generator)


def _runs(size: Size, precision: str) -> list[RunConfig]:
    """Every architecture: with the coefficient of a low L0, or with several L0s, without and with dead latents."""
    runs = []
    for name in ARCHITECTURES:
        Config = ARCHITECTURES[name].Config
        if Config.has_coefficient:
            settings = {Config.sparsity_parameter: Config.coefficient_times_l0 / max(1, size.d_sae * L0_SHARES[0])}
            runs.append(_run(size, precision, name, settings, COEFFICIENT_STEPS, {}))
            continue
        for share in L0_SHARES:
            settings = Config.aimed_at(float(max(1, int(share * size.d_sae))), {})
            for train in ({}, {"dead_after_tokens": SKIPPED_STEPS * size.batch_size}):
                runs.append(_run(size, precision, name, settings, FIXED_L0_STEPS, train))
    return runs


def _run(size: Size, precision: str, name: str, sae: dict[str, Any], n_steps: int, train: dict[str, Any]) -> RunConfig:
    no_warm_up = {"lr": LEARNING_RATE, "lr_warm_up": 0.0, "lr_decay": 0.0, "sparsity_warm_up": 0.0}
    return RunConfig.model_validate(
        {
            "activations": {"source": "synthetic", "train_tokens": n_steps * size.batch_size, "eval_tokens": 1},
            "sae": {"architecture": name, "d_sae": size.d_sae, **sae},
            "train": {"batch_size": size.batch_size, "autocast": precision, **no_warm_up, **train},
        }
    )


def smoothed(seconds: Sequence[float]) -> list[float]:
    """Each time replaced by the median of it and its neighbours: a step that another program held up does not count."""
    return [statistics.median(seconds[max(0, index - 1) : index + 2]) for index in range(len(seconds))]


def _measure_model(activations: dict[str, Any], cache: Path) -> ModelSeconds:
    source = source_of(activations)
    first = _seconds(lambda: source.shard(cache, 0))
    n_tokens = len(source.shard(cache, 0))
    harvest = _seconds(lambda: source.shard(cache, 0))
    chunk = source.eval_chunk(cache, 0, torch.zeros(source.d_in))
    saes = {str(seed): _sae(source.d_in, seed) for seed in range(EVAL_SAES)}
    evaluate_chunk(chunk, saes)
    evaluate = _seconds(lambda: evaluate_chunk(chunk, saes))
    alone = _seconds(lambda: evaluate_chunk(EvalChunk(chunk.x), saes))
    passes = len(chunk.x) * len(saes)
    sae = alone / (passes * source.d_in * EVAL_D_SAE)
    return ModelSeconds(max(0.0, first - harvest), harvest / n_tokens, evaluate / passes, sae)


def _sae(d_in: int, seed: int) -> SparseAutoencoder:
    """A sparse one in inference form."""
    topk = ARCHITECTURES["topk"]
    sae: SparseAutoencoder = topk(topk.Config(d_sae=EVAL_D_SAE, k=32), d_in, generator=torch.Generator().manual_seed(seed))
    return sae.to_inference()


def _seconds(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
