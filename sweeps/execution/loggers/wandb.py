"""Weights & Biases: one run per SAE, grouped by the sweep. Nothing reads it back; without `wandb:` in a definition it is not imported."""

from collections.abc import Mapping
from typing import Any

from sae_core.config.run import RunConfig
from sae_core.errors import ConfigError, border
from sae_core.records import RunRecord
from sweeps.execution.loggers import LOGGERS, Logger
from sweeps.storage.store import Store


@LOGGERS.register("wandb")
class WandbLogger(Logger):
    """Logs to W&B, with the fields of `WandbConfig` as options."""

    def __init__(self, options: Mapping[str, Any], sweep_name: str, store: Store) -> None:
        super().__init__(options, sweep_name, store)
        with border("wandb must be installed where a definition has `wandb`, but it cannot be imported", "Run `pip install wandb`."):
            import wandb
        self.wandb, self.online = wandb, options["mode"] == "online"
        with border("`wandb.mode` must be offline where W&B cannot log in, but got mode='online'", "Set it to offline."):
            logged_in = not self.online or wandb.login(prompt=False, verify=False)
        if not logged_in:
            raise ConfigError(
                "`wandb.mode` must be offline where there is no API key, but got mode='online'. Run `wandb login`, or set it to offline."
            )
        self.open_runs: dict[str, Any] = {}
        self.rows_sent: dict[str, int] = {}

    def update(self, run: RunConfig) -> None:
        """Send the rows of history that are new."""
        rows = self.store.read_history(run.run_id)
        for row in rows[self.rows_sent.get(run.run_id, 0) :]:
            self._run(run).log({f"train/{key}": value for key, value in row.items() if key != "step"}, step=row["step"])
        self.rows_sent[run.run_id] = len(rows)

    def finish(self, run: RunConfig, record: RunRecord) -> None:
        """Send the rest of the history and the metrics, under the names of the table, and end the run."""
        self.update(run)
        mirrored = self._run(run)
        metrics = {f"eval/{name}": value for name, value in record.metrics.items()}
        mirrored.summary.update({**metrics, "status": record.status, "train_seconds": record.train_seconds})
        mirrored.finish(exit_code=0 if record.status in ("finished", "pruned") else 1)
        del self.open_runs[run.run_id]

    def close(self) -> None:
        """End runs that an interruption left open; a later launch writes them again, under the same ids."""
        while self.open_runs:
            self.open_runs.popitem()[1].finish(exit_code=1)

    def _run(self, run: RunConfig) -> Any:
        if run.run_id not in self.open_runs:
            self.open_runs[run.run_id] = self.wandb.init(
                id=run.run_id,
                name=run.run_id,
                group=self.sweep_name,
                dir=self.store.directory,
                config=run.model_dump(mode="json"),
                reinit="create_new",
                resume="allow" if self.online else None,
                settings=self.wandb.Settings(console="off", silent=True),
                **self.options,
            )
        return self.open_runs[run.run_id]
