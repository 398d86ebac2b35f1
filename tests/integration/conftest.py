"""`launch` in this process: the same code, with what Ray runs elsewhere, workers and trials, as plain calls."""

import dataclasses
from contextlib import suppress
from types import SimpleNamespace

import pytest

import sweeps.execution.workers
from sae_core.trainable import train_trial
from sweeps.execution.cluster import Cluster
from sweeps.execution.progress import SweepProgress
from sweeps.execution.training import TrainingStage


class InProcessPool:
    """One worker, in this process."""

    def __init__(self, cluster, kernels):
        self.worker = sweeps.execution.workers.SourceWorker("cpu", 1, kernels)

    def ask(self, job, *arguments):
        return getattr(self.worker, job)(*arguments)

    def map(self, job, indices, done, *arguments):
        for index in indices:
            done(getattr(self.worker, job)(index, *arguments))

    def close(self):
        pass


class Told(SweepProgress):
    """Progress that keeps what it is told: notes, stages, and how far each run that was trained is."""

    def __init__(self):
        super().__init__()
        self.notes = []
        self.stages = []
        self.trained = {}

    def note(self, text):
        self.notes.append(text)

    def stage(self, name, total, unit):
        super().stage(name, total, unit)
        self.stages.append(name)

    def runs(self, fractions):
        self.trained |= fractions


@pytest.fixture(scope="module")
def in_process():
    """No Ray: trials and workers one after another in this process."""
    with pytest.MonkeyPatch.context() as patch:

        def train(stage, config, watcher):
            trial = SimpleNamespace(config=config)

            def report(result):
                stop = stage.scheduler is not None and stage.scheduler.on_trial_result(None, trial, result) == "STOP"
                watcher.on_trial_result(0, [], trial, result)
                if stop:
                    raise SystemExit

            patch.setattr("ray.tune.report", report)
            with suppress(SystemExit):
                train_trial(config)

        def fit(stage, trials, scratch, watcher):
            for trial in trials:
                train(stage, {"trial": dataclasses.asdict(trial)}, watcher)

        def fit_search(stage, search, n_trials, scratch, watcher):
            for number in range(n_trials):
                train(stage, search.suggest(str(number)), watcher)
                search.on_trial_complete(str(number), {})

        patch.setattr(Cluster, "__enter__", lambda self: self)
        patch.setattr(Cluster, "__exit__", lambda self, *error: None)
        patch.setattr("sweeps.execution.workers.WorkerPool", InProcessPool)
        patch.setattr(TrainingStage, "_fit", fit)
        patch.setattr(TrainingStage, "_fit_search", fit_search)
        yield


@pytest.fixture
def progress():
    return Told()
