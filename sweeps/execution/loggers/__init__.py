"""Loggers mirror runs elsewhere while a sweep runs. A definition names them under `loggers`; `wandb:` is short for one of them.

They are called in the driver and read histories and records on disk, so trials neither import them nor wait for them.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

from sae_core.config.run import RunConfig
from sae_core.errors import border, reason_of
from sae_core.records import RunRecord
from sae_core.registry import Registry
from sweeps.definition.sweep import Sweep
from sweeps.storage.store import Store

log = logging.getLogger(__name__)


class Logger(ABC):
    """Mirrors the runs of one launch.

    Args:
        options: what the definition says under the logger's name.

    Raises:
        ConfigError: it cannot work with these options, or without a library.
    """

    def __init__(self, options: Mapping[str, Any], sweep_name: str, store: Store) -> None:
        self.options, self.sweep_name, self.store = options, sweep_name, store

    @abstractmethod
    def update(self, run: RunConfig) -> None:
        """A run has trained for a while: `store.read_history(run.run_id)` may have new rows."""

    @abstractmethod
    def finish(self, run: RunConfig, record: RunRecord) -> None:
        """A run has its record."""

    @abstractmethod
    def close(self) -> None:
        """End what an interruption left open. A later launch logs these runs again."""


LOGGERS: Registry[type[Logger]] = Registry("logger", "sweeps.execution.loggers")


class Loggers:
    """The loggers of a launch. One that fails is left out from then on, with a warning: the sweep does not depend on a server."""

    def __init__(self, sweep: Sweep, store: Store) -> None:
        """
        Raises:
            ConfigError: a logger does not exist, or cannot work.
        """
        asked: dict[str, Mapping[str, Any]] = dict(sweep.loggers)
        if sweep.wandb and sweep.wandb.mode != "disabled":
            asked["wandb"] = sweep.wandb.model_dump()
        self._working: dict[str, Logger] = {}
        for name, options in asked.items():
            with border(f"a logger must work with the options of the definition, but got {name!r}", f"Correct `{name}`, or leave it out."):
                self._working[name] = LOGGERS[name](options, sweep.name, store)

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
