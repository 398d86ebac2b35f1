"""The directory of a local Ray, and the processes that write into it: found, and ended when the launch that started them is gone.

    <base>/sae-sweep-<random>/   readable by its owner only
        lock                     locked by the launch as long as it lives
        ray/                     Ray's sessions: sockets, logs

`Guard` starts this file as a program of its own. It waits for its standard input to end, which is when the launch closes it or dies, in
whatever way; then it ends what is left of Ray and removes the directory. Only the standard library, so that it starts in milliseconds and
takes little memory.
"""

import fcntl
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO

PREFIX = "sae-sweep-"
LONGEST_BASE = 20
"""Most bytes of the path in which the directory is made: names of sockets, to which 87 bytes are added, may have 107."""
LEAST_FREE_BYTES = 2**26
"""Free space that Ray's logs and sockets are given at least."""
END_SECONDS = 10.0
"""Most time that processes are given to end after they were killed."""
UNLOCKED_SECONDS = 3600.0
"""Age from which a directory without a lock is left over: one that is being made has none for a moment."""


def bases() -> list[Path]:
    """Directories for temporary files, the user's first, that exist, have short names and space."""
    named = [os.environ[name] for name in ("TMPDIR", "TEMP", "TMP") if os.environ.get(name)]
    return [Path(base) for base in dict.fromkeys([*named, "/tmp", "/var/tmp", "/dev/shm"]) if _is_usable(base)]


def _is_usable(base: str) -> bool:
    try:
        free = shutil.disk_usage(base).free
    except (OSError, ValueError):
        return False
    has_room = len(os.fsencode(base)) <= LONGEST_BASE and free >= LEAST_FREE_BYTES
    return has_room and Path(base).is_absolute() and os.access(base, os.W_OK | os.X_OK)


class Session:
    """A directory for a local Ray, locked by this process. `close`, or the death of this process, ends what is left of Ray and removes it.

    Raises:
        OSError: no directory for temporary files can be written to, or no process can be started.
    """

    def __init__(self) -> None:
        self.directory = _made()
        self.ray = self.directory / "ray"
        self._lock = _locked_file(self.directory)
        command = [sys.executable, "-I", __file__, str(self.directory), str(os.getpid())]
        # A session of its own: Ctrl-C and a closing terminal reach it not.
        self._guard = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True, cwd="/"
        )

    def close(self) -> None:
        """End what is left of Ray, and remove the directory."""
        assert self._guard.stdin is not None
        self._guard.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._guard.wait(END_SECONDS)
        self._lock.close()


def _made() -> Path:
    error: OSError = FileNotFoundError("no directory for temporary files has a short path and 64 MiB of free space")
    for base in bases():
        try:
            return Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))
        except OSError as problem:
            error = problem
    raise error


def _locked_file(directory: Path) -> IO[bytes]:
    """The locked file of a session. It gets its name once it is locked, so that nobody takes the session for one that is left over."""
    file = (directory / "new").open("wb")
    with suppress(OSError):  # a file system without locks; then nobody else can lock it either
        fcntl.flock(file, fcntl.LOCK_EX)
    (directory / "new").rename(directory / "lock")
    return file


def remove_left_over() -> None:
    """End the processes of launches that died together with their guard, and remove their directories."""
    for base in bases():
        for directory in base.glob(f"{PREFIX}*"):
            with suppress(OSError):
                if directory.stat().st_uid == os.getuid() and _is_left_over(directory):
                    end(directory)


def _is_left_over(directory: Path) -> bool:
    try:
        file = (directory / "lock").open("rb")
    except FileNotFoundError:
        return time.time() - directory.stat().st_mtime > UNLOCKED_SECONDS
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True


def end(directory: Path, but: int = 0) -> None:
    """Kill the processes that write into a directory, and remove it.

    Args:
        but: the process to leave alone.
    """
    give_up = time.monotonic() + END_SECONDS
    while time.monotonic() < give_up and (pids := [pid for pid in writers(directory) if pid not in (but, os.getpid())]):
        for pid in pids:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
    shutil.rmtree(directory, ignore_errors=True)


def writers(directory: Path) -> Iterator[int]:
    """Processes of this user that have a file below `directory` open for writing. All of Ray's have: their logs. On Linux only."""
    inside = f"{directory}/"
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended, or is another user's
            for entry in (process / "fd").iterdir():
                # The permissions of the link are those with which the file was opened.
                if entry.lstat().st_mode & stat.S_IWUSR and str(entry.readlink()).startswith(inside):
                    yield int(process.name)
                    break


def children(parent: int, names: tuple[str, ...]) -> dict[str, int]:
    """Children of a process with these names, e.g. "raylet": name -> process id; also dead ones that nobody asked about. On Linux only."""
    found = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, ValueError):
            before, _, after = file.read_text(errors="replace").rpartition(")")
            pid, _, name = before.partition(" (")
            if name in names and int(after.split()[1]) == parent:
                found[name] = int(pid)
    return found


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that ended and that nobody asked about does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0] not in "ZX"
    except (OSError, IndexError):
        return False


if __name__ == "__main__":
    sys.stdin.buffer.read()  # ends when the launch has closed it or is gone
    end(Path(sys.argv[1]), but=int(sys.argv[2]))
