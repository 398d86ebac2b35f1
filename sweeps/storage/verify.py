"""Every file that numbers come from, read again: the caches of activations and the sweeps of a results directory."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from sae_core.activations.shards import damaged_files
from sae_core.config.run import RunConfig
from sae_core.errors import ConfigError, border, reason_of
from sae_core.files import check_tensors, checksum_of, read_json, read_json_lines
from sae_core.records import RunRecord
from sweeps.storage.store import Store

CACHE_REMEDY = "The next launch that needs it makes it again."
RUN_REMEDY = "Delete the directory of the run: the same launch makes it again."


@dataclass(frozen=True, slots=True)
class Damage:
    """A file that is not what was written."""

    path: Path
    reason: str
    remedy: str
    """What makes it again."""


@dataclass(slots=True)
class Verified:
    """What was read, and what of it is damaged."""

    n_read: int = 0
    files: list[Damage] = field(default_factory=list)

    def read(self, path: Path, check: Callable[[Path], object], remedy: str) -> None:
        """Note whether `check` can read a file; one that is not there is nobody's loss."""
        if not path.exists():
            return
        self.n_read += 1
        try:
            check(path)
        except FileNotFoundError:  # a launch has just removed it
            self.n_read -= 1
        except (ConfigError, OSError, ValueError) as error:
            self.files.append(Damage(path, reason_of(error.__cause__ or error), remedy))


def verify(results: Path) -> Verified:
    """Read the files of all sweeps under `results`, or of `results` if that is a sweep's own directory, and the caches beside them.

    Raises:
        ConfigError: there is no such directory.
    """
    verified = Verified()
    with border(f"`--results` must be a directory that can be read, but got {str(results)!r}", "Correct it."):
        sweeps = list(_sweeps(Path(results)))
        caches = sorted(path for path in (Path(results) / ".activations").glob("*") if path.is_dir())
    for cache in caches:
        _verify_cache(cache, verified)
    for sweep in sweeps:
        _verify_sweep(Store(sweep), verified)
    return verified


def _sweeps(results: Path) -> Iterator[Path]:
    for path in [results, *sorted(results.iterdir())]:
        if (path / "sweep.json").exists() or (path / "runs").is_dir():
            yield path


def _verify_cache(cache: Path, verified: Verified) -> None:
    verified.n_read += len([*cache.glob("*.safetensors"), *cache.glob("*.json")])
    verified.files += [Damage(path, "it is not as it was written, or without a checksum", CACHE_REMEDY) for path in damaged_files(cache)]


def _verify_sweep(store: Store, verified: Verified) -> None:
    verified.read(store.sweep_file, read_json, "The next launch makes it again.")
    for number, launch in enumerate(store.facts().get("launches") or [], start=1):
        if (name := launch.get("definition")) and (checksum := launch.get("definition_checksum")):
            remedy = f"Put back a copy: it says what launch {number} asked for."
            verified.read(store.directory / name, lambda path, checksum=checksum: _check_content(path, checksum), remedy)
    for study in sorted(store.search.glob("*.log")):
        verified.read(study, _check_study, "The next launch makes it again from the records.")
    for run in sorted(path for path in store.directory.glob("runs/*") if path.is_dir()):
        run_id, checksum = run.name, _history_checksum(store.record_file(run.name))
        verified.read(store.record_file(run_id), RunRecord.read, RUN_REMEDY)
        verified.read(store.config_file(run_id), _read_config, "It is for readers only; the record has the same config.")
        verified.read(store.history_file(run_id), lambda path, checksum=checksum: read_json_lines(path, checksum), RUN_REMEDY)
        verified.read(store.checkpoint_file(run_id), check_tensors, "The next launch starts this run again from its first step.")
        for weights in sorted(store.sae(run_id).glob("*.safetensors")):
            verified.read(weights, check_tensors, RUN_REMEDY)
        verified.read(store.sae(run_id) / "cfg.json", read_json, RUN_REMEDY)


def _check_content(path: Path, checksum: str) -> None:
    if checksum_of(path.read_bytes()) != checksum:
        raise ValueError("its checksum does not match its content")


def _check_study(path: Path) -> None:
    from sweeps.storage.study_file import StudyFile  # imports optuna

    if damage := StudyFile(path, path.stem).damage():
        raise ValueError(damage)


def _history_checksum(record: Path) -> str | None:
    try:
        return RunRecord.read(record).history_checksum
    except (OSError, ConfigError):
        return None


def _read_config(path: Path) -> None:
    config = RunConfig.model_validate(read_json(path))
    if config.run_id != path.parent.name:
        raise ValueError(f"it is of run {config.run_id}")
