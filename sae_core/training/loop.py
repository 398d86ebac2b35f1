"""The only training loop: `train_group` reads each batch once and steps every SAE of the group on it.

Each run owns its parameters, optimizer, schedules and failure, and its result is a function of its config and of the stream
alone: not of the group it was in, nor of interruptions. A run whose gradients stop being finite leaves the group with a
reason; the others go on.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sae_core.activations.stream import ActivationStream, split_pairs
from sae_core.config.run import ARCHITECTURES, RunConfig
from sae_core.errors import ConfigError, facts_of, is_out_of_memory
from sae_core.layout import RunPaths
from sae_core.orders import NO_ORDERS, OrdersFile
from sae_core.sae.base import SparseAutoencoder
from sae_core.sae.loss import LossContext, LossTerms
from sae_core.sae.normalization import Normalization
from sae_core.seeds import seed_of
from sae_core.training.checkpoint import read_checkpoint, write_checkpoint
from sae_core.training.init_from import start_from
from sae_core.training.initialization import Sample, initialize, needs_sample
from sae_core.training.kl_stage import KlBatch, StageText, check_text
from sae_core.training.optim import Adam, lr_factor
from sae_core.training.resampling import resample
from sae_core.training.sparsity import L0Controller, controller_of, sparsity_scale
from sae_core.training.transcoders import check_kind
from sae_core.watchdog import beat

HISTORY_ROWS = 100
"""Rows of training history a run keeps, whatever its length."""
CALIBRATION_TOKENS = 65_536
"""Training tokens that inference thresholds are calibrated on."""


def steps_per_row(n_steps: int) -> int:
    """Steps from one row of a run's history to the next."""
    return max(1, n_steps // HISTORY_ROWS)


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What training leaves behind."""

    run: RunConfig
    d_in: int
    sae: SparseAutoencoder | None
    """In training form and normalised units; None for a failed run."""
    normalization: Normalization
    """What the stream applies to activations."""
    history: list[dict[str, float | None]]
    seconds: float
    """Time spent in this run's own steps."""
    sparsity_value: float
    """The sparsity parameter, as adjusted in training where a target L0 was asked for."""
    error: dict[str, str] | None = None
    """For failed runs: `type`, `message`, `traceback`."""
    d_out: int | None = None
    """Of a transcoder: width of what it reconstructs."""

    def exported(self) -> SparseAutoencoder:
        """The SAE to measure and save: in inference form, for activations that are not normalized. A copy.

        Raises:
            ConfigError: the run failed.
        """
        if self.sae is None:
            raise ConfigError(f"only a run that succeeded can be exported, but run {self.run.run_id} failed: {self.error}")
        return self._folded(self.sae.to_inference())

    def forms(self) -> dict[str, SparseAutoencoder]:
        """As `exported`: the further forms of the SAE that are measured beside it, by name."""
        return {name: self._folded(sae) for name, sae in self.sae.forms().items()} if self.sae else {}

    def _folded(self, sae: SparseAutoencoder) -> SparseAutoencoder:
        """The same for activations as they are, its weights in memory as its file has them: so it computes what is loaded, to the bit."""
        sae.fold(self.normalization)
        for parameter in sae.parameters():
            parameter.data = parameter.data.contiguous()
        return sae


class DivergedError(RuntimeError):
    """A loss or gradient of a run is no longer finite."""


@dataclass(slots=True)
class Learner:
    """One run in training: everything that changes from step to step."""

    run: RunConfig
    sae: SparseAutoencoder
    optimizer: Adam
    tokens_since_active: Tensor
    sum_of_norms: Tensor
    """Of the gradients so far: not finite once one was not. Stays on the device, read at history rows only."""
    controller: L0Controller | None = None
    """Present where the coefficient is adjusted to reach a target L0, or to hold one in a KL stage."""
    step: int = 0
    none_dead_before: int = 0
    """Step before which no latent can be dead, by what was known when `_any_dead` last looked."""
    seconds: float = 0.0
    history: list[dict[str, float | None]] = field(default_factory=list)
    error: dict[str, str] | None = None
    is_stopped: bool = False
    """By an order, after a checkpoint."""

    @classmethod
    def start(
        cls, run: RunConfig, d_in: int, device: torch.device, d_out: int | None = None, parts: Mapping[str, int] | None = None
    ) -> "Learner":
        """A run at step 0; with `d_out` a transcoder, with `parts` a crosscoder. The seed decides the initial weights, the same on every
        device."""
        generator = torch.Generator().manual_seed(run.seed)
        sizes = (d_in,) if d_out is None else (d_in, d_out)
        sae = ARCHITECTURES[run.sae.architecture](run.sae, *sizes, generator=generator).to(device).train()
        sae.parts = dict(parts or {})
        optimizer = Adam(sae, run.train)
        tokens = torch.zeros(run.sae.d_sae, dtype=torch.int64, device=device)
        return cls(run, sae, optimizer, tokens, torch.zeros((), device=device), controller_of(run, device))

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What a checkpoint keeps: tensors, which are those in use, by name, e.g. "optimizer/exp_avg/W_dec"; and facts."""
        parts = {
            "sae/": self.sae.state_dict(),
            "optimizer/": self.optimizer.state(),
            "controller/": self.controller.state() if self.controller else {},
            "": {"tokens_since_active": self.tokens_since_active, "sum_of_norms": self.sum_of_norms},
        }
        tensors = {prefix + name: tensor for prefix, part in parts.items() for name, tensor in part.items()}
        return tensors, {"step": self.step, "history": self.history, "seconds": self.seconds}

    def restore(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Resume from what `state` returned."""
        for name, tensor in self.state()[0].items():
            tensor.copy_(tensors[name])
        self.step, self.history, self.seconds = facts["step"], facts["history"], facts["seconds"]

    @property
    def done(self) -> bool:
        return self.error is not None or self.is_stopped or self.step >= self.run.n_steps

    @property
    def _autocasts(self) -> bool:
        return self.run.train.autocast == "bfloat16"

    def train_step(self, x: Float[Tensor, "B d_in"], target: Float[Tensor, "B d_out"] | None = None, batch: KlBatch | None = None) -> None:
        """One optimizer step on a batch.

        Args:
            target: what a transcoder is to make of x.
            batch: in a KL stage, what x and target are of.

        Raises:
            DivergedError: seen at history rows, so up to n_steps / HISTORY_ROWS steps late.
        """
        config, n_steps = self.run.train, self.run.n_steps
        started = time.perf_counter()
        lr = config.lr * lr_factor(self.step, n_steps, config)
        weight = config.kl_stage.weight if batch and config.kl_stage else 0.0
        scale = sparsity_scale(self.step, n_steps, config) * (self.controller.factor if self.controller else 1.0)
        coefficients = {name: of.at(self.step, n_steps, config.batch_size) for name, of in self.run.sae.coefficients.items()}
        dead = self.tokens_since_active >= config.dead_after_tokens
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self._autocasts):
            ctx = LossContext(scale * (1 + weight), dead if self._any_dead() else None, self.step / n_steps, target, coefficients)
            loss = self.sae.loss(x, ctx)
        total, kl = batch.added_to(loss.total, self.sae, weight, autocast=self._autocasts) if batch else (loss.total, None)
        total.backward()
        self.descend(lr)
        self.tokens_since_active += x.shape[0]
        self.tokens_since_active[loss.active] = 0
        if self.controller:
            self.controller.update(loss.l0, self.step, lr / config.lr)
        self.step += 1
        if config.resample_every_steps and self.step % config.resample_every_steps == 0 and self.step <= self.run.last_resampling:
            self._resample(x)
        self.seconds += time.perf_counter() - started
        if self.step % steps_per_row(n_steps) == 0 or self.step == n_steps:
            self._record(loss, lr, scale, int(dead.sum()), {} if kl is None else {"kl": float(kl)})

    def descend(self, lr: float) -> None:
        """A step of the optimizer with the gradients at hand, after which the weights satisfy their constraints."""
        self.sae.constrain_gradients()
        self.sum_of_norms += self.optimizer.step(lr, self.run.train.max_grad_norm)
        self.sae.constrain()

    def _resample(self, x: Float[Tensor, "B d_in"]) -> None:
        """Make dead latents anew. The choice depends on the seed and the step alone, so resuming needs no random state."""
        dead = self.tokens_since_active >= self.run.train.dead_after_tokens
        if bool(dead.any()):
            resample(self.sae, self.optimizer, dead, x, seed=seed_of("resampling", self.run.seed, self.step))
            self.tokens_since_active[dead] = 0

    def _any_dead(self) -> bool:
        """Whether any latent is dead. Looks, which waits for the device, only when the one inactive for longest may be by now."""
        if self.step < self.none_dead_before:
            return False
        missing = self.run.train.dead_after_tokens - int(self.tokens_since_active.amax())
        self.none_dead_before = self.step + math.ceil(missing / self.run.train.batch_size)
        return missing <= 0

    def _record(self, loss: LossTerms, lr: float, scale: float | Tensor, dead_latents: int, others: dict[str, float]) -> None:
        if not bool(self.sum_of_norms.isfinite()):
            raise DivergedError(self._why_diverged())
        row: dict[str, float | None] = {
            "step": self.step,
            "tokens": self.step * self.run.train.batch_size,
            "loss": float(loss.total.detach()),
        }
        row |= {name: float(term.detach()) for name, term in loss.terms.items()} | others
        self.history.append(row | {"l0": float(loss.l0), "lr": lr, "sparsity_scale": float(scale), "dead_latents": dead_latents})

    def _why_diverged(self) -> str:
        sae = self.run.sae
        values = {sae.sparsity_parameter: sae.sparsity_value, "target_l0": sae.target_l0, "lr": self.run.train.lr}
        shown = ", ".join(f"{name}={value:g}" for name, value in values.items() if value is not None)
        return (
            f"gradients must stay finite, but a gradient of run {self.run.run_id} was not, at or shortly before step {self.step} of "
            f"{self.run.n_steps} ({shown}). Lower `train.lr` or lengthen `train.lr_warm_up`; lower a coefficient above 1e6."
        )

    def calibrate(self, batches: Iterator[Float[Tensor, "B d_in"]]) -> None:
        """After the last step: set what inference needs from the first batches of training, computed as in training.

        The run fails where a weight, or what was set, is not finite: gradients do not show a weight that kernels pass over, nor what the
        last step made of it.
        """
        if self._is_finite():
            n_batches = min(self.run.n_steps, CALIBRATION_TOKENS // self.run.train.batch_size)
            self.sae.calibrate(islice(batches, max(1, n_batches)), autocast=self._autocasts)
            self._is_finite()

    def _is_finite(self) -> bool:
        """Whether all weights are finite; the run fails if not."""
        try:
            self.sae.check_finite()
        except ConfigError as error:
            self.fail(DivergedError(f"run {self.run.run_id} ended with NaN or infinite weights (lr={self.run.train.lr}): {error}"))
        return self.error is None

    def fail(self, error: BaseException) -> None:
        """Leave the group with a reason."""
        self.error = facts_of(error)

    def result(self, normalization: Normalization) -> TrainResult:
        sae = None if self.error else self.sae.eval()
        # What holds the L0 of a given coefficient in a KL stage is not what was asked for.
        factor = float(self.controller.factor) if self.controller and self.run.sae.target_l0 else 1.0
        sparsity = self.run.sae.sparsity_value * factor
        return TrainResult(self.run, self.sae.d_in, sae, normalization, self.history, self.seconds, sparsity, self.error, self.sae.d_out)


def train_group(
    runs: Sequence[RunConfig],
    stream: ActivationStream,
    *,
    device: str | torch.device = "cpu",
    directory: str | Path | None = None,
    checkpoint_seconds: float = 60.0,
    on_step: Callable[[Sequence[Learner]], Any] | None = None,
    after_step: Callable[[Learner], Any] | None = None,
    on_checkpoint: Callable[[Learner, Path], Any] | None = None,
    orders: OrdersFile = NO_ORDERS,
    text: StageText | None = None,
) -> list[TrainResult]:
    """Train SAEs on one stream of activations.

    Args:
        runs: same batch size and same stream; any mixture of architectures, widths, learning rates and seeds.
        stream: yields normalised batches; see `activations.stream`.
        directory: where `<run_id>/checkpoint.safetensors` is kept, so that the same call goes on where an interrupted one stopped, bit for
            bit on CPU; and runs that an `init_from` names by their ids lie there. None: nothing is written.
        checkpoint_seconds: least time between two checkpoints.
        on_step: called with the learners after every batch: `learner.step`, `learner.history`, `learner.sae`, which are not to be changed.
        after_step: called with each learner that has taken a step, before a checkpoint of it: a run that resumes has been there.
        on_checkpoint: called with each learner and its file after a checkpoint of it was written, from which it can be resumed.
        orders: that stop runs, or let them wait.
        text: what the stream's activations are of, for runs with a KL stage.

    Returns:
        One result a run, in the order of `runs`, but none of a stopped one; a diverged run has an `error` and no SAE.

    Raises:
        ConfigError: a run asks for another normalisation than the stream's, cannot be trained on what the stream is of, or cannot start
            from its `init_from`.
        MemoryError: there is no memory for all of them together; or another exception for which `is_out_of_memory` is true.
    """
    device = torch.device(device)
    folder = Path(directory) if directory else None
    _check_normalisation(runs, stream)
    check_text(runs, text)
    for run in runs:
        check_kind(run, stream.d_out, stream.normalization.parts)
    learners = [Learner.start(run, stream.d_in, device, stream.d_out, stream.normalization.parts) for run in runs]
    for learner in learners:
        if folder and (found := read_checkpoint(RunPaths(folder / learner.run.run_id).checkpoint, like=learner.state()[0])):
            learner.restore(*found)
    sample = Sample(stream)
    for learner in learners:
        if learner.step:  # runs that resume from a checkpoint have their initial values
            continue
        if learner.run.train.init_from is not None:
            start_from(learner.sae, learner.run, stream.normalization, folder)
        elif needs_sample(learner.run.sae):
            initialize(learner.sae, sample, learner.run)
    _train(learners, stream, text, folder, checkpoint_seconds, on_step, after_step, on_checkpoint, orders)
    ended = [learner for learner in learners if not learner.is_stopped]
    for learner in ended:
        beat()
        if learner.error is None:
            learner.calibrate(split_pairs(batch, stream)[0] for batch in stream.batches(0))
    return [learner.result(stream.normalization) for learner in ended]


def train_run(run: RunConfig, stream: ActivationStream, **options: Any) -> TrainResult:
    """Train one SAE: `train_group` with a group of one."""
    return train_group([run], stream, **options)[0]


def _check_normalisation(runs: Sequence[RunConfig], stream: ActivationStream) -> None:
    for run in runs:
        if run.train.normalize_activations != stream.normalization.name:
            raise ConfigError(
                "a run must be trained on activations with its own normalization, but got "
                f"normalize_activations={run.train.normalize_activations!r} and a stream with {stream.normalization.name!r}. "
                "Give both the same."
            )


def _train(
    learners: Sequence[Learner],
    stream: ActivationStream,
    text: StageText | None,
    directory: Path | None,
    checkpoint_seconds: float,
    on_step: Callable[[Sequence[Learner]], Any] | None,
    after_step: Callable[[Learner], Any] | None,
    on_checkpoint: Callable[[Learner, Path], Any] | None,
    orders: OrdersFile,
) -> None:
    """Step every learner through its batches. After a resume learners may stand at different steps: each waits for its own."""
    start = min((learner.step for learner in learners if not learner.done), default=0)
    batches = enumerate(stream.batches(start), start=start)
    last_checkpoint = time.monotonic()
    while active := [learner for learner in learners if not learner.done]:
        beat()
        step, batch = next(batches)
        x, target = split_pairs(batch, stream)
        for learner in active:
            if learner.step == step:
                try:
                    if text and step >= learner.run.kl_stage_start:
                        staged = text.batch(step, stream)
                        learner.train_step(staged.x, staged.target, staged)
                    else:
                        learner.train_step(x, target)
                except Exception as error:  # the boundary of a run: whatever broke it is its own record
                    if len(learners) > 1 and is_out_of_memory(type(error).__name__, str(error)):
                        raise  # of all of them together
                    learner.fail(error)
                if after_step and learner.error is None:
                    after_step(learner)
        told = orders.now()
        for learner in active:
            learner.is_stopped = not learner.done and told.stop(learner.run.run_id)
        is_ordered = told.sweep == "pause" or any(learner.is_stopped for learner in active)
        if directory and (is_ordered or time.monotonic() - last_checkpoint >= checkpoint_seconds):
            for learner in active:
                if learner.error is None:  # else a resumed run could take its broken weights for a result
                    file = RunPaths(directory / learner.run.run_id).checkpoint
                    write_checkpoint(file, *learner.state())
                    if on_checkpoint:
                        on_checkpoint(learner, file)
            last_checkpoint = time.monotonic()
        if on_step:
            on_step(learners)
        if told.sweep == "pause":  # not one that came since: it waits for its checkpoint
            orders.wait()
