import pytest
from ray import exceptions
from ray.exceptions import RayTaskError

from sweeps.execution.failures import cause_of, reason_of_death, reason_of_failure

DIED = "its process was killed or crashed (out of memory?)"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RayTaskError("f", "Traceback", KeyError("x")).as_instanceof_cause(), ("KeyError", "'x'")),
        (RayTaskError("f", "Traceback", ValueError("\n k=3 is wrong\nmore")), ("ValueError", "k=3 is wrong")),
        (RayTaskError("f", "Traceback", exceptions.ActorDiedError()), ("ProcessDied", DIED)),
        (exceptions.ActorDiedError(), ("ProcessDied", DIED)),
        (exceptions.WorkerCrashedError(), ("ProcessDied", DIED)),
        (
            exceptions.OutOfMemoryError("story"),
            ("OutOfMemoryError", "its process was ended by Ray because the machine's memory was nearly full"),
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


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("The actor died unexpectedly before finishing this task.", "ProcessDied"),
        ("", "ProcessDied"),
        ("1 worker(s) were killed due to the node running low on memory.", "OutOfMemoryError"),
        ("The actor died because its node has died. Node Id: 12", "ProcessDied"),
        ("The actor died because of an error raised in its creation task, ray::f()\nImportError: no odd", "RemoteError"),
    ],
)
def test_a_death_is_told_by_what_ray_says(message, kind):
    told = reason_of_death(message)
    assert told[0] == kind
    assert ("node" in message and "has died" in message) == (told[1] == "its node died")
    assert (kind == "RemoteError") == (told[1] == "ImportError: no odd")
