"""What ends a launch or a trial that nothing is wrong with: the reason, without Ray's wrapping."""

from typing import Any

PROCESS_DIED = "its process was killed or crashed (out of memory?)"


class LaunchError(RuntimeError):
    """The launch cannot go on, for a reason that lies outside of what was asked for. The command line prints it and exits with 1."""


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
    died: dict[Any, str] = {
        exceptions.OutOfMemoryError: "its process was ended by Ray because the machine's memory was nearly full",
        exceptions.NodeDiedError: "its node died",
        exceptions.ActorDiedError: PROCESS_DIED,
        exceptions.ActorUnavailableError: PROCESS_DIED,
        exceptions.WorkerCrashedError: PROCESS_DIED,
    }
    for kind, message in died.items():
        if isinstance(cause, kind):
            return "ProcessDied", message
    if isinstance(cause, exceptions.RayTaskError):  # an exception that could not be sent: its traceback ends with it
        return "RemoteError", lines[-1]
    return type(cause).__name__, lines[0]
