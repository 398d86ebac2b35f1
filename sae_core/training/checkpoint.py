"""The files of a run in training: checkpoint, history, and at its end the exported SAE and the record.

A checkpoint holds everything a run needs to go on, bit for bit. Every run has its own, so that runs may be regrouped between an
interruption and the next launch. Every file is written atomically.
"""

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from sae_core.activations.files import load_tensors, save_tensors
from sae_core.errors import ConfigError, DamagedFileError
from sae_core.files import write_json, write_json_lines
from sae_core.records import RunRecord

if TYPE_CHECKING:
    from sae_core.training.loop import Learner, TrainResult


log = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.safetensors"
OLD_CHECKPOINT = "checkpoint.pt"
"""Of earlier versions; it is not read, and removed at the end of its run."""


class RunFiles:
    """`<directory>/<run_id>/{config.json, checkpoint.safetensors, history.jsonl, sae/, record.json}`."""

    def __init__(self, directory: Path) -> None:
        self.directory = Path(directory)

    def checkpoint(self, learner: "Learner") -> None:
        """Write the state of a run; an older checkpoint is there until the new one is complete."""
        tensors = _state(learner)
        facts = {"step": learner.step, "history": learner.history, "seconds": learner.seconds}
        path = self.directory / learner.run.run_id / CHECKPOINT
        save_tensors(path, {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, {"facts": json.dumps(facts)})

    def resume(self, learner: "Learner") -> None:
        """Bring a fresh learner to its last checkpoint; nothing where there is none. A damaged one is removed, with a warning."""
        path = self.directory / learner.run.run_id / CHECKPOINT
        try:
            self._restore(learner, path)
        except (FileNotFoundError, NotADirectoryError):
            return
        except DamagedFileError as error:
            log.warning("run %s starts again from step 0: %s", learner.run.run_id, error)
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    def _restore(self, learner: "Learner", path: Path) -> None:
        tensors, metadata = load_tensors(path, device=learner.tokens_since_active.device)
        try:
            facts, state = _facts(metadata, learner.run.n_steps), _nested(tensors)
            _check_same(tensors, _state(learner))
        except Exception as error:
            raise DamagedFileError.of(path, error) from error
        learner.sae.load_state_dict(state["sae"])
        learner.optimizer.restore(state["optimizer"])
        learner.tokens_since_active.copy_(state["tokens_since_active"])
        learner.sum_of_norms.copy_(state["sum_of_norms"])
        if learner.controller:
            learner.controller.restore(state["controller"])
        learner.step, learner.history, learner.seconds = facts["step"], facts["history"], facts["seconds"]

    def write_history(self, run_id: str, history: list[dict[str, float | None]]) -> str:
        """Write the history so far, one JSON object a line; values that are not finite are null. Returns its checksum."""
        return write_json_lines(self.directory / run_id / "history.jsonl", history)

    def finish(self, result: "TrainResult", *, metadata: Mapping[str, Any], facts: Mapping[str, Any]) -> RunRecord:
        """Export the SAE in inference form and model units, write the record, drop the checkpoint.

        Args:
            metadata: goes into the exported cfg.json, e.g. `model_name` and `hook_name`.
            facts: fields of the record that training does not know: `activations_hash`, `versions`, `hardware`, `finished_at`.
        """
        run, folder = result.run, self.directory / result.run.run_id
        config = run.model_dump(mode="json")
        write_json(folder / "config.json", config, checksum=False)  # readers validate it as a RunConfig; nothing of ours reads it
        history_checksum = self.write_history(run.run_id, result.history)
        tokens = run.n_steps * run.train.batch_size
        error = result.error or _export(result, folder / "sae", {**metadata, "training_config": config})
        record = RunRecord(
            run_id=run.run_id,
            status="failed" if error else "trained",
            config=config,
            architecture=run.sae.architecture,
            sparsity_parameter=run.sae.sparsity_parameter,
            sparsity_value=result.sparsity_value,
            seed=run.seed,
            d_in=result.d_in,
            train_tokens=None if error else tokens,
            train_seconds=result.seconds,
            tokens_per_second=tokens / result.seconds if result.seconds and not error else None,
            error=error,
            history_checksum=history_checksum,
            **facts,
        )
        record.write(folder / "record.json")
        for name in (CHECKPOINT, OLD_CHECKPOINT):
            (folder / name).unlink(missing_ok=True)
        return record


def _export(result: "TrainResult", folder: Path, metadata: Mapping[str, Any]) -> dict[str, str] | None:
    """Write the SAE, which there is. Returns the error of the run where its weights overflow in the units of the activations."""
    assert result.sae is not None
    inference = result.sae.to_inference()
    result.normalization.build_into(inference)
    try:
        inference.check_finite()
    except ConfigError as error:
        message = f"weights must be finite in the units of the activations, but those of run {result.run.run_id} are not: {error}"
        return {"type": "DivergedError", "message": message, "traceback": ""}
    origin = {"run_id": result.run.run_id, "training_architecture": result.run.sae.architecture}
    inference.save_pretrained(folder, {**metadata, **origin})
    return None


def _state(learner: "Learner") -> dict[str, Tensor]:
    """The tensors of a checkpoint by their paths, e.g. "optimizer/exp_avg/W_dec"."""
    return _flat(
        {
            "sae": learner.sae.state_dict(),
            "optimizer": learner.optimizer.state(),
            "controller": learner.controller.state() if learner.controller else {},
            "tokens_since_active": learner.tokens_since_active,
            "sum_of_norms": learner.sum_of_norms,
        }
    )


def _facts(metadata: Mapping[str, str], n_steps: int) -> dict[str, Any]:
    """What a checkpoint holds beside tensors: `step`, `history`, `seconds`."""
    facts = json.loads(metadata["facts"])
    step, history, seconds = facts["step"], facts["history"], facts["seconds"]
    if not (isinstance(step, int) and 0 <= step <= n_steps and isinstance(history, list) and all(isinstance(row, dict) for row in history)):
        raise ValueError(f"it is of step {step!r} of {n_steps}, with a history of type {type(history).__name__}")
    return {"step": step, "history": history, "seconds": float(seconds)}


def _flat(state: Mapping[str, Any], prefix: str = "") -> dict[str, Tensor]:
    """The tensors of nested dicts by their paths."""
    tensors: dict[str, Tensor] = {}
    for name, value in state.items():
        tensors |= _flat(value, f"{prefix}{name}/") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return tensors


def _nested(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """What `_flat` made flat."""
    state: dict[str, Any] = {}
    for path, tensor in tensors.items():
        *sections, name = path.split("/")
        node = state
        for section in sections:
            node = node.setdefault(section, {})
        node[name] = tensor
    return state


def _check_same(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Make sure that a checkpoint fits a run, before anything of the run is changed."""
    found, wanted = ({name: (tuple(tensor.shape), tensor.dtype) for name, tensor in some.items()} for some in (tensors, own))
    if differing := sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name)):
        raise ValueError(f"{differing[:3]} are not those of the run")
