"""results/<sweep>/: its layout, and what stands there. Records are the truth; sweep.json adds what no record can know.

    definition.yaml  definitions/  sweep.json  table.csv  table.parquet  report/  search/
    runs/<run_id>/{config.json, record.json, history.jsonl, sae/{cfg.json, sae_weights.safetensors}}

Beside the sweeps, `.activations/<hash>/` holds activations, shared by sweeps over the same data. Every file is written
atomically, so whatever was killed left whole files, or temporary ones whose names start with a dot. A file that is damaged
costs what it held, with one line that says so; a launch renames it to `<name>.damaged`.
"""

import logging
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_core import provenance
from sae_core.config.run import RunConfig
from sae_core.errors import ConfigError, DamagedFileError, border
from sae_core.files import check_tensors, read_json, read_json_lines, write_json
from sae_core.records import RunRecord, RunState, Status, flat
from sae_core.training.checkpoint import CHECKPOINT
from sweeps.definition.sweep import Sweep
from sweeps.storage.lock import locked
from sweeps.storage.set_aside import make_room, set_aside
from sweeps.storage.sweep_file import entry, keep_definition, launches_so_far, now, read_sweep_file

log = logging.getLogger(__name__)

SCRATCH_PREFIX = ".ray-"
"""Of the directory that Ray Tune writes to during a launch."""


