"""The training stage: groups of runs as trials of Ray Tune, their progress, and records for what Ray lost."""

import dataclasses
import tempfile
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ray import tune

from sae_core.activations.shards import read_manifest
from sae_core.config import RunConfig
from sae_core.records import RunRecord
from sae_core.trainable import TrialConfig, train_trial
from sweeps import provenance
from sweeps.cluster import Cluster
from sweeps.grouping import group_runs
from sweeps.progress import SweepProgress
from sweeps.store import Store
from sweeps.wandb_sink import WandbSink

if TYPE_CHECKING:
    from sweeps.launcher import Input

RETRIES = 2
"""Times a trial whose process or node died is started again; its runs go on from their checkpoints."""


class TrainingStage:
    """Trains runs on all slots of a cluster and shows how far each is.

    Args:
        facts: fields that every record gets, e.g. versions and hardware.
        checkpoint_seconds: least time between two checkpoints of a run.
    """

    def __init__(
        self,
        store: Store,
        cluster: Cluster,
        progress: SweepProgress,
        sink: WandbSink | None,
        facts: dict[str, Any],
        checkpoint_seconds: float,
    ) -> None:
        self.store, self.cluster, self.progress, self.sink = store, cluster, progress, sink
        self.facts, self.checkpoint_seconds = facts, checkpoint_seconds

    def run(self, work: Sequence[tuple[RunConfig, "Input"]]) -> float:
        """Train until every run has a record. Returns seconds.

        Raises:
            ConfigError: a run needs more memory than a slot has.
        """
        total = sum(run.n_steps * run.train.batch_size for run, _ in work)
        self.progress.stage("train", total, "tokens")
        if work:
            trials = self._trials(work)
            with tempfile.TemporaryDirectory(prefix=".ray-", dir=self.store.directory) as scratch:
                self._fit(trials, scratch, _Watcher([run for run, _ in work], self.progress, self.store, self.sink))
        failed = sum(record.status == "failed" for run, _ in work if (record := self.store.read_record(run.run_id)) is not None)
        return self.progress.end_stage(f"{len(work)} SAEs, {total:,} tokens{f', {failed} FAILED' if failed else ''}")

    def _trials(self, work: Sequence[tuple[RunConfig, "Input"]]) -> list[TrialConfig]:
        """One trial a group."""
        inputs = {run.run_id: one for run, one in work}
        widths = {id(one): read_manifest(one.cache).d_in for one in inputs.values()}
        memory = None if self.cluster.gpus else provenance.slot_memory_bytes(self.cluster.n_slots)
        runs = [run for run, _ in work]
        groups = group_runs(runs, n_slots=self.cluster.n_slots, d_in=lambda run: widths[id(inputs[run.run_id])], memory_bytes=memory)
        return [self._trial(group, inputs[group[0].run_id]) for group in groups]

    def _trial(self, group: Sequence[RunConfig], one: "Input") -> TrialConfig:
        return TrialConfig(
            runs=[run.model_dump(mode="json") for run in group],
            cache=str(one.cache),
            directory=str(self.store.directory / "runs"),
            checkpoint_seconds=self.checkpoint_seconds,
            metadata=one.metadata,
            facts={**self.facts, "activations_hash": one.activations_hash},
        )

    def _fit(self, trials: Sequence[TrialConfig], scratch: str, watcher: "_Watcher") -> None:
        tuner = tune.Tuner(
            tune.with_resources(train_trial, self.cluster.trial),
            param_space={"trial": tune.grid_search([dataclasses.asdict(trial) for trial in trials])},
            # Processes are used again for the next group: importing torch takes longer than training a small SAE's first steps.
            tune_config=tune.TuneConfig(reuse_actors=True, max_concurrent_trials=self.cluster.n_slots, trial_dirname_creator=_short_name),
            run_config=tune.RunConfig(
                name="trials",
                storage_path=scratch,
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=RETRIES),
                callbacks=[watcher],
            ),
        )
        results = tuner.fit()
        for result in (results[index] for index in range(len(results))):
            if result.error is not None and result.config is not None:
                self._record_lost(TrialConfig(**result.config["trial"]), result.error)

    def _record_lost(self, trial: TrialConfig, error: Exception) -> None:
        """Failed records for the runs of a trial that ended before it could write them."""
        for config in trial.runs:
            run = RunConfig.model_validate(config)
            if self.store.read_record(run.run_id) is None:
                self.store.write_record(_lost(run, error, trial.facts))


def _short_name(trial: Any) -> str:
    return f"trial_{trial.trial_id}"


def _lost(run: RunConfig, error: Exception, facts: dict[str, Any]) -> RunRecord:
    """The record of a run whose process died, or whose group could not even start."""
    return RunRecord(
        run_id=run.run_id,
        status="failed",
        config=run.model_dump(mode="json"),
        architecture=run.sae.architecture,
        sparsity_parameter=run.sae.sparsity_parameter,
        sparsity_value=run.sae.sparsity_value,
        seed=run.seed,
        error={"type": type(error).__name__, "message": (str(error).strip().splitlines() or [""])[-1], "traceback": str(error)},
        **facts,
    )


class _Watcher(tune.Callback):
    """Hears from Tune how far each run is; passes it on to the terminal and to W&B."""

    def __init__(self, runs: Sequence[RunConfig], progress: SweepProgress, store: Store, sink: WandbSink | None) -> None:
        self.runs = {run.run_id: run for run in runs}
        self.tokens = {run.run_id: run.n_steps * run.train.batch_size for run in runs}
        self.fractions = dict.fromkeys(self.runs, 0.0)
        self.progress, self.store, self.sink = progress, store, sink

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its callbacks for a restore that we never do; a terminal cannot be pickled.
        return {}

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any) -> None:
        reported = {run_id: fraction for run_id, fraction in result.get("progress", {}).items() if run_id in self.runs}
        self.fractions.update(reported)
        tokens = sum(fraction * self.tokens[run_id] for run_id, fraction in self.fractions.items())
        done = sum(fraction >= 1 for fraction in self.fractions.values())
        self.progress.advance_to(tokens, f"{done} of {len(self.runs)} SAEs done")
        self.progress.runs(reported)
        if self.sink:
            for run_id in reported:
                self.sink.update(self.runs[run_id])
