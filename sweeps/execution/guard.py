"""A program that runs Ray on this machine and ends with the launch that started it.

    python guard.py DIRECTORY RESULTS SECONDS COMMAND...

COMMAND runs with its output in DIRECTORY/log; when it ends, the reason in that log is printed. Standard input ends when the launch closes
it or dies, in whatever way: then every process that writes below DIRECTORY is killed, and DIRECTORY is removed, as are temporary files
below RESULTS, unless that is empty. A process of these that is stopped for SECONDS, unless they are 0, is killed, and a file below RESULTS
says so: part of Ray, or a worker that has not come so far as to have a watchdog. Only the standard library, so that it starts in
milliseconds.
"""

import os
import select
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_LEFTOVERS = Path(__file__).resolve().parents[1] / "storage" / "leftovers.py"
END_SECONDS = 10.0
"""Most time that processes are given to end after they were killed."""
LOOK_SECONDS = 2.0
"""Time between two looks for stopped processes."""


def main(directory: Path, results: str, stall_seconds: float, command: list[str]) -> None:
    """Run `command` until it or standard input ends."""
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
    threading.Thread(target=_print_end, args=(process, directory / "log"), daemon=True).start()
    since: dict[int, float] = {}
    while not select.select([sys.stdin], [], [], LOOK_SECONDS)[0]:
        since = {pid: since.get(pid, time.monotonic()) for pid in stopped(directory)}
        for pid, began in since.items():
            if stall_seconds and time.monotonic() - began > stall_seconds + LOOK_SECONDS:  # a watchdog comes first
                _end_stopped(pid, stall_seconds, results)
    if sys.platform != "linux":  # `writers` needs /proc
        process.terminate()
        process.wait()
    remove(directory)
    if results:
        subprocess.run([sys.executable, "-I", str(_LEFTOVERS), results], check=False)


def _print_end(process: subprocess.Popen[bytes], log: Path) -> None:
    code = process.wait()
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    dead = [line for line in lines if "[exit code=" in line]  # `ray start --block` lists the processes that died
    os.write(1, (dead or lines or [f"exit code {code}"])[-1].rpartition(" -- ")[2].strip().encode())
    os.close(1)


def _end_stopped(pid: int, seconds: float, results: str) -> None:
    with suppress(OSError):
        if results:
            hangs = Path(results) / ".hangs.tmp"  # as in `sae_core.layout`
            hangs.mkdir(exist_ok=True)
            (hangs / str(pid)).write_text(f"a process was stopped for {seconds:g} s and was ended")
        os.kill(pid, signal.SIGKILL)


def remove(directory: Path) -> None:
    """Kill the processes that write below a directory, and remove it."""
    give_up = time.monotonic() + END_SECONDS
    while (pids := list(writers(directory))) and time.monotonic() < give_up:
        for pid in pids:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
    shutil.rmtree(directory, ignore_errors=True)


def writers(directory: Path) -> Iterator[int]:
    """Other processes of this user that have a file below `directory` open for writing. All of Ray's have: their logs. On Linux only."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended, or is another user's
            for entry in (process / "fd").iterdir():
                # The permissions of the link are those with which the file was opened.
                if entry.lstat().st_mode & stat.S_IWUSR and entry.readlink().is_relative_to(directory):
                    if int(process.name) not in (os.getpid(), os.getppid()):
                        yield int(process.name)
                    break


def stopped(directory: Path) -> set[int]:
    """Those of `writers` that a signal has stopped."""
    pids = set()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (process / "stat").read_text().rpartition(")")[2].split()[0] == "T":
                pids.add(int(process.name))
    return pids & {*writers(directory)} if pids else pids


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]), sys.argv[4:])
