"""The training stage: groups of runs, or the points of a search, as trials of Ray Tune, their progress, and records for what Ray lost."""

import dataclasses
import tempfile
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from ray import tune

from sae_core import plugins, provenance
from sae_core.activations.shards import read_manifest
from sae_core.config.run import RunConfig
from sae_core.sparse.kernels.choice import Choice
from sae_core.trainable import TrialConfig, train_trial
from sweeps.definition.sections import EarlyStoppingConfig
from sweeps.execution.cluster import Cluster
from sweeps.execution.early_stopping import EarlyStopping
from sweeps.execution.failures import reason_of_failure
from sweeps.execution.lean_ray import lean_tune
from sweeps.execution.loggers.wandb import WandbSink
from sweeps.execution.progress import SweepProgress
from sweeps.planning.grouping import group_runs, lone_runs
from sweeps.storage.store import SCRATCH_PREFIX, Store, record_without_result

if TYPE_CHECKING:
    from sweeps.execution.search import Study, SweepSearch
    from sweeps.planning.inputs import SharedActivations

RETRIES = 2
"""Times a trial whose process or node died is started again; its runs go on from their checkpoints."""


class TrainingStage:
    """Trains runs on all slots of a cluster and shows how far each is.

    Args:
        facts: fields that every record gets.
        checkpoint_seconds: least time between two checkpoints of a run.
        early_stopping: which runs to stop before their end; None: none.
        kernels: that train, see `sae_core.sparse.kernels.choice`.
    """

    def __init__(
        self,
        store: Store,
        cluster: Cluster,
        progress: SweepProgress,
        sink: WandbSink | None,
        facts: dict[str, Any],
        checkpoint_seconds: float,
        early_stopping: EarlyStoppingConfig | None = None,
        kernels: Choice = "fast",
    ) -> None:
        self.store, self.cluster, self.progress, self.sink = store, cluster, progress, sink
        self.facts, self.checkpoint_seconds, self.early_stopping, self.kernels = facts, checkpoint_seconds, early_stopping, kernels
        self.scheduler: EarlyStopping | None = None

    def run(self, work: Sequence[tuple[RunConfig, "SharedActivations"]]) -> float:
        """Train until every run has a record. Returns seconds.

        Raises:
            ConfigError: a run needs more memory than a slot has.
        """
        total = sum(run.n_steps * run.train.batch_size for run, _ in work)
        self.progress.stage("train", total, "tokens")
        if work:
            trials = self._trials(work)
            # Also runs that are done: whoever trains now is compared with them.
            self._stop_early([run] for one in {id(one): one for _, one in work}.values() for run in one.runs)
            with tempfile.TemporaryDirectory(prefix=SCRATCH_PREFIX, dir=self.store.directory) as scratch:
                self._fit(trials, scratch, _Watcher([run for run, _ in work], self.progress, self.store, self.sink))
        return self.progress.end_stage(f"{len(work)} SAEs, {total:,} tokens{self._exceptions([run for run, _ in work])}")

    def search(self, study: "Study", one: "SharedActivations") -> float:
        """Make the trials that are left of a search, each of them trained and evaluated. Returns seconds."""
        from sweeps.execution.search import SweepSearch

        n_trials, n_repeats = study.n_left(), study.space.axes.n_repeats
        total = n_trials * n_repeats * one.source.config.train_tokens
        self.progress.stage("search", total, "tokens")
        watcher = _Watcher([], self.progress, self.store, self.sink, n_runs=n_trials * n_repeats)

        def trial_config(runs: Sequence[RunConfig]) -> dict[str, Any]:
            watcher.add(runs)
            return dataclasses.asdict(dataclasses.replace(self._trial(runs, one), source=one.source.config.model_dump(mode="json")))

        self._stop_early(study.groups())
        with tempfile.TemporaryDirectory(prefix=SCRATCH_PREFIX, dir=self.store.directory) as scratch:
            self._fit_search(SweepSearch(study, self.store, trial_config), n_trials, scratch, watcher)
        return self.progress.end_stage(f"{n_trials} trials{self._exceptions(list(watcher.runs.values()))}")

    def _trials(self, work: Sequence[tuple[RunConfig, "SharedActivations"]]) -> list[TrialConfig]:
        """One trial a group."""
        inputs = {run.run_id: one for run, one in work}
        widths = {id(one): read_manifest(one.cache).d_in for one in inputs.values()}
        memory = None if self.cluster.gpus else provenance.slot_memory_bytes(self.cluster.n_slots)
        runs = [run for run, _ in work]

        def d_in(run: RunConfig) -> int:
            return widths[id(inputs[run.run_id])]

        if self.early_stopping:
            groups = lone_runs(runs, d_in=d_in, memory_bytes=memory)
        else:
            groups = group_runs(runs, n_slots=self.cluster.n_slots, d_in=d_in, memory_bytes=memory)
        return [self._trial(group, inputs[group[0].run_id]) for group in groups]

    def _trial(self, group: Sequence[RunConfig], one: "SharedActivations") -> TrialConfig:
        return TrialConfig(
            runs=[run.model_dump(mode="json") for run in group],
            plugins=plugins.checksums(),
            cache=str(one.cache),
            directory=str(self.store.directory / "runs"),
            checkpoint_seconds=self.checkpoint_seconds,
            kernels=self.kernels,
            metadata=one.metadata,
            facts={**self.facts, "activations_hash": one.activations_hash, "activation_facts": one.facts},
            rungs=self.early_stopping.rungs if self.early_stopping else [],
        )

    def _stop_early(self, groups: Iterable[Sequence[RunConfig]]) -> None:
        self.scheduler = EarlyStopping(self.early_stopping, self.store, groups) if self.early_stopping else None

    def _exceptions(self, runs: Sequence[RunConfig]) -> str:
        """How many runs did not come to their end, in words."""
        states = [record.status for run in runs if (record := self.store.read_record(run.run_id)) is not None]
        pruned, failed = states.count("pruned"), states.count("failed")
        return f"{f', {pruned} stopped early' if pruned else ''}{f', {failed} FAILED' if failed else ''}"

    def _fit(self, trials: Sequence[TrialConfig], scratch: str, watcher: "_Watcher") -> None:
        space = {"trial": tune.grid_search([dataclasses.asdict(trial) for trial in trials])}
        self._tune(scratch, watcher, space, {})

    def _fit_search(self, search: "SweepSearch", n_trials: int, scratch: str, watcher: "_Watcher") -> None:
        self._tune(scratch, watcher, None, {"search_alg": search, "num_samples": n_trials})

    def _tune(self, scratch: str, watcher: "_Watcher", space: dict[str, Any] | None, options: dict[str, Any]) -> None:
        tuner = tune.Tuner(
            tune.with_resources(train_trial, self.cluster.trial),
            param_space=space,
            # Processes are used again for the next group: importing torch takes longer than training a small SAE's first steps.
            tune_config=tune.TuneConfig(
                reuse_actors=True,
                max_concurrent_trials=self.cluster.n_slots,
                trial_dirname_creator=_short_name,
                scheduler=self.scheduler,
                **options,
            ),
            run_config=tune.RunConfig(
                name="trials",
                storage_path=scratch,
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=RETRIES),
                callbacks=[watcher],
            ),
        )
        with lean_tune():
            results = tuner.fit()
        for result in (results[index] for index in range(len(results))):
            if result.error is not None and result.config is not None:
                self._record_lost(TrialConfig(**result.config["trial"]), result.error)

    def _record_lost(self, trial: TrialConfig, error: Exception) -> None:
        """Failed records for the runs of a trial that ended before it could write them: its process died, or it could not even start."""
        kind, message = reason_of_failure(error)
        for config in trial.runs:
            run = RunConfig.model_validate(config)
            if self.store.read_record(run.run_id) is None:
                lost = {"type": kind, "message": message, "traceback": str(error)}
                self.store.write_record(record_without_result(run, "failed", lost, **trial.facts))


