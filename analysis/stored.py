"""Reading sweep directories: `sweep.json`, and per run `record.json` and `history.jsonl`. No torch.

Records are the truth about runs; `sweep.json` only adds what no record can know: which runs were asked for and never
finished, and how long each stage took. Every key of it is optional, so that results made years ago still read.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_core.errors import ConfigError, DamagedFileError
from sae_core.files import read_json_lines
from sae_core.records import RunRecord

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
    """Its entry in `sweep.json`; empty where it has none."""
    record: RunRecord | None
    """None where the run left no record."""

    @property
    def config(self) -> Mapping[str, Any]:
        """The run's config, from its record or else from `sweep.json`."""
        return (self.record.config if self.record else self.planned.get("config")) or {}


@dataclass(frozen=True, slots=True)
class StoredSweep:
    """What one sweep directory holds."""

    directory: Path
    facts: Mapping[str, Any]
    """`sweep.json`; empty where there is none."""
    definition: str | None
    """`definition.yaml` as written."""
    runs: tuple[StoredRun, ...]
    """Every run with a record or named in `sweep.json`, sorted by run id."""

    @property
    def name(self) -> str:
        """The sweep's own name, or its directory's."""
        return str(self.facts.get("name") or self.directory.name)


def read_sweeps(results: Path | Sequence[Path]) -> list[StoredSweep]:
    """Read one sweep directory, or several.

    Raises:
        ConfigError: no directory was given, or one of them is not a sweep's.
    """
    directories = [results] if isinstance(results, str | Path) else list(results)
    if not directories:
        raise ConfigError(f"at least one results directory must be given, but got {directories}. Name a sweep's own directory.")
    return [_read_sweep(Path(directory)) for directory in directories]


def _read_sweep(directory: Path) -> StoredSweep:
    sweep_file = directory / "sweep.json"
    if not sweep_file.is_file() and not (directory / "runs").is_dir():
        raise ConfigError(
            f"a results directory must hold `runs/` or `sweep.json`, but got {str(directory)!r}. "
            "Name a sweep's own directory, not its parent."
        )
    facts = json.loads(sweep_file.read_text()) if sweep_file.is_file() else {}
    definition = directory / "definition.yaml"
    return StoredSweep(
        directory=directory,
        facts=facts,
        definition=definition.read_text() if definition.is_file() else None,
        runs=tuple(_read_runs(directory, {run["run_id"]: run for run in facts.get("runs") or []})),
    )


def _read_runs(directory: Path, planned: Mapping[str, Mapping[str, Any]]) -> list[StoredRun]:
    records = {file.parent.name: record for file in directory.glob("runs/*/record.json") if (record := _read_record(file))}
    return [
        StoredRun(
            run_id=run_id,
            sweep=directory.resolve().name,
            directory=directory / "runs" / run_id,
            planned=planned.get(run_id, {}),
            record=records.get(run_id),
        )
        for run_id in sorted(set(records) | set(planned))
    ]


def _read_record(file: Path) -> RunRecord | None:
    """None where the record is damaged: its run counts as missing."""
    try:
        return RunRecord.read(file)
    except DamagedFileError as error:
        log.warning("run %s counts as missing: %s", file.parent.name, error)
        return None


def read_history(file: Path) -> list[dict[str, Any]]:
    """The rows of a `history.jsonl`, oldest first; empty where there is none, or it is damaged."""
    try:
        return read_json_lines(file)
    except DamagedFileError as error:
        log.warning("a training curve is left out: %s", error)
        return []
