"""Trackio: one run per SAE in a local database, or where TRACKIO_SPACE_ID or TRACKIO_SERVER_URL say; `trackio show` shows them."""

import contextlib
import contextvars
import io
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from sae_core.config.base import Config
from sae_core.config.run import RunConfig
from sae_core.records import RunRecord
from sweeps.execution.loggers import LOGGERS, library
from sweeps.execution.loggers.per_run import PerRunLogger, numbers, results_of
from sweeps.storage.store import Store

T = TypeVar("T")


class TrackioConfig(Config):
    """Where Trackio keeps the runs."""

    project: str = "sae-sweep"
    artifacts: bool = False
    """Whether each SAE and its snapshots are stored with its finished run."""


@LOGGERS.register("trackio")
class TrackioLogger(PerRunLogger):
    """Logs to Trackio."""

    Options = TrackioConfig

    def __init__(self, options: Mapping[str, Any], sweep_name: str, store: Store) -> None:
        super().__init__(options, sweep_name, store)
        with library("trackio"):
            import trackio
        self.trackio = trackio

    def begin(self, run: RunConfig) -> Any:
        """Begin a run in place of an unfinished one of the same name."""
        with contextlib.suppress(ValueError):  # there is no such project on this machine yet
            for earlier in self.trackio.Api().runs(self.options["project"]):
                if earlier.name == run.run_id:
                    earlier.delete()

        def begun() -> Any:
            return self.trackio.init(
                project=self.options["project"],
                name=run.run_id,
                group=self.sweep_name,
                config=run.model_dump(mode="json"),
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )

        # In a context of its own, since `init` ends the run that is the current one of its context.
        return _silent(lambda: contextvars.copy_context().run(begun))

    def log(self, opened: Any, row: Mapping[str, float | None], step: int) -> None:
        """Send one row."""
        opened.log(numbers(row), step=step)

    def end(self, opened: Any, run: RunConfig, record: RunRecord) -> None:
        """Send the metrics, the SAE where asked, and end the run."""
        opened.log({**numbers(results_of(record)), "status": record.status}, step=run.n_steps)
        for name, directory in self.saes(run).items() if self.options["artifacts"] else ():
            _silent(lambda name=name, directory=directory: opened.log_artifact(directory, name=name.replace("@", "-"), type="sae"))
        _silent(opened.finish)

    def abandon(self, opened: Any) -> None:
        """End a run."""
        _silent(opened.finish)


def _silent(call: Callable[[], T]) -> T:
    """Without what Trackio prints: standard output is for the answers of commands."""
    with contextlib.redirect_stdout(io.StringIO()):
        return call()
