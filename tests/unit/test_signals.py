import os
import signal
import sys
import threading
import time
import types
from contextlib import suppress

import pytest

from sweeps.execution import signals


@pytest.fixture(autouse=True)
def handlers():
    """As a program has them at its start; back again afterwards."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_interrupt_as_ctrl_c_does(number):
    with signals.handled(), pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), number)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interrupt_that_a_library_swallowed_is_raised_again():
    with pytest.raises(KeyboardInterrupt), signals.handled():
        with suppress(BaseException):
            os.kill(os.getpid(), signal.SIGTERM)
        signals.check()
    with signals.handled():
        signals.check()  # the next launch starts anew
        with suppress(BaseException):
            os.kill(os.getpid(), signal.SIGTERM)
        assert signals.was_interrupted()
        assert not signals.was_interrupted()


class _Interrupted:
    """Python ignores what is raised while it is deleted."""

    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.001)  # the handler runs here at the latest


def test_an_interrupt_where_python_ignores_it_is_raised_after_it(capsys):
    with signals.handled(), pytest.raises(KeyboardInterrupt):
        thing = _Interrupted()
        del thing
        time.sleep(30)
    assert capsys.readouterr().err == ""
    time.sleep(0.1)  # no signal comes late, when nobody handles it


def test_what_else_python_ignores_is_told_as_before(monkeypatch):
    told = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: told.append(unraisable.exc_type))
    before = sys.unraisablehook
    failing = type("Failing", (), {"__del__": lambda self: 1 / 0})
    with signals.handled():
        failing()
    assert told == [ZeroDivisionError]
    assert sys.unraisablehook is before


def test_a_signal_that_is_ignored_stays_ignored():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with signals.handled():
        os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_other_threads_have_no_handlers_to_set():
    failures = []

    def set_handlers():
        try:
            with signals.handled():
                signals.regain()
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=set_handlers)
    thread.start()
    thread.join()
    assert failures == []


def test_the_first_interrupt_is_held_and_the_second_is_not():
    with signals.handled(), pytest.raises(KeyboardInterrupt), signals.held() as held:
        assert not held.interrupted
        os.kill(os.getpid(), signal.SIGTERM)
        assert held.interrupted
        os.kill(os.getpid(), signal.SIGTERM)


def test_an_interrupt_before_counts_as_the_first():
    with signals.handled(), pytest.raises(KeyboardInterrupt), signals.held(interrupted=True):
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture
def fake_ray(monkeypatch):
    """Ray, of which only `init` is there; to be replaced."""
    module = types.ModuleType("ray")
    monkeypatch.setitem(sys.modules, "ray", module)
    return module


def test_a_signal_while_ray_connects_interrupts_afterwards(fake_ray):
    calls = []

    def init(**options):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.2)
        calls.append((options["address"], threading.current_thread() is threading.main_thread()))

    fake_ray.init = init
    with signals.handled(), pytest.raises(KeyboardInterrupt):
        signals.connect("127.0.0.1:9")
    assert calls == [("127.0.0.1:9", False)]


def test_what_ray_raises_while_it_connects_is_raised(fake_ray):
    def init(**_):
        raise ConnectionError("nothing at port 9")

    fake_ray.init = init
    with signals.handled(), pytest.raises(ConnectionError, match="nothing at port 9"):
        signals.connect("127.0.0.1:9")


def test_handlers_are_taken_back():
    with signals.handled():
        ours = signal.getsignal(signal.SIGTERM)
        signal.signal(signal.SIGUSR1, lambda *_: None)
        signals.regain()
        assert signal.getsignal(signal.SIGUSR1) is ours


def test_another_thread_interrupts_the_main_one():
    event = threading.Event()
    with signals.handled(), pytest.raises(KeyboardInterrupt):
        threading.Timer(0.1, signals.interrupt).start()
        event.wait(30)
