"""Probes of all runs of a sweep, and where their scores are kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.features.activations import Progress, unseen
from analysis.features.probe_data import LabeledTexts
from analysis.features.probing import last_token_activations, probe_activations, probe_latents, summary, tasks_of
from sae_core.errors import DamagedFileError
from sae_core.files import read_json, write_json

if TYPE_CHECKING:
    from analysis.features.run import LearnedRun


def probe_runs(
    runs: Iterable[LearnedRun], data: LabeledTexts, ks: Sequence[int], file_of: Callable[[str], Path], progress: Progress = unseen
) -> tuple[list[tuple[str, float | None, dict[str, float]]], float]:
    """Probe every run, and write the scores beside its record. The texts are read once for all runs of the same activations.

    Args:
        file_of: run id -> its `probes.json`.

    Returns:
        Of each run its id, its L0 and k -> accuracy; and the accuracy of probes of the whole activation, of the first run's.

    Raises:
        ConfigError: a run cannot be opened, or has no language model, or scikit-learn is not installed.
    """
    tasks = tasks_of(data)
    read: dict[int, tuple[Any, dict[str, Any]]] = {}
    found: list[tuple[str, float | None, dict[str, float]]] = []
    for run in runs:
        run.progress = progress
        if id(run.source) not in read:
            x = last_token_activations(run, data.texts)
            read[id(run.source)] = x, summary(probe_activations(x, tasks))
        x, whole = read[id(run.source)]
        by_k = {str(k): summary(scores) for k, scores in probe_latents(run, x, tasks, ks).items()}
        _keep(file_of(run.run_id), data, by_k, whole)
        found.append((run.run_id, run.facts.get("l0"), {k: score["accuracy"] for k, score in by_k.items()}))
        progress("probing runs", len(found), 0)
    return found, next(iter(read.values()))[1]["accuracy"]


def _keep(file: Path, data: LabeledTexts, by_k: dict[str, Any], whole: dict[str, Any]) -> None:
    """Add scores to those that are there; scores on other texts under the same name are replaced."""
    try:
        probes = read_json(file).get("probes") or {}
    except (FileNotFoundError, DamagedFileError):
        probes = {}
    before = probes.get(data.name) or {}
    if before.get("checksum") == data.checksum:
        by_k = (before.get("by_k") or {}) | by_k
    counts = {label: data.labels.count(label) for label in sorted(set(data.labels))}
    probes[data.name] = {"checksum": data.checksum, "labels": counts, "by_k": by_k, "activations": whole}
    write_json(file, {"probes": probes})
