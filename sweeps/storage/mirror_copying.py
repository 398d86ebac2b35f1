"""A thread that copies results to a mirror as they appear. It neither slows nor fails the launch: what fails is told once and retried."""

import threading
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Self

from sae_core.errors import reason_of
from sweeps.storage.lease import LeaseLostError
from sweeps.storage.mirror import Copy, Mirror

PASS_SECONDS = 10.0
"""Time between two looks for what is new."""
CHECKPOINT_SECONDS = 600.0
"""Time between two copies of checkpoints, which are large: the most training that the loss of a machine can cost."""
LAST_SECONDS = 5.0
"""Time for the last pass after an exception."""
STALLED_SECONDS = 600.0
"""Time without a completed copy after which the last pass is given up otherwise."""
MOST_FAILURES = 3
"""Failures in a row after which a pass ends: nothing answers."""
FAILING_SECONDS = 15.0
"""Time without a completed copy after which the next failure ends a pass: backends retry for long."""


class Copying:
    """Copies results during a block, from `start` on.

    Args:
        mirror: None: there is none, and nothing is done.
        note: is told what fails.
    """

    def __init__(self, mirror: Mirror | None, note: Callable[[str], None]) -> None:
        self.mirror, self._note = mirror, note
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name="mirror", daemon=True)
        self._is_last = False
        self._copied_at = 0.0
        self._failed: dict[str, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is not None and self._thread.is_alive() and not issubclass(kind, LeaseLostError):
            self.finish(LAST_SECONDS)
        self._ended.set()

    def start(self) -> None:
        """Begin to copy."""
        if self.mirror is not None:
            self._thread.start()

    def finish(self, seconds: float | None = None) -> dict[str, str]:
        """Copy what is left. Returns what could not be copied, and why.

        Args:
            seconds: that may be taken at most; None: as long as copies are completed.
        """
        if self.mirror is None:
            return {}
        self._is_last = True
        self._ended.set()
        began = time.monotonic()
        while self._thread.is_alive():
            self._thread.join(0.1)
            since = max(began, self._copied_at) if seconds is None else began
            if time.monotonic() - since > (STALLED_SECONDS if seconds is None else seconds):
                break
        left = {job.name: self._failed.get(job.name, "not tried") for job in self.mirror.pending()}
        if left:
            self._note(f"mirror: {len(left)} files or runs could not be copied to {self.mirror.url}. The same command copies them")
        return left

    def _work(self) -> None:
        assert self.mirror is not None, "there is no mirror"
        checkpoints_at = time.monotonic()
        while not self._ended.wait(PASS_SECONDS):
            self._pass(self.mirror.pending())
            if time.monotonic() - checkpoints_at >= CHECKPOINT_SECONDS:
                self._pass(self.mirror.pending_checkpoints())
                checkpoints_at = time.monotonic()
        if self._is_last:
            self._pass(self.mirror.pending())

    def _pass(self, jobs: Iterable[Copy]) -> None:
        assert self.mirror is not None, "there is no mirror"
        failures, self._copied_at = 0, time.monotonic()
        for job in jobs:
            try:
                self.mirror.copy(job)
                failures, self._copied_at = 0, time.monotonic()
                self._failed.pop(job.name, None)
            except Exception as error:  # whatever a backend of fsspec raises
                failures += 1
                if not self._failed:
                    self._note(f"mirror: {job.name} could not be copied to {self.mirror.url}: {reason_of(error)}. It is tried again")
                self._failed[job.name] = reason_of(error)
            if failures == MOST_FAILURES or (failures and time.monotonic() - self._copied_at > FAILING_SECONDS):
                return
