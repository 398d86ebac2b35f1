"""What a trained run leaves in its directory: config, history, the SAE in inference form, and its record."""

from collections.abc import Mapping
from typing import Any

from sae_core.errors import ConfigError
from sae_core.files import write_json, write_json_lines
from sae_core.layout import RunPaths
from sae_core.records import RunRecord
from sae_core.training.loop import TrainResult


def write_result(result: TrainResult, paths: RunPaths, *, metadata: Mapping[str, Any], facts: Mapping[str, Any]) -> RunRecord:
    """Export the SAE, write the record last, and remove the checkpoint.

    Args:
        metadata: goes into the exported cfg.json, e.g. `model_name` and `hook_name`.
        facts: fields of the record that training does not know: `activations_hash`, `versions`, `hardware`, `finished_at`.
    """
    run, config, error = result.run, result.run.model_dump(mode="json"), result.error
    write_json(paths.config, config, checksum=False)  # readers validate it as a RunConfig; nothing of ours reads it
    history_checksum = write_json_lines(paths.history, result.history)
    if error is None:
        origin = {"run_id": run.run_id, "training_architecture": run.sae.architecture}
        try:
            result.exported().save_pretrained(paths.sae, {**metadata, "training_config": config, **origin})
        except ConfigError as overflow:
            message = f"weights must be finite in the units of the activations, but those of run {run.run_id} are not: {overflow}"
            error = {"type": "DivergedError", "message": message, "traceback": ""}
    tokens = None if error else run.n_tokens
    record = RunRecord(
        **{**run.identity, "sparsity_value": result.sparsity_value},
        status="failed" if error else "trained",
        d_in=result.d_in,
        d_out=result.d_out,
        train_tokens=tokens,
        train_seconds=result.seconds,
        tokens_per_second=tokens / result.seconds if tokens and result.seconds else None,
        error=error,
        history_checksum=history_checksum,
        **facts,
    )
    record.write(paths.record)
    for path in (paths.checkpoint, paths.checkpoint.with_suffix(".pt")):  # the latter is of earlier versions
        path.unlink(missing_ok=True)
    return record
