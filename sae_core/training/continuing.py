"""Longer runs that begin with the steps of a shorter one, which kept its training state.

A run that keeps its state writes it after the last step that a longer run would make too: before the first decay, or at the end where none
is. A run of more tokens whose config makes the same first steps starts from there, bit for bit as if it had made them itself.
"""

import json
import math
import shutil
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sae_core.config.run import RunConfig, TrainConfig
from sae_core.config.spans import steps_of
from sae_core.errors import ConfigError, DamagedFileError
from sae_core.files import check_tensors, written_whole
from sae_core.layout import RunPaths
from sae_core.records import RunRecord, flat
from sae_core.training.checkpoint import steps_done, write_checkpoint
from sae_core.training.loop import Learner
from sae_core.training.sparsity import gain

_OF_LENGTH = ("tokens", "lr_warm_up", "lr_decay", "sparsity_warm_up", "sparsity_decay", "sparsity_decay_to", "resample_until")
"""Fields of `TrainConfig` that stretch with the run, or belong to its end: what they come to in the first steps is compared instead."""


def common_steps(run: RunConfig) -> int:
    """Steps from the first on that a longer run can make as well: those before the first decay and before a KL stage.

    0: its length decides all of them.
    """
    train, n_steps = run.train, run.n_steps
    if train.lr_schedule != "constant" or run.sae.schedule_end > 0:
        return 0
    lr_decay, sparsity_decay = (steps_of(span, n_steps, train.batch_size) for span in (train.lr_decay, train.sparsity_decay))
    # The first step of the learning rate's decay is still at its peak.
    return min(n_steps - lr_decay + 1, n_steps - sparsity_decay, run.kl_stage_start)


def beginning(run: RunConfig, n_steps: int) -> dict[str, Any]:
    """All that decides the first `n_steps` steps of a run, at most `common_steps`, by name: equal for runs that make the same ones."""
    train, every = run.train, run.train.resample_every_steps
    content = run.model_dump(mode="json")
    content["train"] = {name: value for name, value in content["train"].items() if name not in _OF_LENGTH}
    warm_ups = ("lr_warm_up", "sparsity_warm_up") if run.sae.has_coefficient else ("lr_warm_up",)
    steps = {f"train.{name} in steps": steps_of(getattr(train, name), run.n_steps, train.batch_size) for name in warm_ups}
    last_resampling = min(run.last_resampling, n_steps - n_steps % every) if every else 0
    strength = gain(run.n_steps) if run.sae.controls_l0 else 0.0
    return {**flat(content), **steps, "last resampling": last_resampling, "strength of the controller of L0": strength}


def why_not(run: RunConfig, shorter: RunConfig, n_steps: int) -> str:
    """Why a run cannot start from the state of another one after `n_steps` steps; empty if it can."""
    if n_steps >= run.n_steps:
        return f"it has {run.n_steps} steps itself"
    if n_steps > (common := common_steps(run)):
        return f"its own length decides its steps from step {common} on"
    there, here = beginning(shorter, n_steps), beginning(run, n_steps)
    differing = [name for name in {**there, **here} if there.get(name) != here.get(name)]
    return "; ".join(f"{name} is {there.get(name)} there and {here.get(name)} here" for name in differing[:3])


def keep_state(learner: Learner, directory: Path) -> None:
    """Write the state of a run that has just made the last step which a longer run could make too. For `train_group(after_step=...)`.

    Args:
        directory: holds a folder per run, which gets `state.safetensors`.
    """
    if learner.step == common_steps(learner.run):
        write_checkpoint(RunPaths(directory / learner.run.run_id).state, *learner.state())


@dataclass(frozen=True, slots=True)
class KeptState:
    """A state in training that a finished run left."""

    run: RunConfig
    n_steps: int
    """Steps that were made."""
    activations_hash: str | None
    """Of the activations that it was trained on."""
    path: Path


class KeptStates:
    """The states in training that runs left, read when first asked for.

    Args:
        directory: holds a folder per run, with `record.json` and, where one was kept, `state.safetensors`.
    """

    def __init__(self, directory: str | Path) -> None:
        self._directory = Path(directory)

    @cached_property
    def _kept(self) -> dict[str, list[KeptState]]:
        """What does not belong to a run's length -> states of such runs."""
        kept: dict[str, list[KeptState]] = defaultdict(list)
        for path in sorted(self._directory.glob(f"*/{RunPaths(Path()).state.name}")):
            with suppress(ConfigError, OSError, ValueError):
                record = RunRecord.read(RunPaths(path.parent).record)
                if record.status in ("trained", "finished") and (n_steps := steps_done(path)):
                    run = RunConfig.model_validate(record.config)
                    kept[_fixed(run)].append(KeptState(run, n_steps, record.activations_hash, path))
        return kept

    def start(self, run: RunConfig, activations_hash: str | None = None, before: float = math.inf) -> str:
        """Give a run that has no checkpoint the state of the longest shorter run that it begins with, as its checkpoint.

        Args:
            activations_hash: of the activations that it is trained on; None: not compared.
            before: first step that it has to make itself, as one at which it is exported.

        Returns:
            What was done, in words, or why no state is of use; empty where there is none of a run that differs in its length alone.
        """
        others = [
            state
            for state in self._kept.get(_fixed(run), [])
            if state.run.run_id != run.run_id and activations_hash in (None, state.activations_hash)
        ]
        reasons = {
            state.run.run_id: why_not(run, state.run, state.n_steps)
            or (f"it is exported after step {before}" if state.n_steps >= before else "")
            for state in others
        }
        for state in sorted(others, key=lambda state: (bool(reasons[state.run.run_id]), -state.n_steps)):
            what = f"the state of {state.run.run_id} after step {state.n_steps:,}"
            if reason := reasons[state.run.run_id]:
                return f"{run.run_id} starts from its first step, not from {what}: {reason}"
            if not _is_sound(state.path):
                continue
            with written_whole(RunPaths(self._directory / run.run_id).checkpoint) as temporary:
                shutil.copyfile(state.path, temporary)
            return f"{run.run_id} continues from {what}"
        return ""


def _is_sound(path: Path) -> bool:
    try:
        return check_tensors(path)
    except (DamagedFileError, OSError):
        return False


def _fixed(run: RunConfig) -> str:
    """What does not belong to a run's length."""
    train = {name: TrainConfig.model_fields[name].default for name in _OF_LENGTH}
    return json.dumps(run.model_copy(update={"train": run.train.model_copy(update=train)}).model_dump(mode="json"), sort_keys=True)
