"""One sweep's results. Records are the truth; sweep.json adds what no record can know.

Every file is written atomically, so a killed process leaves complete files, or temporary ones whose names start with a dot. A damaged file
costs what it held, and one line says so; a launch renames it to `<name>.damaged`.
"""

import logging
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_core import provenance
from sae_core.config.run import RunConfig
from sae_core.errors import ConfigError, DamagedFileError, border, reason_of
from sae_core.files import check_content, check_tensors, read_json, read_json_lines, state_of, write_json
from sae_core.layout import CFG, WEIGHTS, SweepPaths
from sae_core.orders import Orders
from sae_core.records import RunRecord, RunState, Status, flat, read_sweep_file, reason
from sweeps.definition.sweep import Sweep
from sweeps.storage.set_aside import make_room, set_aside
from sweeps.storage.sweep_file import begin_launch

log = logging.getLogger(__name__)

SCRATCH_PREFIX = ".ray-"
"""Start of the name of the directory that Ray Tune writes to during a launch."""


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
            self.paths = SweepPaths(Path(directory).expanduser().absolute())
        self.directory = self.paths.directory
        self._records: dict[str, tuple[tuple[int, int, int], RunRecord]] = {}
        """Records that were read, each with what changes when its file does: a launch needs all of them several times."""
        self._sound: dict[str, tuple[object, object]] = {}
        """Runs whose measurements were read, each with what changes when their files do."""
        self._reported: set[Path] = set()
        """Damaged files that were logged."""
        self._facts: dict[str, Any] = {}
        """Content of sweep.json during a launch, which alone writes to it."""

    def begin(self, sweep: Sweep, runs: Sequence[RunConfig] | None) -> int:
        """Open the directory for a launch; records in it stay, also those of runs that `sweep` no longer has.

        What a killed launch left of Ray's own files is removed, and what is damaged is set aside.

        Args:
            runs: that are requested; None: those that were.

        Returns:
            The number of the launch, from 1.

        Raises:
            ConfigError: the directory holds something else, or another sweep, or cannot be written to.
        """
        self.check_ours(runs or [])
        with border(f"a results directory must be writable, but got {str(self.directory)!r}", "Choose another with `--results`."):
            self._set_aside_damaged(runs or [])
            facts = self.facts()
            launches = begin_launch(self.paths, facts, [record.launch or 0 for record in self.records().values()], sweep.to_yaml())
            for scratch in self.directory.glob(f"{SCRATCH_PREFIX}*"):
                shutil.rmtree(scratch, ignore_errors=True)
            self._facts = {
                "name": sweep.name,
                "runs": self._requested() if runs is None else [run.identity for run in runs],
                "stages": facts.get("stages") or [],
                "launches": launches,
                "hardware": provenance.hardware(),
                "versions": provenance.versions(),
            }
            write_json(self.paths.facts, self._facts)
        return self.n_launches

    @property
    def n_launches(self) -> int:
        """Number of the launch that was begun."""
        return len(self._facts["launches"])

    def add_runs(self, runs: Sequence[RunConfig]) -> None:
        """Note runs that a search requests."""
        known = {run["run_id"] for run in self._facts["runs"]}
        if new := [run for run in runs if run.run_id not in known]:
            self._set_aside_damaged(new)
            self._facts["runs"] += [run.identity for run in new]
            write_json(self.paths.facts, self._facts)

    def note_stage(self, stage: str, seconds: float) -> None:
        """Note that a stage of the current launch ended, and how long it took."""
        self._facts["stages"].append({"stage": stage, "seconds": round(seconds, 3), "launch": len(self._facts["launches"]) - 1})
        write_json(self.paths.facts, self._facts)

    def end(self) -> None:
        """Note that the current launch ended; a launch that was killed has no end."""
        self._facts["launches"][-1]["ended_at"] = provenance.now()
        write_json(self.paths.facts, self._facts)

    def has_sound_sae(self, run_id: str) -> bool:
        """Whether the exported SAE is there, as it was written."""
        folder = self.paths.run(run_id).sae
        return _is_sound(lambda: (check_tensors(folder / WEIGHTS), read_json(folder / CFG)))

    def has_sound_measurements(self, record: RunRecord) -> bool:
        """Whether what was measured of a run lies beside its record, as it was written; beside one of an earlier version nothing lies."""
        if record.documents_checksum is None:
            return True
        paths = self.paths.run(record.run_id)
        try:
            state = state_of(paths.documents), state_of(paths.latents)
            if self._sound.get(record.run_id) != state:
                check_content(paths.documents.read_bytes(), record.documents_checksum)
                check_tensors(paths.latents)
                self._sound[record.run_id] = state
            return True
        except (ValueError, OSError) as error:
            missing = f"{paths.documents.name} or {paths.latents.name} is missing or damaged"
            self._report(paths.documents, f"run {record.run_id} is measured again: {missing}: {reason_of(error)}")
            return False

    def _set_aside_damaged(self, runs: Iterable[RunConfig]) -> None:
        """Make room for the files of a launch: whatever cannot be one of them, or is damaged, gets another name."""
        make_room(self.paths.facts)
        if self.paths.facts.is_file() and not self.facts():
            set_aside(self.paths.facts, "it is damaged")
        for run in runs:
            paths = self.paths.run(run.run_id)
            make_room(paths.directory, directory=True)
            if paths.directory.is_dir():
                make_room(paths.sae, directory=True)
                make_room(paths.variants, directory=True)
                for file in (paths.config, paths.history, paths.documents, paths.latents, paths.record, paths.checkpoint):
                    make_room(file)
                if paths.record.is_file() and self.read_record(run.run_id) is None:
                    set_aside(paths.record, "it is damaged")
                if paths.checkpoint.is_file() and not _is_sound(lambda file=paths.checkpoint: check_tensors(file)):
                    set_aside(paths.checkpoint, f"it is damaged, so run {run.run_id} starts again from its first step")

    def check_ours(self, runs: Sequence[RunConfig]) -> None:
        """Make sure that the directory is free, or holds the sweep of `runs`: some run there has the same activations.

        Raises:
            ConfigError: it does not.
        """
        remedy = "Choose another directory with `--results DIR`, or another name with `--set name=NAME`."
        with border(f"a results directory must be readable, but got {str(self.directory)!r}", remedy):
            names = sorted(path.name for path in self.directory.iterdir() if path.name[0] != ".") if self.directory.is_dir() else []
        if names and not {self.paths.definition.name, self.paths.facts.name} & set(names):
            raise ConfigError(f"a results directory must be empty or a sweep's, but {str(self.directory)!r} holds {names[:5]}. {remedy}")
        if "runs" in names and not self.paths.runs.is_dir():
            raise ConfigError(f"`runs` must be a directory, but {str(self.paths.runs)!r} is not. Move it away. {remedy}")
        if differences := self.differences(runs):
            raise ConfigError(
                f"a results directory must hold one sweep, but {str(self.directory)!r} holds another: {differences}. {remedy}"
            )

    def differences(self, runs: Sequence[RunConfig]) -> str:
        """How the activations of the sweep here differ from those of `runs`, in words; empty where some are the same, or there are none."""
        configs = [*(run.get("config") or {} for run in self._requested()), *(record.config for record in self.records().values())]
        theirs = [config["activations"] for config in configs if "activations" in config]
        ours = [run.activations.model_dump(mode="json") for run in runs]
        if not theirs or not ours or any(activations in theirs for activations in ours):
            return ""
        return _differences(theirs[0], ours[0])

    def check_hashes(self, current: Mapping[str, str]) -> None:
        """Make sure that results to be kept come from today's activations.

        Args:
            current: run id -> content hash of the activations as they are now.

        Raises:
            ConfigError: the model or the text changed under the same name.
        """
        for run_id, record in self.records().items():
            before, today = record.activations_hash, current.get(run_id)
            if record.status != "failed" and None not in (before, today) and before != today:
                raise ConfigError(
                    f"runs of a sweep must share their activations, but {run_id} has activations_hash={before!r} but now {today!r}: "
                    "the model or the text changed under the same name. Start a new sweep with `--set name=NAME` or `--results DIR`."
                )

    def read_record(self, run_id: str) -> RunRecord | None:
        """The run's record; None where there is none, or it is damaged: then the run is made again.

        Raises:
            ConfigError: a newer version of this package wrote it.
        """
        file = self.paths.run(run_id).record
        try:
            state = state_of(file)
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
        file, record = self.paths.run(run_id).history, self.read_record(run_id)
        try:
            return read_json_lines(file, record.history_checksum if record else None)
        except DamagedFileError as error:
            self._report(file, f"the history of run {run_id} is left out: {error}")
            return []

    def variants(self, run_id: str) -> dict[str, RunRecord]:
        """Records of the variants of a run, by id."""
        records = ((name, self.read_record(name)) for name in self.paths.variant_ids(run_id))
        return {name: record for name, record in records if record is not None}

    def write_record(self, record: RunRecord) -> None:
        """Write a record, over an earlier one."""
        record.write(self.paths.run(record.run_id).record)

    def records(self) -> dict[str, RunRecord]:
        """Every record, by run id; also of runs that the sweep no longer has."""
        records = ((run_id, self.read_record(run_id)) for run_id in self.paths.run_ids())
        return {run_id: record for run_id, record in records if record is not None}

    def facts(self) -> dict[str, Any]:
        """Content of sweep.json; empty before the first launch, and where it is damaged."""
        try:
            return read_sweep_file(self.paths.facts)
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except DamagedFileError as error:
            self._report(self.paths.facts, f"its facts about launches and runs without a record are lost; records are kept: {error}")
            return {}

    def _requested(self) -> list[dict[str, Any]]:
        """The runs that sweep.json names."""
        return self.facts().get("runs") or []

    def _report(self, file: Path, message: str) -> None:
        """Log what a damaged file costs, once."""
        if file not in self._reported:
            self._reported.add(file)
            log.warning("%s", message)

    def status(self, *, is_running: bool = False) -> list[RunStatus]:
        """Every run of the last launch, then those that only left a record.

        Args:
            is_running: a launch runs: what has begun may go on, and was not interrupted.

        Raises:
            ConfigError: the directory is not a sweep's.
        """
        self.check_is_sweep()
        records = self.records()
        run_ids = dict.fromkeys([*(run["run_id"] for run in self._requested()), *records])
        stopped = Orders.read(self.paths.orders).runs
        return [self._status(run_id, records.get(run_id), is_stopped=run_id in stopped, is_running=is_running) for run_id in run_ids]

    def check_is_sweep(self) -> None:
        """Make sure that the directory is a sweep's.

        Raises:
            ConfigError: it is not.
        """
        if not (self.paths.facts.exists() or self.paths.definition.is_file()):
            raise ConfigError(
                f"a results directory must hold sweep.json, but got {str(self.directory)!r}. Give that of a sweep, e.g. results/demo."
            )

    def _status(self, run_id: str, record: RunRecord | None, *, is_stopped: bool, is_running: bool) -> RunStatus:
        if record is None:
            begun = "begun" if is_running else "interrupted"
            started = begun if self.paths.run(run_id).directory.is_dir() else "not started"
            return RunStatus(run_id, "missing", "stopped: the next launch resumes it" if is_stopped else started)
        reasons = {"finished": "", "trained": "not evaluated yet"}
        return RunStatus(run_id, record.status, reasons.get(record.status, reason(record.error or {})))


def record_without_result(run: RunConfig, status: Status, error: Mapping[str, str], **facts: Any) -> RunRecord:
    """The record of a run that failed or was pruned.

    Args:
        error: `type`, `message`, `traceback`.
        facts: further fields of the record.
    """
    return RunRecord(status=status, error=dict(error), **run.identity, **facts)


def _is_sound(read: Callable[[], object]) -> bool:
    try:
        read()
    except (DamagedFileError, OSError):
        return False
    return True


def _differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """The first few fields that differ, e.g. "model.name is 'demo' there and 'gpt2' here"."""
    there, here = flat(theirs), flat(ours)
    differing = [name for name in {**there, **here} if there.get(name) != here.get(name)]
    return "; ".join(f"{name} is {there.get(name)!r} there and {here.get(name)!r} here" for name in differing[:3])
