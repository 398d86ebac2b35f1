"""Loggers mirror runs elsewhere while a sweep runs. A definition names them under `loggers`; `wandb:` is short for one of them.

They are called in the driver and read histories and records on disk, so trials neither import them nor wait for them.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from pydantic import ValidationError

from sae_core.config.base import Config
from sae_core.config.run import RunConfig
from sae_core.errors import ConfigError, border, reason_of
from sae_core.records import RunRecord
from sae_core.registry import Registry
from sweeps.definition.problems import Problems, collect
from sweeps.definition.sweep import Sweep
from sweeps.storage.store import Store

log = logging.getLogger(__name__)


class Logger(ABC):
    """Mirrors the runs of one launch.

    Args:
        options: what the definition says under the logger's name; where there are `Options`, all of them, with their defaults.

    Raises:
        ConfigError: it cannot work with these options, or without a library.
    """

    Options: ClassVar[type[Config] | None] = None
    """What the definition may say under the logger's name; None: anything."""

    def __init__(self, options: Mapping[str, Any], sweep_name: str, store: Store) -> None:
        self.options, self.sweep_name, self.store = options, sweep_name, store
        self._rows_seen: dict[str, int] = {}

    @abstractmethod
    def update(self, run: RunConfig) -> None:
        """A run has trained for a while: there may be `new_rows`."""

    @abstractmethod
    def finish(self, run: RunConfig, record: RunRecord) -> None:
        """A run has its record."""

    @abstractmethod
    def close(self) -> None:
        """End what an interruption left open. A later launch logs these runs again."""

    def new_rows(self, run: RunConfig) -> list[dict[str, float | None]]:
        """Rows of the run's history, `step` among their fields, since the last call."""
        rows = self.store.read_history(run.run_id)
        seen, self._rows_seen[run.run_id] = self._rows_seen.get(run.run_id, 0), len(rows)
        return rows[seen:]

    def saes(self, run: RunConfig) -> dict[str, Path]:
        """What to upload of a finished run: name -> directory of an SAE, as SAELens has them; with its snapshots, `<run id>@<name>`."""
        names = [run.run_id, *self.store.paths.variant_ids(run.run_id)]
        return {name: directory for name in names if (directory := self.store.paths.run(name).sae).exists()}


@contextmanager
def library(name: str) -> Iterator[None]:
    """Around the import of a library that the logger `name` needs.

    Raises:
        ConfigError: it is not installed.
    """
    with border(f"{name} must be installed where a definition has `{name}`, but it cannot be imported", f"Run `pip install {name}`."):
        yield


LOGGERS: Registry[type[Logger]] = Registry("logger", "sweeps.execution.loggers")


class Loggers:
    """The loggers of a launch. One that fails is left out from then on, with a warning: the sweep does not depend on a server."""

    def __init__(self, sweep: Sweep, store: Store) -> None:
        """
        Raises:
            ConfigError: loggers do not exist, or cannot work. With every problem, one per line.
        """
        asked: dict[str, Mapping[str, Any]] = dict(sweep.loggers)
        if sweep.wandb and sweep.wandb.mode != "disabled":
            asked["wandb"] = sweep.wandb.model_dump()
        self._working: dict[str, Logger] = {}
        problems = Problems()
        for name, options in asked.items():
            try:
                self._working[name] = _made(name, options, sweep.name, store)
            except ValidationError as error:
                options_of = LOGGERS[name].Options
                assert options_of is not None, f"{name=}"
                collect(error, problems, lambda path, name=name: ".".join(("loggers", name, *path)), options_of)
            except ConfigError as error:
                problems.add("loggers", str(error))
        problems.raise_any()

    def update(self, run: RunConfig) -> None:
        """Pass new rows of a run's history on."""
        self._each(lambda logger: logger.update(run))

    def finish(self, run: RunConfig, record: RunRecord) -> None:
        """Pass the record of a run on."""
        self._each(lambda logger: logger.finish(run, record))

    def close(self) -> None:
        """End all loggers."""
        self._each(lambda logger: logger.close())

    def _each(self, call: Callable[[Logger], None]) -> None:
        for name, logger in list(self._working.items()):
            try:
                call(logger)
            except Exception as error:  # whatever it is, it is not worth a sweep
                del self._working[name]
                log.warning("logger %s failed, the sweep continues without it: %s", name, reason_of(error))


def _made(name: str, options: Mapping[str, Any], sweep_name: str, store: Store) -> Logger:
    made = LOGGERS[name]
    if made.Options is not None:
        options = dict(made.Options.model_validate(dict(options)))
    with border(f"a logger must work with the options of the definition, but got {name!r}", f"Correct `{name}`, or leave it out."):
        return made(options, sweep_name, store)
