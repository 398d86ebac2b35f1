"""Reads every file that numbers come from: the caches of activations and the sweeps of a results directory."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from sae_core.activations.shards import damaged_files
from sae_core.config.run import RunConfig
from sae_core.documents import read_documents_file
from sae_core.errors import ConfigError, border, reason_of
from sae_core.files import check_content, check_tensors, read_json
from sae_core.layout import CFG, RunPaths, SweepPaths
from sae_core.records import RunRecord, read_history
from sweeps.storage.store import Store

CACHE_REMEDY = "The next launch that needs it creates it again."
RUN_REMEDY = "Delete the directory of the run: the same command trains it again."
MEASURED_REMEDY = "The same command measures the run again."


@dataclass(frozen=True, slots=True)
class Damage:
    """A file that is not what was written."""

    path: Path
    reason: str
    remedy: str
    """How to have it again."""


@dataclass(slots=True)
class Verified:
    """How many files were read, and which are damaged."""

    n_read: int = 0
    files: list[Damage] = field(default_factory=list)

    def read(self, path: Path, check: Callable[[Path], object], remedy: str) -> None:
        """Note whether `check` can read a file; one that does not exist is skipped."""
        try:
            check(path)
        except FileNotFoundError:
            return
        except (ConfigError, OSError, ValueError) as error:
            self.files.append(Damage(path, reason_of(error.__cause__ or error), remedy))
        self.n_read += 1


def verify(results: Path) -> Verified:
    """Read the files of all sweeps under `results`, or of `results` if that is a sweep's own directory, and the caches beside them.

    Raises:
        ConfigError: there is no such directory.
    """
    verified, results = Verified(), Path(results)
    with border(f"`--results` must be a directory that can be read, but got {str(results)!r}", "Correct it."):
        directories = [SweepPaths(path) for path in (results, *sorted(results.iterdir()))]
        caches = sorted(path for path in SweepPaths(results / "any").activations.glob("*") if path.is_dir())
    for cache in caches:
        verified.n_read += len([*cache.glob("*.safetensors"), *cache.glob("*.json")])
        reason = "it was changed, or has no checksum"
        verified.files += [Damage(path, reason, CACHE_REMEDY) for path in damaged_files(cache)]
    for paths in directories:
        if paths.facts.exists() or paths.runs.is_dir():
            _verify_sweep(paths, verified)
    return verified


def _verify_sweep(paths: SweepPaths, verified: Verified) -> None:
    verified.read(paths.facts, read_json, "The next launch creates it again.")
    for number, launch in enumerate(Store(paths.directory).facts().get("launches") or [], start=1):
        if (name := launch.get("definition")) and (checksum := launch.get("definition_checksum")):
            remedy = f"Put back a copy: it is the definition of launch {number}."
            verified.read(paths.directory / name, lambda path, checksum=checksum: check_content(path.read_bytes(), checksum), remedy)
    verified.read(paths.stability, read_json, "The next report works it out again.")
    for study in sorted(paths.search.glob("*.json")):
        verified.read(study, read_json, "The next launch writes it again from the records.")
    for directory in sorted(path for path in paths.runs.glob("*") if path.is_dir()):
        for run_id in (directory.name, *paths.variant_ids(directory.name)):
            _verify_run(paths.run(run_id), verified)


def _verify_run(paths: RunPaths, verified: Verified) -> None:
    verified.read(paths.record, RunRecord.read, RUN_REMEDY)
    verified.read(paths.config, _read_config, "It is for readers only; the record has the same config.")
    if paths.history.exists():  # `read_history` takes a missing file for an empty one
        verified.read(paths.history, read_history, RUN_REMEDY)
    verified.read(paths.documents, read_documents_file, MEASURED_REMEDY)
    verified.read(paths.latents, check_tensors, MEASURED_REMEDY)
    verified.read(paths.probes, read_json, "Delete it, and repeat `sae-sweep probe`.")
    verified.read(paths.state, check_tensors, "Delete it: longer runs start from their first step.")
    verified.read(paths.checkpoint, check_tensors, "The next launch starts this run again from its first step.")
    for weights in sorted(paths.sae.glob("*.safetensors")):
        verified.read(weights, check_tensors, RUN_REMEDY)
    verified.read(paths.sae / CFG, read_json, RUN_REMEDY)


def _read_config(path: Path) -> None:
    config = RunConfig.model_validate(read_json(path))
    if config.run_id != path.parent.name:
        raise ValueError(f"it is of run {config.run_id}")
