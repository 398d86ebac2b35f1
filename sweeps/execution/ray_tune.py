"""Trials through Ray Tune. Tune's own state is never read back, so nothing of it is saved: the records are on disk."""

import dataclasses
import json
import tempfile
from typing import Any

from ray import tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from sae_core.trainable import TrialConfig, train_trial
from sweeps.execution import signals
from sweeps.execution.cluster import Cluster
from sweeps.execution.failures import reason_of_failure
from sweeps.execution.training import Training
from sweeps.execution.work import Trial
from sweeps.storage.store import SCRATCH_PREFIX

RETRIES = 2
"""Times a trial whose process or node died is started again; its runs resume from their checkpoints."""


def train(training: Training, cluster: Cluster) -> None:
    """Train all trials, one per slot at a time."""
    searcher = _Searcher(training, cluster)
    with tempfile.TemporaryDirectory(prefix=SCRATCH_PREFIX, dir=training.store.directory) as scratch:
        tuner = tune.Tuner(
            tune.with_resources(train_trial, cluster.trial),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=_Scheduler(searcher),
                num_samples=training.work.n_trials,
                max_concurrent_trials=max(1, training.work.n_trials),  # the searcher keeps to the slots, which come and go
                # Importing torch takes longer than the first steps of a small SAE.
                reuse_actors=True,
                trial_dirname_creator=_short_name,
            ),
            run_config=tune.RunConfig(
                name="trials", storage_path=scratch, verbose=0, failure_config=tune.FailureConfig(max_failures=RETRIES)
            ),
        )
        results = tuner.fit()
    for result in (results[index] for index in range(len(results))):
        if result.error is not None and result.config is not None:
            training.lose(TrialConfig(**result.config["trial"]), *reason_of_failure(result.error), str(result.error))


def _short_name(trial: Any) -> str:
    return f"trial_{trial.trial_id}"


class _Searcher(Searcher):
    """Hands out the trials, one per slot: those of a search are proposed from what is known then."""

    def __init__(self, training: Training, cluster: Cluster) -> None:
        super().__init__()
        self.training, self.cluster = training, cluster
        self.trials: dict[str, Trial] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def save(self, checkpoint_path: str) -> None:
        pass

    def restore(self, checkpoint_path: str) -> None:
        pass

    def suggest(self, trial_id: str) -> Any:
        """The config of the next trial; None while every slot has one."""
        signals.regain()
        if len(self.trials) >= self.cluster.n_slots:
            return None
        trial = self.training.next()
        if trial is None:
            return Searcher.FINISHED
        self.trials[trial_id] = trial
        return {"trial": dataclasses.asdict(trial.config)}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """The records say how the trial ended."""
        self.training.end(self.trials.pop(trial_id))


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
