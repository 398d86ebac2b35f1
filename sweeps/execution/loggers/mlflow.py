"""MLflow: one run per SAE, in an experiment named after the sweep."""

import time
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from sae_core.config.base import Config
from sae_core.config.run import RunConfig
from sae_core.errors import border
from sae_core.records import RunRecord, flat
from sweeps.execution.loggers import LOGGERS, library
from sweeps.execution.loggers.per_run import PerRunLogger, numbers, results_of
from sweeps.storage.store import Store

_LONGEST_VALUE = 500
"""Characters of a parameter that every version of MLflow takes."""


class MlflowConfig(Config):
    """Where MLflow keeps the runs."""

    tracking_uri: str | None = None
    """URI of a server or database; None: `mlflow.db` in the results directory, with artifacts beside it."""
    artifacts: bool = False
    """Whether each SAE and its snapshots are stored with its finished run."""


@LOGGERS.register("mlflow")
class MlflowLogger(PerRunLogger):
    """Logs to MLflow."""

    Options = MlflowConfig

    def __init__(self, options: Mapping[str, Any], sweep_name: str, store: Store) -> None:
        super().__init__(options, sweep_name, store)
        with library("mlflow"):
            import mlflow
        self.mlflow = mlflow
        if (uri := options["tracking_uri"]) is not None:
            with border(f"`tracking_uri` must be where MLflow can keep runs, but got {uri!r}", "Correct it, or start the server."):
                self.client.get_experiment_by_name(sweep_name)

    @cached_property
    def client(self) -> Any:
        """The database or server."""
        return self.mlflow.MlflowClient(tracking_uri=self.options["tracking_uri"] or f"sqlite:///{self.store.directory / 'mlflow.db'}")

    @cached_property
    def experiment(self) -> str:
        """Id of the sweep's experiment, which is created where there is none."""
        if (known := self.client.get_experiment_by_name(self.sweep_name)) is not None:
            return str(known.experiment_id)
        artifacts = None if self.options["tracking_uri"] else (self.store.directory / "mlflow").as_uri()
        return str(self.client.create_experiment(self.sweep_name, artifact_location=artifacts))

    def begin(self, run: RunConfig) -> str:
        """Begin a run in place of an unfinished one of the same name."""
        for earlier in self.client.search_runs([self.experiment], f"attributes.run_name = '{run.run_id}'"):
            self.client.delete_run(earlier.info.run_id)
        begun: str = self.client.create_run(self.experiment, run_name=run.run_id).info.run_id
        config = flat(run.model_dump(mode="json"))
        self.client.log_batch(
            begun, params=[self.mlflow.entities.Param(name, str(value)[:_LONGEST_VALUE]) for name, value in config.items()]
        )
        return begun

    def log(self, opened: str, row: Mapping[str, float | None], step: int) -> None:
        """Send one row."""
        now = int(time.time() * 1000)
        self.client.log_batch(opened, [self.mlflow.entities.Metric(name, value, now, step) for name, value in numbers(row).items()])

    def end(self, opened: str, run: RunConfig, record: RunRecord) -> None:
        """Send the metrics, the SAE where asked, and end the run."""
        self.log(opened, results_of(record), run.n_steps)
        self.client.set_tag(opened, "status", record.status)
        for name, directory in self.saes(run).items() if self.options["artifacts"] else ():
            self.client.log_artifacts(opened, str(directory), name)
        self.client.set_terminated(opened, "FINISHED" if record.status in ("finished", "pruned") else "FAILED")

    def abandon(self, opened: str) -> None:
        """End a run."""
        self.client.set_terminated(opened, "KILLED")
