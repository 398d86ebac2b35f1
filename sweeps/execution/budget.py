"""What a launch may take at most: it is then ordered to stop, as by `sae-sweep stop`, and the same command resumes."""

import threading
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from sae_core.orders import Orders


class Budget:
    """A context that stops a launch in time.

    Args:
        orders: file of the launch's orders.
        hours: since the context was entered; None: any number.
        tokens: training tokens of this launch, of all runs together; None: any number.
    """

    def __init__(self, orders: Path, hours: float | None = None, tokens: int | None = None) -> None:
        self.orders, self.hours, self.tokens = orders, hours, tokens
        self.reason = ""
        """What is reached; empty if nothing is."""
        self.stopped = ""
        """Why the launch was stopped, by a budget or another order; empty if it was not."""
        self._timer: threading.Timer | None = None

    def __enter__(self) -> Self:
        if self.hours is not None:
            self._timer = threading.Timer(min(3600 * self.hours, threading.TIMEOUT_MAX), self._stop, [f"`--max-hours {self.hours:g}`"])
            self._timer.daemon = True
            self._timer.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._timer:
            self._timer.cancel()

    def spend(self, tokens: float) -> None:
        """Note how many tokens were trained on in this launch."""
        if self.tokens is not None and tokens > self.tokens and not self.reason:
            self._stop(f"`--max-tokens {self.tokens}`")

    def _stop(self, option: str) -> None:
        with suppress(OSError):
            replace(Orders.read(self.orders), sweep="stop").write(self.orders)
        self.reason = f"{option} is reached"
