"""Weights & Biases: one run per SAE, grouped by the sweep. Nothing reads it back; without `wandb:` in a definition it is not imported."""

from collections.abc import Mapping
from typing import Any

from sae_core.config.run import RunConfig
from sae_core.errors import ConfigError, border
from sae_core.records import RunRecord
from sweeps.definition.sections import WandbConfig
from sweeps.execution.loggers import LOGGERS, library
from sweeps.execution.loggers.per_run import PerRunLogger, results_of
from sweeps.storage.store import Store


@LOGGERS.register("wandb")
class WandbLogger(PerRunLogger):
    """Logs to Weights & Biases."""

    Options = WandbConfig

    def __init__(self, options: Mapping[str, Any], sweep_name: str, store: Store) -> None:
        super().__init__(options, sweep_name, store)
        with library("wandb"):
            import wandb
        self.wandb, self.online = wandb, options["mode"] == "online"
        with border("`wandb.mode` must be offline where W&B cannot log in, but got mode='online'", "Set it to offline."):
            logged_in = not self.online or wandb.login(prompt=False, verify=False)
        if not logged_in:
            raise ConfigError(
                "`wandb.mode` must be offline where there is no API key, but got mode='online'. Run `wandb login`, or set it to offline."
            )

    def begin(self, run: RunConfig) -> Any:
        """Begin a W&B run under the run's id."""
        return self.wandb.init(
            id=run.run_id,
            name=run.run_id,
            group=self.sweep_name,
            dir=self.store.directory,
            config=run.model_dump(mode="json"),
            reinit="create_new",
            resume="allow" if self.online else None,
            settings=self.wandb.Settings(console="off", silent=True),
            **{name: self.options[name] for name in ("mode", "project", "entity")},
        )

    def log(self, opened: Any, row: Mapping[str, float | None], step: int) -> None:
        """Send one row."""
        opened.log(dict(row), step=step)

    def end(self, opened: Any, run: RunConfig, record: RunRecord) -> None:
        """Send the metrics as a summary, the SAE where asked, and end the run."""
        opened.summary.update({**results_of(record), "status": record.status})
        for name, directory in self.saes(run).items() if self.options["artifacts"] else ():
            artifact = self.wandb.Artifact(name.replace("@", "-"), type="sae")  # W&B allows no @
            for file in directory.iterdir():  # one by one, since `add_dir` prints
                artifact.add_file(str(file))
            opened.log_artifact(artifact)
        opened.finish(exit_code=0 if record.status in ("finished", "pruned") else 1)

    def abandon(self, opened: Any) -> None:
        """End a run; a later launch writes it again, under the same id."""
        opened.finish(exit_code=1)