@dataclass(frozen=True, slots=True)
class RunStatus:
    """Where one run of a sweep stands."""

    run_id: str
    state: RunState
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
        with border(f"a results directory must be a path, but got {str(directory)!r}", "Correct it."):
            self.directory = Path(directory).expanduser().absolute()
        self.definition_file = self.directory / "definition.yaml"
        self.sweep_file = self.directory / "sweep.json"
        self.table_csv = self.directory / "table.csv"
        self.table_parquet = self.directory / "table.parquet"
        self.report = self.directory / "report"
        self.search = self.directory / "search"
        self.activations = self.directory.parent / ".activations"
        self._records: dict[str, tuple[tuple[int, int, int], RunRecord]] = {}
        """Records that were read, each with what changes when its file does: a launch asks for all of them several times."""
        self._reported: set[Path] = set()
        """Damaged files that were logged."""
        self._facts: dict[str, Any] = {}
        """What sweep.json holds during a launch, which alone writes to it."""

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

    def locked(self) -> AbstractContextManager[None]:
        """Hold the directory for one launch. Who dies no longer holds it; a directory to which nothing was written is removed.

        Raises:
            ConfigError: another launch is under way, or the directory cannot be written to.
        """
        return locked(self.directory)

    def begin(self, sweep: Sweep, runs: Sequence[RunConfig]) -> int:
        """Open the directory for a launch of `sweep`; records in it stay, also those of runs no longer asked for.

        What a killed launch left of Ray's own files is removed, and what is damaged is set aside.

        Returns:
            The number of the launch, from 1.

        Raises:
            ConfigError: the directory holds something else, or another sweep, or cannot be written to.
        """
        self.check_ours(runs)
        launches = launches_so_far(self.directory, self.facts(), self.records())
        with border(f"a results directory must be writable, but got {str(self.directory)!r}", "Choose another with `--results`."):
            self._set_aside_damaged(runs)
            keep_definition(self.directory, sweep.to_yaml(), launches)
            for scratch in self.directory.glob(f"{SCRATCH_PREFIX}*"):
                shutil.rmtree(scratch, ignore_errors=True)
            self._facts = {
                "name": sweep.name,
                "runs": [entry(run) for run in runs],
                "stages": self.facts().get("stages") or [],
                "launches": launches,
                "hardware": provenance.hardware(),
                "versions": provenance.versions(),
            }
            write_json(self.sweep_file, self._facts)
        return len(launches)

    def add_runs(self, runs: Sequence[RunConfig]) -> None:
        """Note runs that a search asks for."""
        known = {asked["run_id"] for asked in self._facts["runs"]}
        if new := [run for run in runs if run.run_id not in known]:
            self._set_aside_damaged(new)
            self._facts["runs"] += [entry(run) for run in new]
            write_json(self.sweep_file, self._facts)

    def note_stage(self, stage: str, seconds: float) -> None:
        """Note that a stage of the current launch ended, and how long it took."""
        self._facts["stages"].append({"stage": stage, "seconds": round(seconds, 3), "launch": len(self._facts["launches"]) - 1})
        write_json(self.sweep_file, self._facts)

    def end(self) -> None:
        """Note that the current launch ended; a launch that was killed has no end."""
        self._facts["launches"][-1]["ended_at"] = now()
        write_json(self.sweep_file, self._facts)

    def remove_damaged_checkpoints(self, runs: Iterable[RunConfig]) -> list[str]:
        """Remove checkpoints that are not as they were written. Returns the ids of their runs, which start again from step 0."""
        removed = []
        for run in runs:
            file = self.checkpoint_file(run.run_id)
            try:
                check_tensors(file)
            except (FileNotFoundError, NotADirectoryError):
                continue
            except DamagedFileError:
                removed.append(run.run_id)
                shutil.rmtree(file) if file.is_dir() and not file.is_symlink() else file.unlink()
        return removed

    def has_sound_sae(self, run_id: str) -> bool:
        """Whether the exported SAE is there, as it was written."""
        try:
            check_tensors(self.sae(run_id) / "sae_weights.safetensors")
            read_json(self.sae(run_id) / "cfg.json")
        except (DamagedFileError, OSError):
            return False
        return True

    def _set_aside_damaged(self, runs: Iterable[RunConfig]) -> None:
        """Make room for the files of a launch: what is there in the place of one, but is none, or damaged, gets another name."""
        make_room(self.sweep_file)
        if self.sweep_file.is_file() and not self.facts():
            set_aside(self.sweep_file, "it is damaged")
        for run in runs:
            directory = self.run(run.run_id)
            make_room(directory, directory=True)
            if not directory.is_dir():
                continue
            make_room(self.sae(run.run_id), directory=True)
            for file in (self.config_file, self.history_file, self.record_file, self.checkpoint_file):
                make_room(file(run.run_id))
            if self.record_file(run.run_id).is_file() and self.read_record(run.run_id) is None:
                set_aside(self.record_file(run.run_id), "it is damaged")

    def check_ours(self, runs: Sequence[RunConfig]) -> None:
        """Make sure that the directory is free, or holds the sweep of `runs`: some run there has the same activations.

        Raises:
            ConfigError: it does not.
        """
        remedy = "Choose another directory with `--results DIR`, or another name with `--set name=NAME`."
        with border(f"a results directory must be readable, but got {str(self.directory)!r}", remedy):
            found = sorted(path.name for path in self.directory.iterdir() if path.name[0] != ".") if self.directory.is_dir() else []
        if found and not {self.definition_file.name, self.sweep_file.name} & set(found):
            raise ConfigError(f"a results directory must be empty or a sweep's, but {str(self.directory)!r} holds {found[:5]}. {remedy}")
        if "runs" in found and not (self.directory / "runs").is_dir():
            raise ConfigError(f"`runs` must be a directory, but {str(self.directory / 'runs')!r} is not. Move it away. {remedy}")
        theirs = [asked["config"]["activations"] for asked in self._asked() if "activations" in (asked.get("config") or {})]
        theirs += [record.config["activations"] for record in self.records().values() if "activations" in record.config]
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
        file = self.record_file(run_id)
        try:
            found = file.stat()
            state = (found.st_ino, found.st_mtime_ns, found.st_size)
            if run_id in self._records and self._records[run_id][0] == state:
                return self._records[run_id][1]
            record = RunRecord.read(file)
            if record.run_id != run_id:
                raise DamagedFileError.of(file, ValueError(f"it is the record of {record.run_id!r}"))
            self._records[run_id] = state, record
            return record
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (DamagedFileError, OSError) as error:
            self._report(file, f"run {run_id} counts as missing: {error}")
            return None

    def read_history(self, run_id: str) -> list[dict[str, float | None]]:
        """Rows of the run's training history so far; none where it was not started, or the file is damaged."""
        try:
            record = self.read_record(run_id)
            return read_json_lines(self.history_file(run_id), record.history_checksum if record else None)
        except DamagedFileError as error:
            self._report(self.history_file(run_id), f"the history of run {run_id} is left out: {error}")
            return []

    def write_record(self, record: RunRecord) -> None:
        """Write a record in its place, over an earlier one."""
        record.write(self.record_file(record.run_id))

    def records(self) -> dict[str, RunRecord]:
        """Every record that stands here, by run id; also of runs that the sweep no longer asks for."""
        run_ids = sorted(file.parent.name for file in self.directory.glob("runs/*/record.json"))
        return {run_id: record for run_id in run_ids if (record := self.read_record(run_id)) is not None}

    def facts(self) -> dict[str, Any]:
        """What sweep.json holds; empty before the first launch, and where it is damaged."""
        try:
            return read_sweep_file(self.sweep_file)
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except DamagedFileError as error:
            self._report(self.sweep_file, f"what it said of launches and of runs without a record is lost; records stay: {error}")
            return {}

    def _asked(self) -> list[dict[str, Any]]:
        """The runs that sweep.json names."""
        return self.facts().get("runs") or []

    def _report(self, file: Path, message: str) -> None:
        """Log what a damaged file costs, once."""
        if file not in self._reported:
            self._reported.add(file)
            log.warning("%s", message)

    def status(self) -> list[RunStatus]:
        """Every run the last launch asked for, then those that only left a record.

        Raises:
            ConfigError: the directory is not a sweep's.
        """
        if not (self.sweep_file.exists() or self.definition_file.is_file()):
            raise ConfigError(
                f"a results directory must hold sweep.json, but got {str(self.directory)!r}. Name a sweep's own one, e.g. results/demo."
            )
        records = self.records()
        run_ids = dict.fromkeys([*(run["run_id"] for run in self._asked()), *records])
        return [self._status(run_id, records.get(run_id)) for run_id in run_ids]

    def _status(self, run_id: str, record: RunRecord | None) -> RunStatus:
        return RunStatus(
            run_id=run_id,
            state="missing" if record is None else record.status,
            reason=self._reason(run_id, record),
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


def _differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """The first few fields that differ, e.g. "model.name is 'demo' there and 'gpt2' here"."""
    there, here = flat(theirs), flat(ours)
    differing = [name for name in {**there, **here} if there.get(name) != here.get(name)]
    return "; ".join(f"{name} is {there.get(name)!r} there and {here.get(name)!r} here" for name in differing[:3])
