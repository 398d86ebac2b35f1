"""results/<sweep>/: its layout, and what stands there. Records are the truth; sweep.json adds what no record can know.

    definition.yaml  sweep.json  table.csv  table.parquet  report/  search/
    runs/<run_id>/{config.json, record.json, history.jsonl, sae/{cfg.json, sae_weights.safetensors}}

Beside the sweeps, `.activations/<hash>/` holds activations, shared by sweeps over the same data. Every file is written
atomically, so whatever was killed left whole files, or temporary ones whose names start with a dot.
"""

import fcntl
import json
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from sae_core import provenance
from sae_core.checkpoint import CHECKPOINT
from sae_core.config import RunConfig
from sae_core.errors import ConfigError, DamagedFileError
from sae_core.files import read_json_lines, write_json, write_text
from sae_core.records import RunRecord, Status, flat
from sweeps.definition import Sweep

log = logging.getLogger(__name__)

SCRATCH_PREFIX = ".ray-"
"""Of the directory that Ray Tune writes to during a launch."""

State = Literal["finished", "trained", "pruned", "failed", "missing"]


@dataclass(frozen=True, slots=True)
class RunStatus:
    """Where one run of a sweep stands."""

    run_id: str
    architecture: str
    sparsity_parameter: str
    sparsity_value: float | None
    seed: int
    state: State
    reason: str
    """Why it is not finished; empty if it is."""


def may_recover(record: RunRecord) -> bool:
    """Whether a failed run may succeed when it is tried again. One that diverged would diverge again: its config decides that."""
    return record.status == "failed" and (record.error or {}).get("type") != "DivergedError"


