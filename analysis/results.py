"""Reading sweep directories: `sweep.json`, definitions, and per run `record.json` and `history.jsonl`. No torch.

Records are the truth about runs; `sweep.json` only adds what no record can know: which runs were asked for and never
finished, and how long each stage took. Every key of it is optional, so that results made years ago still read. A damaged file
costs what it held and nothing else: `StoredRun.damage` and `StoredSweep.damages` name it.
"""

import dataclasses
import json
import logging
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from analysis.columns import NOT_METRICS
from analysis.definitions import Definition, read_definitions
from sae_core.errors import ConfigError, DamagedFileError, border, reason_of
from sae_core.files import read_json, read_json_lines
from sae_core.records import RunRecord
from sae_core.validation import printable, wrong_in_sweep

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StoredRun:
    """One run that a sweep asked for."""

    run_id: str
    sweep: str
    """Name of the sweep's directory."""
    directory: Path
    """`runs/<run_id>`; it may not exist for a run that is missing."""
    planned: Mapping[str, Any]
    """Its entry in `sweep.json`; empty where it has none, or a record."""
    record: RunRecord | None
    """None where the run left no record, or a damaged one."""
    damage: str = ""
    """Why the record counts as missing: it is damaged."""

    @property
    def config(self) -> Mapping[str, Any]:
        """The run's config, from its record or else from `sweep.json`."""
        return (self.record.config if self.record else self.planned.get("config")) or {}


@dataclass(frozen=True, slots=True)
class StoredSweep:
    """What one sweep directory holds."""

    directory: Path
    facts: Mapping[str, Any]
    """`sweep.json` without its runs; empty where there is none, or a damaged one."""
    definitions: tuple[Definition, ...]
    """Every definition that was kept."""
    runs: tuple[StoredRun, ...]
    """Every run with a record or named in `sweep.json`, sorted by run id."""
    damages: tuple[str, ...] = field(default=())
    """What is wrong with each file that could not be read."""

    @property
    def name(self) -> str:
        """The sweep's own name, or its directory's."""
        return str(self.facts.get("name") or self.directory.name)


def read_sweeps(results: str | Path | Sequence[str | Path]) -> list[StoredSweep]:
    """Read one sweep directory, or several.

    Raises:
        ConfigError: no directory was given, one of them is not a sweep's or cannot be read, or a record is of a newer version.
    """
    return [_read_sweep(directory) for directory in _directories(results)]


def read_history(file: Path) -> list[dict[str, Any]]:
    """The rows of a `history.jsonl`, oldest first; empty where there is none.

    Raises:
        DamagedFileError: it is not the one that the record beside it was written with.
    """
    try:
        checksum = RunRecord.read(file.with_name("record.json")).history_checksum
    except (ConfigError, OSError):
        checksum = None
    return read_json_lines(file, checksum)


def _directories(results: Any) -> list[Path]:
    """The directories given; the same one twice counts once.

    Raises:
        ConfigError: there is none, or something else than paths.
    """
    given = [results] if isinstance(results, str | os.PathLike) else list(results) if isinstance(results, Iterable) else [results]
    if not all(isinstance(path, str | os.PathLike) for path in given):
        raise ConfigError(f"results must be a path or several, but got {results!r}. Name a sweep's own directory, e.g. results/demo.")
    if not given:
        raise ConfigError(f"at least one results directory must be given, but got {given}. Name a sweep's own directory.")
    return list(dict.fromkeys(Path(path) for path in given))


