"""Signals that end a program: SIGTERM, which schedulers send, and SIGHUP, of a closing terminal, do what Ctrl-C does."""

import ctypes
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(slots=True)
class Held:
    """Whether an interrupt came while it was held back."""

    interrupted: bool = False


LOOK_SECONDS = 0.002
"""Between two looks whether the action of a signal is still ours."""
_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_holders: list[Held] = []
"""Whom the next interrupt is kept for, the last one; with none, it is raised."""
_raised = threading.Event()
"""Set while an interrupt was raised and nobody has dealt with it: libraries swallow some, above all while they are imported."""


def handle() -> None:
    """Let SIGTERM and SIGHUP raise KeyboardInterrupt, as Ctrl-C does. In the main thread only; elsewhere it does nothing.

    A signal that is ignored stays ignored: so that `nohup` works.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    for number in _ENDING:
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, _interrupt)


@contextmanager
def handled() -> Iterator[None]:
    """`handle` for some time. An interrupt that was swallowed before is raised."""
    before = {number: signal.getsignal(number) for number in _ENDING}
    handle()
    try:
        check()
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            _raised.clear()
            for number, handler in before.items():
                signal.signal(number, handler)


@contextmanager
def kept() -> Iterator[None]:
    """Code that sets handlers of its own, as Ray does when it starts and when it stops: ours stay."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    original, ours = signal.signal, signal.getsignal(signal.SIGTERM)

    def all_but_sigterm(number: int, handler: Any) -> Any:
        return ours if number == signal.SIGTERM else original(number, handler)

    done = threading.Event()
    watch = threading.Thread(target=_keep_action, args=(signal.SIGTERM, done), daemon=True)
    watch.start()
    setattr(signal, "signal", all_but_sigterm)  # noqa: B010  mypy refuses the assignment
    try:
        yield
    finally:
        setattr(signal, "signal", original)  # noqa: B010
        done.set()
        watch.join()
        signal.signal(signal.SIGTERM, ours)


def _keep_action(number: int, done: threading.Event) -> None:
    """Set the action of a signal again whenever something else has set another. Ray's C++ part sets the default one when it stops: a signal
    then would end the process. Python only sets actions in the main thread, its C interface in any."""
    get_action, set_action = ctypes.pythonapi.PyOS_getsig, ctypes.pythonapi.PyOS_setsig
    get_action.argtypes, get_action.restype = [ctypes.c_int], ctypes.c_void_p
    set_action.argtypes, set_action.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
    ours = get_action(number)
    while not done.wait(LOOK_SECONDS):
        if get_action(number) != ours:
            set_action(number, ours)


@contextmanager
def held(interrupted: bool = False) -> Iterator[Held]:
    """Keep the first interrupt until the end of the block, which should take seconds; the second one is raised at once.

    Args:
        interrupted: whether the first one came before the block.
    """
    holder = Held(interrupted)
    _holders.append(holder)
    try:
        yield holder
    finally:
        _holders.remove(holder)


def check() -> None:
    """Raise an interrupt again that a library swallowed."""
    if _raised.is_set():
        raise KeyboardInterrupt


def was_interrupted() -> bool:
    """Whether an interrupt was raised since the last call: whoever ends because of it asks, so that the next one counts anew."""
    raised = _raised.is_set()
    _raised.clear()
    return raised


def interrupt() -> None:
    """Interrupt the main thread from another one, if one of the handlers is ours."""
    ours = [number for number in _ENDING if signal.getsignal(number) is _interrupt]
    if ours:
        signal.pthread_kill(threading.main_thread().ident or 0, ours[0])


def _interrupt(*_: Any) -> None:
    if _holders and not _holders[-1].interrupted:
        _holders[-1].interrupted = True
        return
    _raised.set()
    raise KeyboardInterrupt