class Store:
    """One sweep's results.

    Args:
        directory: results/<sweep>; it need not exist yet.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory).expanduser().absolute()
        self.definition_file = self.directory / "definition.yaml"
        self.sweep_file = self.directory / "sweep.json"
        self.table_csv = self.directory / "table.csv"
        self.table_parquet = self.directory / "table.parquet"
        self.report = self.directory / "report"
        self.search = self.directory / "search"
        self.activations = self.directory.parent / ".activations"
        self._damaged: set[str] = set()
        """Runs whose damaged record was told of."""

    def run(self, run_id: str) -> Path:
        """Directory of a run."""
        return self.directory / "runs" / run_id

    def config_file(self, run_id: str) -> Path:
        """The run's config, as JSON."""
        return self.run(run_id) / "config.json"

    def record_file(self, run_id: str) -> Path:
        """The run's record; it exists once the run was trained or failed."""
        return self.run(run_id) / "record.json"

    def history_file(self, run_id: str) -> Path:
        """Training curves, a line per logged step."""
        return self.run(run_id) / "history.jsonl"

    def checkpoint_file(self, run_id: str) -> Path:
        """State of a run in training, to go on from."""
        return self.run(run_id) / CHECKPOINT

    def sae(self, run_id: str) -> Path:
        """Directory of the exported SAE."""
        return self.run(run_id) / "sae"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the directory for one launch. Whoever dies lets go of it.

        Raises:
            ConfigError: another launch is under way, or the directory cannot be written to.
        """
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            file = (self.directory / ".lock").open("w")
        except OSError as error:
            raise self._not_writable(error) from None
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(
                    f"a sweep must be launched once at a time, but another launch is writing to {str(self.directory)!r}. "
                    "Wait until it has ended, or stop it."
                ) from None
            yield

    def _not_writable(self, error: OSError) -> ConfigError:
        return ConfigError(
            f"a results directory must be writable, but got {str(self.directory)!r}: {error.strerror}. Choose another with `--results`."
        )

    def begin(self, sweep: Sweep, runs: Sequence[RunConfig]) -> None:
        """Open the directory for a launch of `sweep`; records that stand there stay, also those of runs no longer asked for.

        What a killed launch left of Ray's own files is removed.

        Raises:
            ConfigError: the directory holds something else, or another sweep, or cannot be written to.
        """
        self.check_ours(runs)
        try:
            write_text(self.definition_file, sweep.to_yaml())
        except OSError as error:
            raise self._not_writable(error) from None
        for scratch in self.directory.glob(f"{SCRATCH_PREFIX}*"):
            shutil.rmtree(scratch, ignore_errors=True)
        before = self.facts()
        facts = {
            "name": sweep.name,
            "runs": [_entry(run) for run in runs],
            "stages": before.get("stages", []),
            "launches": [*before.get("launches", []), {"started_at": _now(), "ended_at": None}],
            "hardware": provenance.hardware(),
            "versions": provenance.versions(),
        }
        write_json(self.sweep_file, facts)

    def add_runs(self, runs: Sequence[RunConfig]) -> None:
        """Note runs that a search asks for."""
        facts = self.facts()
        known = {entry["run_id"] for entry in facts["runs"]}
        if new := [_entry(run) for run in runs if run.run_id not in known]:
            facts["runs"] += new
            write_json(self.sweep_file, facts)

    def note_stage(self, stage: str, seconds: float) -> None:
        """Note that a stage of the current launch ended, and how long it took."""
        facts = self.facts()
        facts["stages"].append({"stage": stage, "seconds": round(seconds, 3), "launch": len(facts["launches"]) - 1})
        write_json(self.sweep_file, facts)

    def end(self) -> None:
        """Note that the current launch ended; a launch that was killed has no end."""
        facts = self.facts()
        facts["launches"][-1]["ended_at"] = _now()
        write_json(self.sweep_file, facts)

    def check_ours(self, runs: Sequence[RunConfig]) -> None:
        """Make sure that the directory is free, or holds the sweep of `runs`: some run there has the same activations.

        Raises:
            ConfigError: it does not.
        """
        remedy = "Choose another directory with `--results DIR`, or another name with `--set name=NAME`."
        found = sorted(path.name for path in self.directory.iterdir() if not path.name.startswith(".")) if self.directory.is_dir() else []
        if found and not self.definition_file.is_file():
            raise ConfigError(f"a results directory must be empty or a sweep's, but {str(self.directory)!r} holds {found[:5]}. {remedy}")
        theirs = [run["config"]["activations"] for run in self.facts().get("runs", [])]
        theirs += [record.config["activations"] for record in self.records().values()]
        ours = [run.activations.model_dump(mode="json") for run in runs]
        if theirs and ours and not any(activations in theirs for activations in ours):
            raise ConfigError(
                f"a results directory must hold one sweep, but {str(self.directory)!r} holds another: "
                f"{_differences(theirs[0], ours[0])}. {remedy}"
            )

    def check_hashes(self, current: Mapping[str, str]) -> None:
        """Make sure that results to be kept come from today's activations.

        Args:
            current: run id -> content hash of the activations as they are now.

        Raises:
            ConfigError: the model or the text changed under the same name.
        """
        for run_id, record in self.records().items():
            before, now = record.activations_hash, current.get(run_id)
            if record.status != "failed" and None not in (before, now) and before != now:
                raise ConfigError(
                    f"runs of a sweep must share their activations, but {run_id} has activations_hash={before!r} and they are now {now!r}: "
                    "the model or the text changed under the same name. Start anew with `--set name=NAME` or `--results DIR`."
                )

    def read_record(self, run_id: str) -> RunRecord | None:
        """The run's record; None where there is none, or it is damaged: then the run is made again.

        Raises:
            ConfigError: a newer version of this package wrote it.
        """
        try:
            return RunRecord.read(self.record_file(run_id))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except DamagedFileError as error:
            if run_id not in self._damaged:
                log.warning("run %s counts as missing: %s", run_id, error)
                self._damaged.add(run_id)
            return None

    def read_history(self, run_id: str) -> list[dict[str, float | None]]:
        """Rows of the run's training history so far; none where it was not started, or the file is damaged."""
        try:
            record = self.read_record(run_id)
            return read_json_lines(self.history_file(run_id), record.history_checksum if record else None)
        except DamagedFileError as error:
            log.warning("the history of run %s is left out: %s", run_id, error)
            return []

    def write_record(self, record: RunRecord) -> None:
        """Write a record in its place, over an earlier one."""
        record.write(self.record_file(record.run_id))

    def records(self) -> dict[str, RunRecord]:
        """Every record that stands here, by run id; also of runs that the sweep no longer asks for."""
        run_ids = sorted(file.parent.name for file in self.directory.glob("runs/*/record.json"))
        return {run_id: record for run_id in run_ids if (record := self.read_record(run_id)) is not None}

    def facts(self) -> dict[str, Any]:
        """What sweep.json holds; empty before the first launch.

        Raises:
            ConfigError: it is not JSON.
        """
        if not self.sweep_file.is_file():
            return {}
        try:
            return dict(json.loads(self.sweep_file.read_text(encoding="utf-8")))
        except ValueError as error:
            raise ConfigError(f"sweep.json must be JSON, but {str(self.sweep_file)!r} is not: {error}. Remove it; records stay.") from None

    def status(self) -> list[RunStatus]:
        """Every run the last launch asked for, then those that only left a record.

        Raises:
            ConfigError: the directory is not a sweep's.
        """
        if not self.sweep_file.is_file() and not self.definition_file.is_file():
            raise ConfigError(
                f"a results directory must hold sweep.json, but got {str(self.directory)!r}. Name a sweep's own one, e.g. results/demo."
            )
        records = self.records()
        asked = {entry["run_id"]: entry for entry in self.facts().get("runs", [])}
        entries = asked | {run_id: _entry_of(record) for run_id, record in records.items() if run_id not in asked}
        return [self._status(entry, records.get(run_id)) for run_id, entry in entries.items()]

    def _status(self, entry: Mapping[str, Any], record: RunRecord | None) -> RunStatus:
        return RunStatus(
            run_id=entry["run_id"],
            architecture=entry["architecture"],
            sparsity_parameter=entry["sparsity_parameter"],
            sparsity_value=entry["sparsity_value"],
            seed=entry["seed"],
            state="missing" if record is None else record.status,
            reason=self._reason(entry["run_id"], record),
        )

    def _reason(self, run_id: str, record: RunRecord | None) -> str:
        if record is None:
            return "interrupted" if self.run(run_id).is_dir() else "not started"
        if record.status in ("failed", "pruned"):
            error = record.error or {}
            return f"{error.get('type', 'error')}: {error.get('message', 'no message')}".splitlines()[0]
        return "not evaluated yet" if record.status == "trained" else ""


