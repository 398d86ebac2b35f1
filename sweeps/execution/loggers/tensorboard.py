"""TensorBoard: a directory of events per SAE, `results/<sweep>/tensorboard/<run_id>`; `tensorboard --logdir` shows them together."""

from collections.abc import Mapping
from typing import Any

from sae_core.config.base import Config
from sae_core.config.run import RunConfig
from sae_core.records import RunRecord, flat
from sweeps.execution.loggers import LOGGERS, library
from sweeps.execution.loggers.per_run import PerRunLogger, numbers, results_of
from sweeps.storage.store import Store


class TensorBoardConfig(Config):
    """Nothing to choose: the files lie beside the results."""


@LOGGERS.register("tensorboard")
class TensorBoardLogger(PerRunLogger):
    """Writes files for TensorBoard."""

    Options = TensorBoardConfig

    def __init__(self, options: Mapping[str, Any], sweep_name: str, store: Store) -> None:
        super().__init__(options, sweep_name, store)
        with library("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter
        self.writer = SummaryWriter

    def begin(self, run: RunConfig) -> Any:
        """Open a file of events that takes the place of earlier ones of the run."""
        return self.writer(log_dir=str(self.store.directory / "tensorboard" / run.run_id), purge_step=0)

    def log(self, opened: Any, row: Mapping[str, float | None], step: int) -> None:
        """Write one row."""
        for name, value in numbers(row).items():
            opened.add_scalar(name, value, step)

    def end(self, opened: Any, run: RunConfig, record: RunRecord) -> None:
        """Write config and metrics for the table of hyperparameters."""
        config = {name: value for name, value in flat(run.model_dump(mode="json")).items() if isinstance(value, bool | int | float | str)}
        opened.add_hparams({**config, "status": record.status}, numbers(results_of(record)), run_name=".")
        opened.close()

    def abandon(self, opened: Any) -> None:
        """Close the file."""
        opened.close()
