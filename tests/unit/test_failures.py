import pytest
from ray import exceptions
from ray.exceptions import RayTaskError

from sweeps.execution.failures import PROCESS_DIED, cause_of, reason_of_failure


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RayTaskError("f", "Traceback", KeyError("x")).as_instanceof_cause(), ("KeyError", "'x'")),
        (RayTaskError("f", "Traceback", ValueError("\n k=3 is wrong\nmore")), ("ValueError", "k=3 is wrong")),
        (RayTaskError("f", "Traceback", exceptions.ActorDiedError()), ("ProcessDied", PROCESS_DIED)),
        (exceptions.ActorDiedError(), ("ProcessDied", PROCESS_DIED)),
        (exceptions.WorkerCrashedError(), ("ProcessDied", PROCESS_DIED)),
        (
            exceptions.OutOfMemoryError("story"),
            ("ProcessDied", "its process was ended by Ray because the machine's memory was nearly full"),
        ),
        (exceptions.NodeDiedError("story"), ("ProcessDied", "its node died")),
        (RuntimeError(""), ("RuntimeError", "no message")),
    ],
)
def test_a_failure_is_told_by_its_cause(error, told):
    assert reason_of_failure(error) == told


def test_an_exception_that_could_not_be_sent_is_the_last_line_of_its_traceback():
    error = RayTaskError("f", "Traceback (most recent call last):\n  File ...\nodd.Error: 7 is odd", None)
    assert cause_of(error) is error
    assert reason_of_failure(error) == ("RemoteError", "odd.Error: 7 is odd")
