"""A run of a sweep, opened: its SAE, and the source of the activations that it was trained on. What it learned is read in
`analysis.features`."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sae_core.errors import ConfigError, UnknownNameError

if TYPE_CHECKING:
    from analysis.features.run import LearnedRun
    from analysis.results import StoredRun, StoredSweep
    from sae_core.activations.source import ActivationSource

NUMBERS = ("l0", "fvu", "explained_variance", "delta_ce", "dead_fraction")
"""Metrics that a reader is shown first."""


def open_run(results: str | Path, run_id: str, *, device: str | None = None) -> "LearnedRun":
    """A trained run, or a variant of one, from its id.

    The held-out text is that of its evaluation. Where the cache of activations was deleted, its tokens are prepared again.

    Args:
        results: directory of the sweep.
        device: as torch names it; default: a GPU where there is one.

    Raises:
        ConfigError: there is no such sweep or run, the run has no SAE, or its model or text is missing or has other content than when it
            was trained.
    """
    from analysis.results import read_sweeps

    (sweep,) = read_sweeps(results)
    runs = {run.run_id: run for run in (*sweep.runs, *sweep.variants)}
    if run_id not in runs:
        raise UnknownNameError.of("run id", run_id, runs, "`sae-sweep status` lists them.")
    (run,) = _opened(sweep, [runs[run_id]], device)
    return run


def open_runs(results: str | Path, *, device: str | None = None) -> "Iterator[LearnedRun]":
    """All finished runs of a sweep, one after the other; those of the same activations share a language model.

    Raises:
        ConfigError: there is no such sweep, or none is finished; as `open_run`.
    """
    from analysis.results import read_sweeps

    (sweep,) = read_sweeps(results)
    runs = [run for run in sweep.runs if run.finished]
    if not runs:
        raise ConfigError(f"a sweep must have finished runs, but got none in {str(results)!r}. Run it first.")
    return _opened(sweep, runs, device)


def _opened(sweep: "StoredSweep", runs: "Sequence[StoredRun]", device: str | None) -> "Iterator[LearnedRun]":
    import torch

    from analysis.features.run import LearnedRun
    from sae_core import plugins
    from sae_core.sae.base import SparseAutoencoder

    plugins.load(sweep.plugins)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    sources: dict[str, tuple[ActivationSource, Path]] = {}
    for run in runs:
        _check_has_sae(run)
        sae = SparseAutoencoder.from_pretrained(run.paths.sae).to(device)
        key = json.dumps(run.config.get("activations"), sort_keys=True)
        if key not in sources:
            sources[key] = _source(sweep, run, device)
        source, cache = sources[key]
        yield LearnedRun(run.run_id, sweep.paths.directory.resolve().name, sae, source, cache, _facts(run))


def _check_has_sae(run: "StoredRun") -> None:
    if run.record is None or not run.paths.sae.is_dir():
        state = run.record.status if run.record else "missing"
        raise ConfigError(
            f"a run must have its exported SAE in {str(run.paths.sae)!r}, but got run {run.run_id!r} ({state}) without one. Choose a "
            "finished run, or train it again: delete its record and repeat `sae-sweep run`."
        )


def _source(sweep: "StoredSweep", run: "StoredRun", device: str) -> "tuple[ActivationSource, Path]":
    """The source of a run's activations, and its cache, with the held-out text in it."""
    from sae_core.activations.shards import cache_directory
    from sae_core.config.run import SOURCES
    from sae_core.errors import border
    from sweeps.definition.local_data import locate

    with border(f"the config of run {run.run_id!r} must be readable", "Repeat `sae-sweep run` with this version."):
        section = run.config["activations"]
        activations = SOURCES[section["source"]].Config.model_validate(section)
    caches = sweep.paths.activations
    source = SOURCES[activations.source](locate(activations, caches), device=device)
    content = source.activations_hash()
    trained_on = run.record.activations_hash if run.record else None
    if trained_on is not None and content != trained_on:
        raise ConfigError(
            f"model and text must be those that run {run.run_id!r} was trained on, but got activations {content[:12]} instead of "
            f"{trained_on[:12]}: files have changed under the same names. Put back the old ones."
        )
    cache = cache_directory(caches, content)
    if not cache.is_dir():  # else a launch has checked it
        source.check()
    source.prepare(cache)
    return source, cache


def _facts(run: "StoredRun") -> dict[str, object]:
    from sae_core.validation import at

    config = run.config
    facts = {
        "architecture": run.requested.get("architecture"),
        "seed": run.requested.get("seed"),
        "model": at(config, "activations.model.name"),
        "hook_point": at(config, "activations.model.hook_point"),
        "hook_out": at(config, "activations.model.hook_out"),
        "dataset": at(config, "activations.data.dataset"),
        "source": at(config, "activations.source"),
        "train_tokens": run.record.train_tokens if run.record else None,
    }
    metrics = run.record.metrics if run.record else {}
    return {name: value for name, value in (facts | {name: metrics.get(name) for name in NUMBERS}).items() if value is not None}
