"""Stop orders: what a launch is asked to do while it runs. A file beside its results, so that any process of any node may ask. Standard
library only.

The launch begins with no orders. Trials and the launch look about once a second. Whoever is to stop writes a checkpoint first.
"""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from sae_core.errors import DamagedFileError
from sae_core.files import read_json, write_json
from sae_core.watchdog import beat

LOOK_SECONDS = 1.0
"""Time between two looks at the file."""


@dataclass(frozen=True, slots=True)
class Orders:
    """What is asked of a sweep."""

    sweep: Literal["go", "pause", "stop"] = "go"
    runs: Mapping[str, Literal["stop"]] = field(default_factory=dict)
    """Run id -> stop: this run stops, the others go on."""

    def stop(self, run_id: str) -> bool:
        """Whether this run is to stop."""
        return self.sweep == "stop" or run_id in self.runs

    def write(self, path: Path) -> None:
        """Write as JSON, atomically."""
        write_json(path, asdict(self))

    @classmethod
    def read(cls, path: Path) -> "Orders":
        """The orders in a file; none where there is no file, or it is damaged: nothing is stopped by accident."""
        try:
            content: dict[str, Any] = read_json(path)
        except (OSError, DamagedFileError):
            return cls()
        sweep, runs = content.get("sweep"), content.get("runs")
        stopped: dict[str, Literal["stop"]] = dict.fromkeys(runs, "stop") if isinstance(runs, dict) else {}
        return cls(sweep if sweep in ("pause", "stop") else "go", stopped)


class StoppedError(RuntimeError):
    """A launch was ordered to stop."""


class OrdersFile:
    """The orders of a launch, as a loop asks for them at every step.

    Args:
        path: of the file; None: there are no orders.
    """

    def __init__(self, path: str | Path | None) -> None:
        self.path = Path(path) if path else None
        self._orders, self._looked = Orders(), -LOOK_SECONDS

    def now(self) -> Orders:
        """The orders, at most a second old. The file is read each time: a network file system may answer `stat` from a cache."""
        if self.path and time.monotonic() - self._looked >= LOOK_SECONDS:
            self._orders, self._looked = Orders.read(self.path), time.monotonic()
        return self._orders

    def wait(self) -> Orders:
        """The orders, once they are not to pause."""
        while (orders := self.now()).sweep == "pause":
            beat()
            time.sleep(LOOK_SECONDS)
        return orders

    def go_on(self) -> None:
        """Return once they are to go on.

        Raises:
            StoppedError: they are to stop.
        """
        if self.wait().sweep == "stop":
            raise StoppedError


NO_ORDERS = OrdersFile(None)
"""Those of a launch that nobody can ask for anything."""