def record_without_result(run: RunConfig, status: Status, error: Mapping[str, str], **facts: Any) -> RunRecord:
    """The record of a run that did not come to its end: it failed or was pruned.

    Args:
        error: `type`, `message`, `traceback`.
        facts: further fields of the record.
    """
    return RunRecord(
        run_id=run.run_id,
        status=status,
        config=run.model_dump(mode="json"),
        architecture=run.sae.architecture,
        sparsity_parameter=run.sae.sparsity_parameter,
        sparsity_value=run.sae.sparsity_value,
        seed=run.seed,
        error=dict(error),
        **facts,
    )


def _entry(run: RunConfig) -> dict[str, Any]:
    return {
        "run_id": run.run_id,
        "architecture": run.sae.architecture,
        "sparsity_parameter": run.sae.sparsity_parameter,
        "sparsity_value": run.sae.sparsity_value,
        "seed": run.seed,
        "config": run.model_dump(mode="json"),
    }


def _entry_of(record: RunRecord) -> dict[str, Any]:
    names = ("run_id", "architecture", "sparsity_parameter", "sparsity_value", "seed")
    return {name: getattr(record, name) for name in names}


def _differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """The first few fields that differ, e.g. "model.name is 'demo' there and 'gpt2' here"."""
    there, here = flat(theirs), flat(ours)
    differing = [name for name in {**there, **here} if there.get(name) != here.get(name)]
    return "; ".join(f"{name} is {there.get(name)!r} there and {here.get(name)!r} here" for name in differing[:3])


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
