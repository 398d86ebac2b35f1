"""Loggers that keep something open per run: a W&B run, a file of events, a run in a database."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from sae_core.config.run import RunConfig
from sae_core.records import RunRecord
from sweeps.execution.loggers import Logger
from sweeps.storage.store import Store


class PerRunLogger(Logger):
    """Begins a run at its first row, logs each row once, and ends the run with its record."""

    def __init__(self, options: Mapping[str, Any], sweep_name: str, store: Store) -> None:
        super().__init__(options, sweep_name, store)
        self.open_runs: dict[str, Any] = {}

    @abstractmethod
    def begin(self, run: RunConfig) -> Any:
        """Open a run, over what an interrupted launch left of it; what is returned, the other methods get."""

    @abstractmethod
    def log(self, opened: Any, row: Mapping[str, float | None], step: int) -> None:
        """Log training metrics, named `train/...`; None where one has no value."""

    @abstractmethod
    def end(self, opened: Any, run: RunConfig, record: RunRecord) -> None:
        """Log what the record says, held-out metrics as `eval/...`, and close the run."""

    @abstractmethod
    def abandon(self, opened: Any) -> None:
        """Close a run that has no record yet."""

    def update(self, run: RunConfig) -> None:
        """Log the rows of history that are new."""
        for row in self.new_rows(run):
            self.log(self._opened(run), {f"train/{key}": value for key, value in row.items() if key != "step"}, int(row["step"] or 0))

    def finish(self, run: RunConfig, record: RunRecord) -> None:
        """Log the rest of the history and what the record says."""
        self.update(run)
        self.end(self._opened(run), run, record)
        del self.open_runs[run.run_id]

    def close(self) -> None:
        """Close the runs that an interruption left open."""
        while self.open_runs:
            self.abandon(self.open_runs.popitem()[1])

    def _opened(self, run: RunConfig) -> Any:
        if run.run_id not in self.open_runs:
            self.open_runs[run.run_id] = self.begin(run)
        return self.open_runs[run.run_id]


def results_of(record: RunRecord) -> dict[str, float | None]:
    """The metrics of a record under the names that loggers share."""
    return {**{f"eval/{name}": value for name, value in record.metrics.items()}, "train_seconds": record.train_seconds}


def numbers(values: Mapping[str, float | None]) -> dict[str, float]:
    """Those that have a value."""
    return {name: float(value) for name, value in values.items() if value is not None}
