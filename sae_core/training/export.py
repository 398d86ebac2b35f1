"""What a trained run leaves in its directory: config, history, the SAE in inference form, its variants, and its record."""

import filecmp
import os
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from sae_core.errors import ConfigError
from sae_core.files import write_json, write_json_lines
from sae_core.layout import OF_RUN, WEIGHTS, RunPaths
from sae_core.records import RunRecord
from sae_core.sae.base import SparseAutoencoder
from sae_core.training.loop import TrainResult


def write_result(result: TrainResult, paths: RunPaths, *, metadata: Mapping[str, Any], facts: Mapping[str, Any]) -> RunRecord:
    """Export the SAE and its further forms, write the record last, and remove the checkpoint.

    Args:
        metadata: goes into the exported cfg.json, e.g. `model_name` and `hook_name`.
        facts: fields of the record that training does not know: `activations_hash`, `versions`, `hardware`, `finished_at`.
    """
    run, error = result.run, result.error
    write_json(paths.config, run.model_dump(mode="json"), checksum=False)  # readers validate it as a RunConfig; nothing of ours reads it
    history_checksum = write_json_lines(paths.history, result.history)
    if error is None:
        try:
            _export(result, result.exported(), paths, run.run_id, metadata)
            for name, sae in result.forms().items():
                _write_form(result, name, sae, paths, metadata, facts)
        except ConfigError as overflow:
            message = f"weights must be finite in the units of the activations, but those of run {run.run_id} are not: {overflow}"
            error = {"type": "DivergedError", "message": message, "traceback": ""}
    tokens = None if error else run.n_tokens
    record = _record(result, tokens, status="failed" if error else "trained", error=error, history_checksum=history_checksum, **facts)
    record.write(paths.record)
    for path in (paths.checkpoint, paths.checkpoint.with_suffix(".pt")):  # the latter is of earlier versions
        path.unlink(missing_ok=True)
    return record


def write_snapshot(result: TrainResult, step: int, paths: RunPaths, *, metadata: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Export an SAE in training as a variant of its run, named after the tokens that it has seen, and write its record.

    One with weights that are not finite is left out: its run is about to fail.

    Args:
        result: what the run would leave if it had ended with this step.
        paths: of the run.
        metadata: as of `write_result`.
        facts: as of `write_result`.
    """
    tokens, run_id = step * result.run.train.batch_size, result.run.run_id
    variant = paths.variant(f"tokens-{tokens}")
    of = _names(run_id, variant, "snapshot")
    with suppress(ConfigError):
        _export(result, result.exported(), variant, of["run_id"], metadata)
        _record(result, tokens, status="trained", **of, **facts).write(variant.record)


def _write_form(
    result: TrainResult, name: str, sae: SparseAutoencoder, paths: RunPaths, metadata: Mapping[str, Any], facts: Mapping[str, Any]
) -> None:
    """Export a further form of a run's SAE, and write its record."""
    variant = paths.variant(name)
    of = _names(result.run.run_id, variant, "form")
    _export(result, sae, variant, of["run_id"], metadata)
    of_run, own = paths.sae / WEIGHTS, variant.sae / WEIGHTS
    if filecmp.cmp(of_run, own, shallow=False):  # forms that differ in nothing but cfg.json take no disk
        linked = own.with_name(f".{own.name}.tmp")
        with suppress(OSError):  # where the file system has no such links
            os.link(of_run, linked)
            linked.replace(own)
    sparsity = {"sparsity_parameter": sae.config.sparsity_parameter, "sparsity_value": sae.config.sparsity_value}
    _record(result, result.run.n_tokens, status="trained", **of, **sparsity, **facts).write(variant.record)


def _names(run_id: str, variant: RunPaths, kind: str) -> dict[str, str]:
    """Fields of a variant's record that say of what it is one."""
    return {"run_id": f"{run_id}{OF_RUN}{variant.directory.name}", "variant_of": run_id, "variant_kind": kind}


def _export(result: TrainResult, sae: SparseAutoencoder, paths: RunPaths, run_id: str, metadata: Mapping[str, Any]) -> None:
    """Write an SAE in inference form.

    Raises:
        ConfigError: a weight is not finite.
    """
    origin = {"run_id": run_id, "training_architecture": result.run.sae.architecture}
    sae.save_pretrained(paths.sae, {**metadata, "training_config": result.run.model_dump(mode="json"), **origin})


def _record(result: TrainResult, tokens: int | None, **fields: Any) -> RunRecord:
    """The record of a run or variant.

    Args:
        tokens: that it was trained on.
        fields: further ones, or others than a run has.
    """
    common = {
        **result.run.identity,
        "sparsity_value": result.sparsity_value,
        "d_in": result.d_in,
        "d_out": result.d_out,
        "train_tokens": tokens,
        "train_seconds": result.seconds,
        "tokens_per_second": tokens / result.seconds if tokens and result.seconds else None,
    }
    return RunRecord(**{**common, **fields})
