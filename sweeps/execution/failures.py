"""What ends a launch or a trial that nothing is wrong with: the reason, without Ray's wrapping."""

import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from sweeps.execution import signals

KEPT = "What is finished is kept; the same command resumes."
STUCK_SECONDS = 15.0
"""Most time that a launch is given to stop after Ray died. Then its process is ended."""
PROCESS_DIED = "ProcessDied"
"""Type of what ends a process that could not say why."""
_PROCESS_DIED = "its process was killed or crashed (out of memory?)"
_NODE_DIED = PROCESS_DIED, "its node died"
_NO_MEMORY = "OutOfMemoryError", "its process was ended by Ray because the machine's memory was nearly full"


class LaunchError(RuntimeError):
    """The launch cannot go on, for a reason that lies outside of what was asked for. The command line prints it and exits with 1."""


_last_acts: list[Callable[[], None]] = []


@contextmanager
def last_act(act: Callable[[], None]) -> Iterator[None]:
    """What to do, on another thread, before the process of a launch is ended that a dead Ray holds up."""
    _last_acts.append(act)
    try:
        yield
    finally:
        _last_acts.remove(act)


class Death:
    """Whether the Ray that a launch uses has died, and why. A thread that watches it calls `happened`.

    Attributes:
        reason: a message; empty as long as Ray runs.
        launch_ends: set when the launch begins to stop Ray: it is not watched any longer.
        launch_ended: set when Ray is stopped.
    """

    def __init__(self) -> None:
        self.reason = ""
        self.launch_ends, self.launch_ended = threading.Event(), threading.Event()

    def happened(self, reason: str) -> None:
        """Interrupt the launch, which Ray may let wait without end; end its process where that does not help."""
        if self.launch_ends.is_set():
            return
        self.reason = reason
        signals.interrupt()
        if not self.launch_ended.wait(STUCK_SECONDS):
            for act in _last_acts:
                with suppress(Exception):  # what ended the launch is told in any case
                    act()
            os.write(2, f"{launch_ended_by(reason)}\n".encode())
            os._exit(1)


def launch_ended_by(death: str) -> str:
    """Message for a launch whose Ray died."""
    return f"Ray must run until a launch ends, but {death}. {KEPT}"


def cause_of(error: BaseException) -> BaseException:
    """The exception that a remote call was ended by, as it was raised there; `error` itself where its process could not raise any."""
    from ray.exceptions import RayTaskError

    while isinstance(error, RayTaskError) and isinstance(error.cause, BaseException):
        error = error.cause
    return error


def reason_of_failure(error: BaseException) -> tuple[str, str]:
    """Type and message, in one line, of what ended a trial or a worker."""
    from ray import exceptions

    cause = cause_of(error)
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()] or ["no message"]
    if isinstance(cause, exceptions.OutOfMemoryError):
        return _NO_MEMORY
    if isinstance(cause, exceptions.NodeDiedError):
        return _NODE_DIED
    if isinstance(cause, exceptions.ActorDiedError | exceptions.ActorUnavailableError | exceptions.WorkerCrashedError):
        return reason_of_death(str(cause))
    if isinstance(cause, exceptions.RayTaskError):  # an exception that could not be sent: its traceback ends with it
        return "RemoteError", lines[-1]
    return type(cause).__name__, lines[0]


def reason_of_death(message: str) -> tuple[str, str]:
    """Type and message, in one line, of the death of a process about which Ray says this."""
    if "low on memory" in message:
        return _NO_MEMORY
    if re.search(r"node (has )?died", message):
        return _NODE_DIED
    if "creation task" in message:  # it could not even start: the message ends with why
        return "RemoteError", message.strip().splitlines()[-1].strip()
    return PROCESS_DIED, _PROCESS_DIED
