"""The files of a run in training: checkpoint, history, and at its end the exported SAE and the record.

A checkpoint holds everything a run needs to go on, bit for bit. Every run has its own, so that runs may be regrouped between an
interruption and the next launch. Every file is written atomically.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sae_core.records import RunRecord, finite_or_none, write_json, write_text, written_whole

if TYPE_CHECKING:
    from sae_core.training import Learner, TrainResult


class RunFiles:
    """`<directory>/<run_id>/{config.json, checkpoint.pt, history.jsonl, sae/, record.json}`."""

    def __init__(self, directory: Path) -> None:
        self.directory = Path(directory)

    def checkpoint(self, learner: "Learner") -> None:
        """Write the state of a run; an older checkpoint is there until the new one is complete."""
        folder = self.directory / learner.run.run_id
        state = {
            "step": learner.step,
            "sae": learner.sae.state_dict(),
            "optimizer": learner.optimizer.state(),
            "tokens_since_active": learner.tokens_since_active,
            "sum_of_norms": learner.sum_of_norms,
            "controller": learner.controller.state() if learner.controller else None,
            "history": learner.history,
            "seconds": learner.seconds,
        }
        with written_whole(folder / "checkpoint.pt") as temporary:
            torch.save(state, temporary)

    def resume(self, learner: "Learner") -> None:
        """Bring a fresh learner to its last checkpoint; nothing where there is none."""
        path = self.directory / learner.run.run_id / "checkpoint.pt"
        if not path.exists():
            return
        state = torch.load(path, map_location=learner.tokens_since_active.device, weights_only=True)
        learner.sae.load_state_dict(state["sae"])
        learner.optimizer.restore(state["optimizer"])
        learner.tokens_since_active.copy_(state["tokens_since_active"])
        learner.sum_of_norms.copy_(state["sum_of_norms"])
        if learner.controller:
            learner.controller.restore(state["controller"])
        learner.step, learner.history, learner.seconds = state["step"], state["history"], state["seconds"]

    def write_history(self, run_id: str, history: list[dict[str, float | None]]) -> None:
        """Write the history so far, one JSON object a line; values that are not finite are null."""
        lines = [json.dumps(finite_or_none(row), allow_nan=False) for row in history]
        write_text(self.directory / run_id / "history.jsonl", "".join(line + "\n" for line in lines))

    def finish(self, result: "TrainResult", *, metadata: Mapping[str, Any], facts: Mapping[str, Any]) -> RunRecord:
        """Export the SAE in inference form and model units, write the record, drop the checkpoint.

        Args:
            metadata: goes into the exported cfg.json, e.g. `model_name` and `hook_name`.
            facts: fields of the record that training does not know: `activations_hash`, `versions`, `hardware`, `finished_at`.
        """
        run, folder = result.run, self.directory / result.run.run_id
        config = run.model_dump(mode="json")
        write_json(folder / "config.json", config)
        self.write_history(run.run_id, result.history)
        tokens = run.n_steps * run.train.batch_size
        if result.sae is not None:
            inference = result.sae.to_inference()
            result.normalisation.build_into(inference)
            origin = {"run_id": run.run_id, "training_architecture": run.sae.architecture, "training_config": config}
            inference.save_pretrained(folder / "sae", {**metadata, **origin})
        record = RunRecord(
            run_id=run.run_id,
            status="failed" if result.error else "trained",
            config=config,
            architecture=run.sae.architecture,
            sparsity_parameter=run.sae.sparsity_parameter,
            sparsity_value=result.sparsity_value,
            seed=run.seed,
            d_in=result.d_in,
            train_tokens=None if result.error else tokens,
            train_seconds=result.seconds,
            tokens_per_second=tokens / result.seconds if result.seconds and not result.error else None,
            error=result.error,
            **facts,
        )
        record.write(folder / "record.json")
        (folder / "checkpoint.pt").unlink(missing_ok=True)
        return record
