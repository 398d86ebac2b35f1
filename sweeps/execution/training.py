"""The trials of a launch, as an executor sees them: what to train next, what it reports, and what became of it."""

from collections.abc import Mapping
from typing import Any

from sae_core.config.run import RunConfig
from sae_core.orders import OrdersFile
from sae_core.trainable import TrialConfig
from sweeps.execution.early_stopping import EarlyStopping
from sweeps.execution.loggers import Loggers
from sweeps.execution.progress import SweepProgress
from sweeps.execution.work import Trial, Work
from sweeps.storage.progress_file import GroupProgress
from sweeps.storage.store import Store, reason, record_without_result


class Training:
    """Trials of a launch.

    Args:
        settings: what all trials share; the other fields are those of each.
    """

    def __init__(self, work: Work, store: Store, progress: SweepProgress, loggers: Loggers, settings: TrialConfig) -> None:
        self.work, self.store, self.progress, self.loggers, self.settings = work, store, progress, loggers, settings
        early_stopping = work.sweep.early_stopping
        self.stopping = EarlyStopping(early_stopping, store, work.groups()) if early_stopping else None
        self.orders = OrdersFile(settings.orders)
        self.runs: dict[str, RunConfig] = {}
        self._tokens: dict[str, float] = {}
        """Run id -> tokens trained on so far."""
        self._groups: dict[str, GroupProgress] = {}
        """First run id of a trial -> how far it was when it last reported."""
        self._reported: dict[str, float] = {}
        """First run id of a trial -> when it last reported."""

    def next(self) -> Trial | None:
        """The next trial; None after the last one, or when the sweep is to stop."""
        trial = self.work.next_trial(self.settings) if self.orders.now().sweep != "stop" else None
        if trial:
            self.runs |= {run.run_id: run for run in trial.runs}
            self._show(GroupProgress(len(self._groups) + 1, [run.run_id for run in trial.runs]))
        return trial

    def end(self, trial: Trial) -> None:
        """A trial has ended; the records of its runs say how."""
        self.work.end_trial(trial)
        self.progress.end_group(self._groups[trial.runs[0].run_id].number)
        for run in trial.runs:
            if (record := self.store.read_record(run.run_id)) is not None and record.status == "failed":
                self.progress.fail(run.run_id, reason(record))

    def report(self, trial: Trial, told: Mapping[str, Any]) -> bool:
        """Take note of what `run_trial` reports. Returns whether the trial is to stop; then its runs have their records."""
        stops = False
        if self.stopping and (rung := told.get("rung")) is not None:
            stops = self.stopping.stops(trial.runs, rung, {**trial.config.facts, **told["node"]})
        fractions = {run_id: 1.0 if stops else fraction for run_id, fraction in told["progress"].items()}
        for run_id, fraction in fractions.items():
            self._tokens[run_id] = fraction * n_tokens(self.runs[run_id])
            self.loggers.update(self.runs[run_id])
        done = sum(tokens >= n_tokens(self.runs[run_id]) for run_id, tokens in self._tokens.items())
        self.progress.advance_to(sum(self._tokens.values()), f"{done} of {self.work.n_runs} SAEs done")
        self._show_report(trial, told)
        return stops

    def _show_report(self, trial: Trial, told: Mapping[str, Any]) -> None:
        key, now = trial.runs[0].run_id, self.progress.clock()
        last, total = self._groups[key], sum(n_tokens(run) for run in trial.runs)
        fraction = sum(self._tokens.get(run.run_id, 0.0) for run in trial.runs) / total
        # A resumed run reports tokens of earlier launches at first.
        rate = total * (fraction - last.fraction) / (now - self._reported[key]) if key in self._reported else None
        self._reported[key] = now
        self._show(
            GroupProgress(
                number=last.number,
                runs=last.runs,
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

    def lose(self, config: TrialConfig, kind: str, message: str, trace: str) -> None:
        """Write failed records for the runs of a trial that ended before it could: its process died, or it could not even start."""
        for run in map(RunConfig.model_validate, config.runs):
            if self.store.read_record(run.run_id) is None:
                error = {"type": kind, "message": message, "traceback": trace}
                self.store.write_record(record_without_result(run, "failed", error, **config.facts))

    def summary(self) -> str:
        """What was trained, in words."""
        states = [record.status for run_id in self.runs if (record := self.store.read_record(run_id)) is not None]
        pruned, failed = states.count("pruned"), states.count("failed")
        exceptions = f"{f', {pruned} stopped early' if pruned else ''}{f', {failed} FAILED' if failed else ''}"
        return f"{len(self.runs)} SAEs, {self.work.n_tokens:,} tokens{exceptions}"


def n_tokens(run: RunConfig) -> int:
    """Tokens that a run trains on: whole batches."""
    return run.n_steps * run.train.batch_size


def _range(told: Mapping[str, Any], name: str) -> list[float] | None:
    values = told.get(name)
    return [min(values), max(values)] if values else None