def _short_name(trial: Any) -> str:
    return f"trial_{trial.trial_id}"


class _Watcher(tune.Callback):
    """Hears from Tune how far each run is; passes it on to the terminal and to W&B."""

    def __init__(
        self,
        runs: Sequence[RunConfig],
        progress: SweepProgress,
        store: Store,
        sink: WandbSink | None,
        n_runs: int | None = None,
    ) -> None:
        self.runs: dict[str, RunConfig] = {}
        self.fractions: dict[str, float] = {}
        self.n_runs = len(runs) if n_runs is None else n_runs
        self.progress, self.store, self.sink = progress, store, sink
        self.add(runs)

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its callbacks for a restore that we never do; a terminal cannot be pickled.
        return {}

    def add(self, runs: Sequence[RunConfig]) -> None:
        """Watch further runs."""
        self.runs |= {run.run_id: run for run in runs}
        self.fractions |= {run.run_id: 0.0 for run in runs}

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any) -> None:
        reported = {run_id: fraction for run_id, fraction in result.get("progress", {}).items() if run_id in self.runs}
        if "rung" in result:  # the scheduler has just decided: a run that was stopped is done
            records = {run_id: self.store.read_record(run_id) for run_id in reported}
            reported |= {run_id: 1.0 for run_id, record in records.items() if record is not None and record.status == "pruned"}
        self.fractions.update(reported)
        tokens = sum(self.fractions[run_id] * run.n_steps * run.train.batch_size for run_id, run in self.runs.items())
        done = sum(fraction >= 1 for fraction in self.fractions.values())
        self.progress.advance_to(tokens, f"{done} of {self.n_runs} SAEs done")
        self.progress.runs(reported)
        if self.sink:
            for run_id in reported:
                self.sink.update(self.runs[run_id])
