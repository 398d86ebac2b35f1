"""Signals that end a program: SIGTERM and SIGUSR1, which schedulers send, and SIGHUP, of a closing terminal, do what Ctrl-C does."""

import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(slots=True)
class Held:
    """Whether an interrupt came while it was held back."""

    interrupted: bool
    then: Callable[[], None] | None
    """Called when a signal comes; what interrupts from another thread is then not held back."""


END_SECONDS = 9.0
"""Time in which a launch ends after a signal: a scheduler kills it some time later."""
_began_at: float | None = None
"""When the first signal came; None where there was none."""
_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
_holders: list[Held] = []
"""Whom the next interrupt is kept for, the last one; with none, it is raised."""
_raised = threading.Event()
"""Set while an interrupt was raised and nobody has dealt with it: libraries swallow some, above all while they are imported."""

_from_thread = threading.Event()
"""Set while `interrupt` was called and its interrupt has not been raised."""
_AGAIN_SECONDS = 0.01
"""Time after which an interrupt is raised again that came where Python ignores every exception: long enough to leave that place."""
_ignoring_before = sys.unraisablehook
"""What Python called about exceptions that it ignores, before `handle`."""


def handle() -> None:
    """Let SIGTERM, SIGHUP and SIGUSR1 raise KeyboardInterrupt, as Ctrl-C does. In the main thread only; elsewhere it does nothing.

    A signal that is ignored stays ignored: so that `nohup` works. An interrupt in a place where Python ignores exceptions (a `__del__`, a
    callback of the garbage collector) is raised again after it.
    """
    global _ignoring_before
    if threading.current_thread() is not threading.main_thread():
        return
    if sys.unraisablehook is not _ignored:
        _ignoring_before, sys.unraisablehook = sys.unraisablehook, _ignored
    for number in _ENDING:
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, _interrupt)


@contextmanager
def handled() -> Iterator[None]:
    """`handle` for some time. An interrupt that was swallowed before is raised."""
    global _began_at
    before = {number: signal.getsignal(number) for number in _ENDING}
    ignoring = sys.unraisablehook
    handle()
    try:
        check()
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            _raised.clear()
            _began_at = None
            sys.unraisablehook = ignoring
            for number, handler in before.items():
                signal.signal(number, handler)


def connect(address: str, **options: Any) -> None:
    """`ray.init`, to its end: Ray aborts a process that it is half connected to. An interrupt is raised after it, a second one at once.

    On a thread of its own, since on the main one Ray replaces the handler of SIGTERM.
    """
    connected = Future[Any]()

    def start() -> None:
        import ray

        logging.getLogger("ray").setLevel(logging.ERROR)  # that it has not replaced the handler
        try:
            connected.set_result(ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options))
        except BaseException as error:
            connected.set_exception(error)

    with held() as late:
        threading.Thread(target=start, daemon=True).start()
        connected.result()
    regain()
    if late.interrupted:
        raise KeyboardInterrupt


def disconnect() -> None:
    """`ray.shutdown`, where Ray was imported at all."""
    if "ray" in sys.modules:
        sys.modules["ray"].shutdown()
        regain()


def regain() -> None:
    """Take signals back: SIGUSR1 from Ray Tune, whose handler ends trials without a checkpoint, SIGTERM from the C++ part of Ray 2.52."""
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is _interrupt:
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, _interrupt)


@contextmanager
def held(interrupted: bool = False, then: Callable[[], None] | None = None) -> Iterator[Held]:
    """Keep the first interrupt until the end of the block, which should take seconds; the second one is raised at once.

    Args:
        interrupted: whether the first one came before the block.
        then: see `Held`.
    """
    holder = Held(interrupted, then)
    _holders.append(holder)
    try:
        yield holder
    finally:
        _holders.remove(holder)


def check() -> None:
    """Raise an interrupt again that a library swallowed."""
    if _raised.is_set():
        raise KeyboardInterrupt


def seconds_left() -> float:
    """Of the time in which a launch is to end after a signal; a second at least. All of it after an order to stop."""
    now = time.monotonic()
    return max(1.0, (now if _began_at is None else _began_at) + END_SECONDS - now)


def was_interrupted() -> bool:
    """Whether an interrupt was raised since the last call: whoever ends because of it asks, so that the next one counts anew."""
    raised = _raised.is_set()
    _raised.clear()
    return raised


def interrupt() -> None:
    """Interrupt the main thread from another one, if one of the handlers is ours."""
    if ours := _ours():
        _from_thread.set()
        signal.pthread_kill(threading.main_thread().ident or 0, ours[0])


def _ours() -> list[signal.Signals]:
    return [number for number in _ENDING if signal.getsignal(number) is _interrupt]


def _ignored(unraisable: Any) -> None:
    """Send a signal again whose interrupt was just ignored; leave the rest to whom it was left before."""
    if not (unraisable.exc_type is KeyboardInterrupt and _raised.is_set()):
        _ignoring_before(unraisable)
    elif ours := _ours():
        threading.Timer(_AGAIN_SECONDS, signal.pthread_kill, (threading.main_thread().ident or 0, ours[0])).start()


def _interrupt(*_: Any) -> None:
    global _began_at
    if not _raised.is_set() and not any(holder.interrupted for holder in _holders):
        _began_at = time.monotonic()
    is_signal = not _from_thread.is_set()
    _from_thread.clear()
    if _holders and not _holders[-1].interrupted:
        holder = _holders[-1]
        holder.interrupted = True
        if holder.then is None:
            return
        if is_signal:
            holder.then()
            return
    _raised.set()
    raise KeyboardInterrupt
