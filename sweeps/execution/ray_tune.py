"""Trials through Ray Tune. Tune's own state is never read back, so nothing of it is saved: the records are on disk."""

import dataclasses
import json
import logging
import tempfile
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from sweeps.execution import signals
from sweeps.execution.cluster import Cluster
from sweeps.execution.failures import reason_of_death
from sweeps.execution.training import Training
from sweeps.execution.work import Trial
from sweeps.storage.store import SCRATCH_PREFIX


def train(training: Training, cluster: Cluster) -> None:
    """Train all trials, one per slot at a time."""

    def train_trial(config: dict[str, Any]) -> None:  # within a function, so that Ray sends it as it is, and nothing is imported for it
        from pathlib import Path

        from sae_core.watchdog import watched

        with watched(config["trial"]["stall_seconds"], Path(config["hang"])):  # while it imports torch, too
            from sae_core.trainable import train_trial

            train_trial(config)

    searcher = _Searcher(training, cluster)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # trials that fail: `Training` says what became of them
    with tempfile.TemporaryDirectory(prefix=SCRATCH_PREFIX, dir=training.store.directory) as scratch:
        tuner = tune.Tuner(
            tune.with_resources(train_trial, cluster.trial),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=_Scheduler(searcher),
                num_samples=-1,  # as many as the searcher hands out: some again
                max_concurrent_trials=max(1, training.work.n_runs),  # the searcher keeps to the slots, which come and go
                # Importing torch takes longer than the first steps of a small SAE.
                reuse_actors=True,
                trial_dirname_creator=_short_name,
            ),
            run_config=tune.RunConfig(name="trials", storage_path=scratch, verbose=0),
        )
        tuner.fit()
    if not searcher.has_ended:  # Tune's handler took a SIGUSR1 before the first trial
        signals.interrupt()


def _short_name(trial: Any) -> str:
    return f"trial_{trial.trial_id}"


class _Searcher(Searcher):
    """Hands out the trials, one per slot: those of a search are proposed from what is known then."""

    def __init__(self, training: Training, cluster: Cluster) -> None:
        super().__init__()
        self.training, self.cluster = training, cluster
        self.trials: dict[str, Trial] = {}
        self.has_ended = False
        self.failures: dict[str, dict[str, str]] = {}
        """What ended a trial that could not report it: its process died, or did not even start."""

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def save(self, checkpoint_path: str) -> None:
        pass

    def restore(self, checkpoint_path: str) -> None:
        pass

    def suggest(self, trial_id: str) -> Any:
        """The config of the next trial. None while every slot has one, and while there may be another one: when one that runs fails."""
        signals.regain()
        if len(self.trials) >= self.cluster.n_slots:
            return None
        trial = self.training.next()
        if trial is None:
            self.has_ended = not self.training.n_running
            return Searcher.FINISHED if self.has_ended else None
        self.trials[trial_id] = trial
        return {"trial": dataclasses.asdict(trial.config), "hang": str(self.training.hang(trial))}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """The records say how the trial ended."""
        self.training.end(self.trials.pop(trial_id), self.failures.pop(trial_id, None))


class _Scheduler(FIFOScheduler):
    """Passes reports on, and stops trials."""

    def __init__(self, searcher: _Searcher) -> None:
        super().__init__()
        self.searcher = searcher

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """STOP where early stopping says so."""
        stops = "json" in result and self.searcher.training.report(self.searcher.trials[trial.trial_id], json.loads(result["json"]))
        return TrialScheduler.STOP if stops else TrialScheduler.CONTINUE

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Note why. Tune calls this before the searcher hears that the trial has ended."""
        text = Path(trial.error_file).read_text(errors="replace") if trial.error_file else ""
        kind, message = reason_of_death(text)
        self.searcher.failures[trial.trial_id] = {"type": kind, "message": message, "traceback": text}
