"""A sweep that trains in a second, and how to compare what sweeps left behind."""

import json
from pathlib import Path
from typing import Any

from sweeps.definition.sweep import Sweep

DEFINITION: dict[str, Any] = {
    "name": "small",
    "activations": {"source": "synthetic", "d_in": 16, "n_features": 32, "n_active": 3.0, "train_tokens": 20_000, "eval_tokens": 6_000},
    "sae": {"d_sae": 48},
    "train": {"batch_size": 256},
    "architectures": {"topk": {"k": [2, 4]}, "standard": {"l1_coefficient": [0.3, 1.0]}},
}
DIVERGING = {"l1_coefficient": 1.0, "lr": 1e30, "max_grad_norm": None}
"""For an architecture with an L1 loss: its gradients overflow within a few steps."""


def small_sweep(**changes: Any) -> Sweep:
    """`DEFINITION` with other sections."""
    return Sweep(**{**DEFINITION, **changes})


def results_of(directory: Path) -> dict[str, tuple[Any, ...]]:
    """What came out of each run, to the last bit: run id -> exported weights, history, status, metrics, and what lies beside them."""
    return {run.name: result_of(run) for run in sorted((directory / "runs").iterdir())}


def result_of(run: Path) -> tuple[Any, ...]:
    """What came out of the run in this directory."""
    record = json.loads((run / "record.json").read_text())
    names = ("sae/sae_weights.safetensors", "documents.parquet", "latents.safetensors")
    files = [(run / name).read_bytes() if (run / name).exists() else None for name in names]
    return files[0], (run / "history.jsonl").read_text(), record["status"], record["metrics"], record["latent_densities"], files[1:]


def left_in(directory: Path) -> set[str]:
    """Names in a results directory, but those that every launch leaves."""
    names = {path.name for path in directory.iterdir()}
    always = {".lock", "definition.yaml", "sweep.json", "progress.json", "definitions", "table.csv", "table.parquet", "runs"}
    assert always <= names
    return names - always


def times_written(directory: Path) -> dict[Path, int]:
    """Every file under `directory`, and when it was last written."""
    return {path: path.stat().st_mtime_ns for path in sorted(directory.rglob("*")) if path.is_file()}
