"""Ray on this machine for the time of a launch: reached from this machine only, with a token, in a directory of its own, and watched.

It is started by `ray start` under `guard.py`, and a launch connects to it as to any cluster. Its directory is readable by its owner only,
and locked by the launch, so that later launches know which directories are left over.
"""

import fcntl
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from sae_core import provenance
from sae_core.errors import ConfigError, border
from sweeps.execution import guard, signals
from sweeps.execution.failures import Death

LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""With "0", Ray is reached through 127.0.0.1 only, as on macOS and Windows. Read when Ray is imported."""
PREFIX = "sae-ray-"
LONGEST_BASE = 20
"""Most bytes of the path in which the directory is made: names of sockets, to which 87 bytes are added, may have 107."""
UNLOCKED_SECONDS = 60.0
"""Age from which an unlocked directory is left over: a new one is unlocked for a moment."""
START_SECONDS = 60.0
"""Most time that Ray is given to say that it runs."""


class LocalRay:
    """Ray on this machine, started by `start` and gone after `stop`, or soon after this process died.

    Args:
        environment: of Ray's processes, beside this process's own.
        results: directory below which no temporary files are left, however this process ends; empty: none.
        stall_seconds: most time that one of its processes may be stopped; it is ended then. 0: any.

    Attributes:
        death: why Ray ended before `stop`, as a message; empty as long as it runs.
    """

    def __init__(self, environment: Mapping[str, str], results: str = "", stall_seconds: float = 0.0) -> None:
        self._environment, self._results, self._stall_seconds = environment, results, stall_seconds
        self._guard: subprocess.Popen[str] | None = None
        self._death = Death()

    @property
    def death(self) -> str:
        return self._death.reason

    def start(self) -> None:
        """Start Ray and connect to it.

        Raises:
            ConfigError: it does not start.
        """
        if "ray" in sys.modules and os.environ.get(LOOPBACK) != "0":
            raise ConfigError(
                "Ray must be imported after `launch` has started it, but it is already imported. Import it later, or call `ray.init` first."
            )
        os.environ[LOOPBACK] = "0"
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        settings = ", ".join(sorted(name for name in os.environ if name.startswith("RAY_")))
        with border("Ray must start on this machine, but it did not", f"Free memory or processes, or correct one of {settings}."):
            port = self._start_guard()
            try:
                self._wait()
                signals.connect(f"127.0.0.1:{port}")
            except (Exception, KeyboardInterrupt):
                if self.death:
                    raise RuntimeError(self.death) from None
                raise

    def stop(self) -> None:
        """Stop Ray and remove its directory."""
        self._death.launch_ends.set()
        try:
            signals.disconnect()
        finally:
            if self._guard is not None and self._guard.stdin is not None:
                self._guard.stdin.close()
                with suppress(subprocess.TimeoutExpired):
                    self._guard.wait(guard.END_SECONDS)
                os.close(self._lock)
            self._death.launch_ended.set()

    def _start_guard(self) -> int:
        """Returns the port of the Ray that it starts."""
        with signals.held() as late:  # until there is a process that removes the directory
            directory = self._directory = _new_directory()
            (directory / "log").touch()
            self._lock = os.open(directory, os.O_RDONLY)
            with suppress(OSError):  # a file system without locks
                fcntl.flock(self._lock, fcntl.LOCK_EX)
            with socket.create_server(("127.0.0.1", 0)) as server:
                port = int(server.getsockname()[1])
            resources = [f"--num-cpus={provenance.n_cores()}", f"--num-gpus={provenance.n_gpus()}", "--include-dashboard=false"]
            ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--port={port}", "--disable-usage-stats"]
            watching = [sys.executable, "-I", guard.__file__, str(directory), self._results, f"{self._stall_seconds:g}"]
            self._guard = subprocess.Popen(
                [*watching, *ray, *resources, f"--temp-dir={directory / 'ray'}"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                start_new_session=True,  # Ctrl-C and a closing terminal do not reach it
                env={**os.environ, **self._environment},
                cwd="/",
            )
            threading.Thread(target=self._watch, args=(self._guard,), daemon=True).start()
        if late.interrupted:
            raise KeyboardInterrupt
        return port

    def _wait(self) -> None:
        """Wait until Ray runs. It is connected to without that after a while, which prints warnings until it does."""
        give_up = time.monotonic() + START_SECONDS
        while b"Ray runtime started" not in (self._directory / "log").read_bytes() and time.monotonic() < give_up:
            if self.death:
                raise RuntimeError(self.death)
            time.sleep(0.05)

    def _watch(self, guarding: "subprocess.Popen[str]") -> None:
        """Interrupt the launch when Ray ends: Ray itself would wait without end."""
        assert guarding.stdout is not None
        with guarding.stdout as output:
            reason = output.read()
        self._death.happened(f"it ended ({reason or 'killed'})")


def _new_directory() -> Path:
    """A directory for Ray, in one for temporary files; those that killed launches left there are removed, with what runs in them."""
    with border("a directory for temporary files must be writable", "Free some space in it, or set `TMPDIR` to a short path."):
        error = OSError(f"none has a path of at most {LONGEST_BASE} bytes")
        for base in dict.fromkeys([tempfile.gettempdir(), "/tmp", "/var/tmp", "/dev/shm"]):
            if len(os.fsencode(base)) <= LONGEST_BASE:
                for left in Path(base).glob(f"{PREFIX}*"):
                    with suppress(OSError):
                        if left.stat().st_uid == os.getuid() and _is_left_over(left):
                            guard.remove(left)
                try:
                    return Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))
                except OSError as problem:
                    error = problem
        raise error


def _is_left_over(directory: Path) -> bool:
    lock = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(lock)
    return time.time() - directory.stat().st_mtime > UNLOCKED_SECONDS
