"""The trials of a launch, as an executor sees them: what to train next, what it reports, and what became of it."""

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sae_core.config.run import RunConfig
from sae_core.config.snapshots import snapshot_steps
from sae_core.errors import is_out_of_memory
from sae_core.orders import OrdersFile
from sae_core.records import reason
from sae_core.trainable import TrialConfig
from sae_core.training.checkpoint import steps_done
from sae_core.training.continuing import KeptStates
from sweeps.execution.budget import Budget
from sweeps.execution.early_stopping import EarlyStopping
from sweeps.execution.failures import PROCESS_DIED
from sweeps.execution.loggers import Loggers
from sweeps.execution.progress import SweepProgress
from sweeps.execution.work import Trial, Work
from sweeps.storage.progress_file import GroupProgress
from sweeps.storage.store import Store, record_without_result

RETRIES = 2
"""Times in a row that a trial which failed is started again; its runs resume from their checkpoints. What was saved in between starts the
count anew."""
HUNG = "HungError"
"""Type of what ends a process that made no step for too long."""


class Training:
    """Trials of a launch.

    Args:
        settings: what all trials share; the other fields are those of each.
    """

    def __init__(self, work: Work, store: Store, progress: SweepProgress, loggers: Loggers, settings: TrialConfig, budget: Budget) -> None:
        self.work, self.store, self.progress, self.loggers, self.settings = work, store, progress, loggers, settings
        early_stopping = work.sweep.early_stopping
        self.stopping = EarlyStopping(early_stopping, store, work.groups()) if early_stopping else None
        self.orders = OrdersFile(settings.orders)
        self.states = KeptStates(store.paths.runs)
        self.budget = budget
        self.runs: dict[str, RunConfig] = {}
        self.n_running = 0
        """Trials handed out that have not ended."""
        self._again: list[Trial] = []
        """Trials to start again, and parts of trials that were too large."""
        self._parts: Counter[int] = Counter()
        """`id` of a trial that was split -> parts of it that have not ended."""
        self._attempts: Counter[str] = Counter()
        self._errors: dict[int, Mapping[str, str]] = {}
        """`id` of a trial -> the exception that it reported."""
        self._notes: set[str] = set()
        """What trials noted, and was shown."""
        self._n_tokens = self._n_done = 0
        """Tokens trained on so far, and runs that are through: sums over `_tokens`, which are needed at every report."""
        self._tokens: dict[str, int] = {}
        """Run id -> tokens trained on so far."""
        self._resumed = 0
        """Tokens of the checkpoints that runs began from."""
        self._groups: dict[str, GroupProgress] = {}
        """First run id of a trial -> how far it was when it last reported."""
        self._reported: dict[str, float] = {}
        """First run id of a trial -> when it last reported."""

    def next(self) -> Trial | None:
        """The next trial; None where there is none, or when the sweep is to stop. There may be one later as long as any runs."""
        if self.orders.now().sweep == "stop":
            return None
        trial = self._again.pop(0) if self._again else self.work.next_trial(self.settings)
        if trial is None:
            return None
        self.n_running += 1
        self.runs |= {run.run_id: run for run in trial.runs}
        number = self._groups[key].number if (key := trial.runs[0].run_id) in self._groups else len(self._groups) + 1
        self._show(GroupProgress(number, [run.run_id for run in trial.runs]))
        new = [run for run in trial.runs if run.run_id not in self._attempts]
        self._continue(new, trial.config.facts.get("activations_hash"))
        self._resumed += sum(steps_done(self.store.paths.run(run.run_id).checkpoint) * run.train.batch_size for run in new)
        self._attempts.update(run.run_id for run in trial.runs)
        facts = {**trial.config.facts, "attempts": max(self._attempts[run.run_id] for run in trial.runs)}
        return dataclasses.replace(trial, config=dataclasses.replace(trial.config, facts=facts))

    def _continue(self, runs: Sequence[RunConfig], activations_hash: str | None) -> None:
        """Start runs from the states that shorter ones kept. With early stopping none: their first steps are compared, too."""
        for run in runs if self.stopping is None else ():
            if self.store.paths.run(run.run_id).checkpoint.exists():
                continue
            snapshots = snapshot_steps(self.work.sweep.snapshots, run.n_steps, run.train.batch_size)
            if said := self.states.start(run, activations_hash, before=min(snapshots, default=math.inf)):
                self.progress.note(f"{self.work.stage}: {said}")

    def end(self, trial: Trial, error: Mapping[str, str] | None = None) -> None:
        """A trial has ended; the records of its runs say how. One that failed is started again, or split, or its runs failed.

        Args:
            error: `type`, `message` and `traceback` of what ended it, where it could not report that.
        """
        self.n_running -= 1
        error = self._errors.pop(id(trial), error)
        hang = self.hang(trial)
        if error and hang.exists():
            error = {"type": HUNG, "message": hang.read_text(), "traceback": ""}
        hang.unlink(missing_ok=True)
        again = self._again_after(trial, error) if error else []
        self._again += again
        if error and not again:
            self._lose(trial.config, error)
        whole = trial.whole or trial
        if trial.whole or len(again) > 1:
            self._parts[id(whole)] += len(again) - (trial.whole is not None)
        if not again and not self._parts[id(whole)]:
            self.work.end_trial(whole)
        self.progress.end_group(self._groups[trial.runs[0].run_id].number)
        for run in trial.runs:
            if (record := self.store.read_record(run.run_id)) is not None and record.status == "failed":
                self.progress.fail(run.run_id, reason(record.error or {}))

    def hang(self, trial: Trial) -> Path:
        """File that says why the process of a trial was ended that hung."""
        return self.store.paths.run(trial.runs[0].run_id).hang

    def _again_after(self, trial: Trial, error: Mapping[str, str]) -> list[Trial]:
        """The trials to start after one failed: itself, or its two halves where it may have been too large; none if that is of no use."""
        left = [run for run in trial.runs if self._is_left(run)]
        saved = self._saved(trial)
        failures = 1 if saved != trial.saved else trial.failures + 1
        no_memory = is_out_of_memory(error["type"], error["message"])
        why = reason(error)
        if len(left) > 1 and (no_memory or (failures > 1 and error["type"] in (PROCESS_DIED, HUNG))):
            middle = len(left) // 2
            self.progress.note(f"{self.work.stage}: {len(left)} SAEs are trained again, in two groups: {why}")
            return [_part(trial, left[:middle]), _part(trial, left[middle:])]
        if not left or no_memory or failures > RETRIES:
            return []
        self.progress.note(f"{self.work.stage}: {_named(left)} again, retry {failures} of {RETRIES}: {why}")
        return [dataclasses.replace(trial, failures=failures, saved=saved)]

    def _is_left(self, run: RunConfig) -> bool:
        record = self.store.read_record(run.run_id)
        return record is None or (self.work.evaluates_trials and record.status == "trained")

    def _saved(self, trial: Trial) -> tuple[int, ...]:
        """When checkpoints and records of a trial's runs were written."""
        paths = [self.store.paths.run(run.run_id) for run in trial.runs]
        return tuple(path.stat().st_mtime_ns for of in paths for path in (of.checkpoint, of.record) if path.exists())

    def report(self, trial: Trial, told: Mapping[str, Any]) -> bool:
        """Take note of what a trial reports. Returns whether it is to stop; then its runs have their records."""
        if "error" in told:
            self._errors[id(trial)] = told["error"]
            return False
        if (note := told.get("note")) and note not in self._notes:
            self._notes.add(note)
            self.progress.note(note)
        stops = False
        if self.stopping and (rung := told.get("rung")) is not None:
            stops = self.stopping.stops(trial.runs, rung, {**trial.config.facts, **told["node"]})
        fractions = {run_id: 1.0 if stops else fraction for run_id, fraction in told["progress"].items()}
        for run_id, fraction in fractions.items():
            total, before = self.runs[run_id].n_tokens, self._tokens.get(run_id, 0)
            self._tokens[run_id] = now = round(fraction * total)
            self._n_tokens += now - before
            self._n_done += (now >= total) - (before >= total)
            self.loggers.update(self.runs[run_id])
        self.budget.spend(self._n_tokens - self._resumed)
        self.progress.advance_to(self._n_tokens, f"{self._n_done} of {self.work.n_runs} SAEs done", resumed=self._resumed)
        self._show_report(trial, told)
        return stops

    def _show_report(self, trial: Trial, told: Mapping[str, Any]) -> None:
        key, now = trial.runs[0].run_id, self.progress.clock()
        last, total = self._groups[key], sum(run.n_tokens for run in trial.runs)
        fraction = sum(self._tokens.get(run.run_id, 0.0) for run in trial.runs) / total
        # A resumed run reports tokens of earlier launches at first.
        rate = total * (fraction - last.fraction) / (now - self._reported[key]) if key in self._reported else None
        self._reported[key] = now
        self._show(
            dataclasses.replace(
                last,
                fraction=fraction,
                node=told.get("host", last.node),
                tokens_per_second=rate,
                loss=_range(told, "loss") or last.loss,
                l0=_range(told, "l0") or last.l0,
                seconds_left=total * (1 - fraction) / rate if rate else None,
            )
        )

    def _show(self, group: GroupProgress) -> None:
        self._groups[group.runs[0]] = group
        self.progress.group(group)

    def _lose(self, config: TrialConfig, error: Mapping[str, str]) -> None:
        """Write failed records for the runs of a trial that ended before it could."""
        for run in map(RunConfig.model_validate, config.runs):
            if self.store.read_record(run.run_id) is None:
                self.store.write_record(record_without_result(run, "failed", error, **config.facts))

    def summary(self) -> str:
        """What was trained, in words."""
        states = [record.status for run_id in self.runs if (record := self.store.read_record(run_id)) is not None]
        pruned, failed = states.count("pruned"), states.count("failed")
        exceptions = f"{f', {pruned} stopped early' if pruned else ''}{f', {failed} FAILED' if failed else ''}"
        return f"{len(self.runs)} SAEs, {self.work.n_tokens:,} tokens{exceptions}"


def _part(trial: Trial, runs: list[RunConfig]) -> Trial:
    config = dataclasses.replace(trial.config, runs=[run.model_dump(mode="json") for run in runs])
    return Trial(runs, config, trial.proposal, whole=trial.whole or trial)


def _named(runs: Sequence[RunConfig]) -> str:
    """e.g. "topk-1 and 2 others"."""
    return f"{runs[0].run_id}{f' and {len(runs) - 1} others' if len(runs) > 1 else ''}"


def _range(told: Mapping[str, Any], name: str) -> list[float] | None:
    values = told.get(name)
    return [min(values), max(values)] if values else None
