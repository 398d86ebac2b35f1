"""Whether this process lives and makes progress, and a small program that ends it when it does not: what hangs can do nothing about it
itself.

    python watchdog.py PROCESS SECONDS FILE

A thread says that the process lives: one that was stopped, or waits for Python's lock, does not. Where steps are `expected`, whoever loops
over batches calls `beat`, too. When either is missing for SECONDS, the program writes to FILE why, and kills PROCESS; it ends with its
standard input. Standard library only, so that it starts in milliseconds and stays small.
"""

import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

BEAT_SECONDS = 0.5
"""Least time between two signs of life: a step takes less."""
_LIVES, _STEP, _EXPECTED, _NOT_EXPECTED = b".", b"s", b"(", b")"

_watching: list[int] = []
"""Where signs of life are written to; empty while nobody watches."""
_last = 0.0
_is_expected = False


def beat() -> None:
    """Say that this process makes progress."""
    global _last  # a process makes progress, or none
    if _watching and time.monotonic() - _last >= BEAT_SECONDS:
        _last = time.monotonic()
        _say(_STEP)


@contextmanager
def expected(is_expected: bool = True) -> Iterator[None]:
    """Expect steps within the block, or, within such a block, expect none: loading a model takes as long as it takes."""
    global _is_expected
    before, _is_expected = _is_expected, is_expected
    _say(_EXPECTED if is_expected else _NOT_EXPECTED)
    try:
        yield
    finally:
        _is_expected = before
        _say(_EXPECTED if before else _NOT_EXPECTED)


@contextmanager
def watched(seconds: float, file: Path) -> Iterator[None]:
    """End this process when it is stopped within the block, or makes no step where steps are `expected`.

    Args:
        seconds: most time between two signs of life, and between two steps; 0: any.
        file: says why, once it was ended.
    """
    if not seconds:
        yield
        return
    command = [sys.executable, "-I", __file__, str(os.getpid()), f"{seconds:g}", str(file)]
    program = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True, cwd="/"
    )
    assert program.stdin is not None
    os.set_blocking(program.stdin.fileno(), False)
    _watching.append(program.stdin.fileno())
    ended = threading.Event()
    thread = threading.Thread(target=_live, args=(ended,), name="watchdog", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        _watching.pop()
        program.stdin.close()
        program.wait()


def _live(ended: threading.Event) -> None:
    while not ended.wait(BEAT_SECONDS):
        _say(_LIVES)


def _say(sign: bytes) -> None:
    if _watching:
        with suppress(OSError):  # it was killed, or has not read for very long
            os.write(_watching[-1], sign)


def main(process: int, seconds: float, file: Path) -> None:
    """Wait for signs of life until there are none, or standard input ends."""
    lived = stepped = time.monotonic()
    is_expected = False
    while (left := (min(lived, stepped) if is_expected else lived) + seconds - time.monotonic()) > 0:
        if not select.select([sys.stdin], [], [], left)[0]:
            continue
        signs = os.read(sys.stdin.fileno(), 4096)
        if not signs:
            return
        lived = time.monotonic()
        if signs.strip(_LIVES):
            stepped = lived
        if changes := signs.translate(None, _LIVES + _STEP):
            is_expected = changes.endswith(_EXPECTED)
    if os.getppid() != process:
        return  # it has ended, and something that it started holds our standard input
    missing = "made no step" if time.monotonic() - lived < seconds / 2 else "was stopped, or held Python's lock,"
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"a process {missing} for {seconds:g} s and was ended")
    os.kill(process, signal.SIGKILL)


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), Path(sys.argv[3]))
