"""Whether this process makes progress, and a small program that ends it when it makes none: what hangs can do nothing about it itself.

    python watchdog.py PROCESS SECONDS FILE

Whoever loops over batches calls `beat`, which writes to the program's standard input. When nothing comes for SECONDS, it writes to FILE
why, and kills PROCESS; it ends with its standard input. Standard library only, so that it starts in milliseconds and stays small.
"""

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

BEAT_SECONDS = 0.5
"""Least time between two signs of life: a step takes less."""

_watching: list[int] = []
"""Where signs of life are written to; empty while nobody watches."""
_last = 0.0


def beat() -> None:
    """Say that this process makes progress."""
    global _last  # a process makes progress, or none
    if _watching and time.monotonic() - _last >= BEAT_SECONDS:
        _last = time.monotonic()
        with suppress(OSError):  # it was killed, or has not read for very long
            os.write(_watching[-1], b".")


@contextmanager
def watched(seconds: float, file: Path) -> Iterator[None]:
    """End this process when `beat` is not called for some time within the block.

    Args:
        seconds: most time between two calls; 0: any.
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
    try:
        yield
    finally:
        _watching.pop()
        program.stdin.close()
        program.wait()


def main(process: int, seconds: float, file: Path) -> None:
    """Wait for signs of life until there are none, or standard input ends."""
    while select.select([sys.stdin], [], [], seconds)[0]:
        if not os.read(sys.stdin.fileno(), 4096):
            return
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"a process made no step for {seconds:g} s and was ended")
    if os.getppid() == process:
        os.kill(process, signal.SIGKILL)


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), Path(sys.argv[3]))