def _read_sweep(directory: Path) -> StoredSweep:
    with border(f"a results directory must be readable, but got {str(directory)!r}", "Correct its path or permissions."):
        directory = directory.expanduser()
        sweep_file = directory / "sweep.json"
        if not sweep_file.is_file() and not (directory / "runs").is_dir():
            raise ConfigError(
                f"a results directory must hold `runs/` or `sweep.json`, but got {str(directory)!r}. "
                "Name a sweep's own directory, not its parent."
            )
        names = _names_of_runs(directory / "runs")
    facts, damages = _read_facts(sweep_file)
    definitions, damaged_definitions = read_definitions(directory, facts.get("launches") or [])
    planned = {entry["run_id"]: entry for entry in facts.get("runs") or []}
    pool: dict[str, Any] = {}
    runs = tuple(_read_run(directory, name, planned.get(name, {}), pool) for name in sorted({*names, *planned}))
    damages += [*damaged_definitions, *(_told(run) for run in runs if run.damage)]
    for damage in damages:
        _warn_once(damage)
    facts = {key: value for key, value in facts.items() if key != "runs"}
    return StoredSweep(directory, facts, tuple(definitions), runs, tuple(damages))


def _names_of_runs(directory: Path) -> list[str]:
    """Directories of runs that left a record, damaged or not."""
    if not directory.is_dir():
        return []
    with os.scandir(directory) as entries:
        return [entry.name for entry in entries if os.path.lexists(f"{entry.path}/record.json")]


def _read_facts(file: Path) -> tuple[dict[str, Any], list[str]]:
    """`sweep.json`, and what is wrong with it; nothing where there is none."""
    try:
        facts = read_json(file)
        if wrong := wrong_in_sweep(facts):
            raise DamagedFileError.of(file, ValueError(wrong), "")
    except FileNotFoundError:
        return {}, []
    except (DamagedFileError, OSError) as error:
        lost = "Runs that left no record and the times of stages are not known. The next launch writes it again."
        return {}, [f"{str(file)!r} is damaged: {_cause(error)}. {lost}"]
    return facts, []


def _read_run(directory: Path, name: str, planned: Mapping[str, Any], pool: dict[str, Any]) -> StoredRun:
    file = directory / "runs" / name / "record.json"
    record, damage = None, ""
    try:
        record = RunRecord.read(file)
        if wrong := _wrong_in(record, name):
            raise DamagedFileError.of(file, ValueError(wrong), "")
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (DamagedFileError, OSError) as error:
        record, damage = None, f"record.json is damaged: {_cause(error)}"
    record = _shared(record, pool) if record else None
    return StoredRun(name, directory.resolve().name, directory / "runs" / name, {} if record else planned, record, damage)


def _wrong_in(record: RunRecord, name: str) -> str:
    """Why a record cannot be that of the run directory `name`, or be in a table; empty if it can."""
    if record.run_id != name:
        return f"it is of the run {record.run_id!r}, and lies in the directory of {name!r}"
    taken = [metric for metric in record.metrics if metric in NOT_METRICS or metric.startswith("version_")]
    return f"`metrics` holds {taken[0]!r}, which is no metric" if taken else ""


def _shared(record: RunRecord, pool: dict[str, Any]) -> RunRecord:
    """The record with those parts that other records have, too, held once: thousands of runs have few configs and the same metrics."""

    def share(content: Any) -> Any:
        return pool.setdefault(json.dumps(content), content)

    return dataclasses.replace(
        record,
        config={sys.intern(name): share(section) for name, section in record.config.items()},
        metrics={sys.intern(name): value for name, value in record.metrics.items()},
        **{name: share(getattr(record, name)) for name in ("metric_specs", "versions", "eval_versions", "activation_facts")},
    )


def _told(run: StoredRun) -> str:
    file = str(run.directory / "record.json")
    return f"{file!r}{run.damage.removeprefix('record.json')}. Its run counts as missing: put back a copy, or launch the sweep again."


def _cause(error: Exception) -> str:
    """Why a file is damaged, without its path and what to do: they stand elsewhere."""
    text = reason_of(error.__cause__ or error)
    told = text.partition(" is damaged: ")[2].partition(". ")[0] or text
    return printable(told.removeprefix("ValueError: "))


@lru_cache(maxsize=4096)
def _warn_once(damage: str) -> None:
    """A launch reads its results several times."""
    log.warning(damage)
