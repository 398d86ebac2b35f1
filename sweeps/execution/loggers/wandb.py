"""Weights & Biases: one run per SAE, grouped by the sweep. Nothing reads it back; without `wandb:` in a definition it is not imported.

Runs are written by the driver from the histories and records on disk, so trials neither import wandb nor wait for it.
"""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from sae_core.config.run import RunConfig
from sae_core.errors import ConfigError, border, reason_of
from sae_core.records import RunRecord
from sweeps.definition.sections import WandbConfig
from sweeps.storage.store import Store

log = logging.getLogger(__name__)


class WandbSink:
    """Mirrors runs into W&B. If that fails, it warns and stops: the sweep does not depend on a server.

    Raises:
        ConfigError: wandb is not installed, or `mode: online` without a key.
    """

    def __init__(self, config: WandbConfig, sweep_name: str, store: Store) -> None:
        self.config, self.sweep_name, self.store = config, sweep_name, store
        with border("wandb must be installed where a definition asks for it, but it cannot be imported", "Run `pip install wandb`."):
            import wandb
        self.wandb = wandb
        with border("`wandb.mode` must be offline where W&B cannot log in, but got mode='online'", "Set it to offline."):
            logged_in = config.mode != "online" or wandb.login(prompt=False, verify=False)
        if not logged_in:
            raise ConfigError(
                f"`wandb.mode` must be offline where there is no API key, but got mode={config.mode!r}. Run `wandb login`, or set it to "
                "offline."
            )
        self.open_runs: dict[str, Any] = {}
        self.rows_sent: dict[str, int] = {}
        self.works = True

    def update(self, run: RunConfig) -> None:
        """Send the rows of history that are new."""
        self._try(lambda: self._send_history(run))

    def finish(self, run: RunConfig, record: RunRecord) -> None:
        """Send the rest of the history and the metrics, under the names of the table, and end the run."""
        self._try(lambda: self._finish(run, record))

    def close(self) -> None:
        """End what an interruption left open; a later launch writes these runs again, under the same ids."""
        for mirrored in self.open_runs.values():
            self._try(partial(mirrored.finish, exit_code=1))
        self.open_runs.clear()

    def _try(self, send: Callable[[], None]) -> None:
        """Once it failed, never again: waiting for a server that is away would hold up training."""
        if not self.works:
            return
        try:
            send()
        except Exception as error:  # whatever it is, it is not worth a sweep
            self.works = False
            log.warning("W&B failed, the sweep continues without it: %s", reason_of(error))

    def _finish(self, run: RunConfig, record: RunRecord) -> None:
        self._send_history(run)
        mirrored = self._run(run)
        metrics = {f"eval/{name}": value for name, value in record.metrics.items()}
        mirrored.summary.update({**metrics, "status": record.status, "train_seconds": record.train_seconds})
        mirrored.finish(exit_code=0 if record.status in ("finished", "pruned") else 1)
        del self.open_runs[run.run_id]

    def _send_history(self, run: RunConfig) -> None:
        rows = self.store.read_history(run.run_id)
        for row in rows[self.rows_sent.get(run.run_id, 0) :]:
            self._run(run).log({f"train/{key}": value for key, value in row.items() if key != "step"}, step=row["step"])
        self.rows_sent[run.run_id] = len(rows)

    def _run(self, run: RunConfig) -> Any:
        if run.run_id not in self.open_runs:
            self.open_runs[run.run_id] = self.wandb.init(
                id=run.run_id,
                name=run.run_id,
                group=self.sweep_name,
                dir=self.store.directory,
                config=run.model_dump(mode="json"),
                reinit="create_new",
                resume="allow" if self.config.mode == "online" else None,
                settings=self.wandb.Settings(console="off", silent=True),
                **self.config.model_dump(),
            )
        return self.open_runs[run.run_id]
