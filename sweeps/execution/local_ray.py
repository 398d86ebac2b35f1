"""Ray on this machine for the time of a launch: reached from this machine only, with a token of its own, and watched."""

import os
import re
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from sae_core import provenance
from sae_core.errors import ConfigError, border
from sweeps.execution import ray_session, signals
from sweeps.execution.lean_ray import SELDOM, lean_start

PARTS = ("gcs_server", "raylet")
"""Ray's own processes without which nothing goes on; it waits for them without end."""
OURS = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AIR_NEW_OUTPUT", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO")
"""Settings of Ray that a launch makes itself."""
LOOK_SECONDS = 0.5
"""Between two looks whether they live."""
FIRST_SECONDS = 10.0
"""Most time until the first of them is seen: it is what Ray starts first."""
STUCK_SECONDS = 15.0
"""Most time that the launch is given to stop after one of them died. Then the process is ended."""


class LocalRay:
    """Ray on this machine, started by `start` and gone after `stop`, or soon after this process died.

    Attributes:
        death: what died that should not have, as a message; empty as long as all is well.
        directory: for temporary files of the launch; removed with Ray.
    """

    def __init__(self) -> None:
        self.death = ""
        ray_session.remove_left_over()
        remedy = f"Free some space in {_tried()}, or set `TMPDIR` to a short path."
        with border("a directory for temporary files must be writable", remedy), signals.held() as late:
            self._session = ray_session.Session()
        if late.interrupted:  # held back until there is a process that removes the directory
            self._session.close()
            raise KeyboardInterrupt
        self.directory: Path = self._session.directory
        self._lock = threading.Lock()
        self._stopping, self._stopped = threading.Event(), threading.Event()
        self._environment = {name: os.environ.get(name) for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "NUMBA_CACHE_DIR")}

    def start(self, **options: Any) -> None:
        """Start Ray.

        Raises:
            ConfigError: it does not start.
        """
        os.environ.pop("RAY_AUTH_MODE", None)  # then Ray sets it to "token" for the processes it starts
        os.environ["RAY_AUTH_TOKEN"] = _token()
        if not _compiled_code_is_kept():
            os.environ["NUMBA_CACHE_DIR"] = str(self.directory / "numba")
        with _starting():
            _check_settings()
            import ray

            threading.Thread(target=self._watch, daemon=True).start()
            try:
                with signals.kept(), lean_start():
                    # "local": not the cluster that RAY_ADDRESS may name.
                    ray.init(
                        address="local",
                        include_dashboard=False,
                        num_cpus=provenance.n_cores(),
                        num_gpus=provenance.n_gpus(),
                        _system_config=SELDOM,
                        _temp_dir=str(self._session.ray),
                        **options,
                    )
            except (Exception, KeyboardInterrupt):
                if self.death:
                    raise RuntimeError(self.death) from None
                raise

    def stop(self) -> None:
        """Stop Ray, end what is left of it, and remove its directory."""
        with self._lock:
            self._stopping.set()
        try:
            if "ray" in sys.modules:  # its settings can be read
                with signals.kept():
                    sys.modules["ray"].shutdown()
        finally:
            self._session.close()
            self._stopped.set()
            for name, value in self._environment.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value

    def _watch(self) -> None:
        """Interrupt the launch when one of Ray's processes died: Ray itself would wait for it."""
        parts: dict[str, int] = {}
        began = time.monotonic()
        while not self._stopping.wait(LOOK_SECONDS):
            if len(parts) < len(PARTS):
                parts |= ray_session.children(os.getpid(), PARTS)
            dead = [name for name, pid in parts.items() if not ray_session.is_alive(pid)]
            if not parts and sys.platform == "linux" and time.monotonic() - began > FIRST_SECONDS:
                dead = list(PARTS[:1])  # too quickly to be seen
            if dead:
                with self._lock:
                    if self._stopping.is_set():
                        return
                    self.death = f"its process {' and '.join(dead)} died (killed, or out of memory?)"
                    signals.interrupt()
                if not self._stopped.wait(STUCK_SECONDS):
                    os.write(2, f"{launch_ended_by(self.death)}\n".encode())
                    os._exit(1)
                return


def launch_ended_by(death: str) -> str:
    """What is said about a launch whose Ray died."""
    return f"Ray must run until a launch ends, but {death}. What is finished is kept; the same command continues from here."


@contextmanager
def _starting() -> Iterator[None]:
    """Whatever ends the start of Ray is told with the settings of Ray that are in the environment."""
    names = sorted(name for name in os.environ if name.startswith("RAY_") and name not in OURS)
    remedy = f"Unset what is wrong of {', '.join(names)}." if names else "Look whether memory, disk or processes are used up."
    with border("Ray must start on this machine, but it did not", remedy):
        yield


def _check_settings() -> None:
    """Ray ends the process where one of its numbers, named in lower case, cannot be read: so a process of its own tries them."""
    if "ray" in sys.modules or not any(re.match(r"RAY_[a-z]", name) for name in os.environ):
        return
    tried = subprocess.run([sys.executable, "-c", "import ray"], env=os.environ, capture_output=True, timeout=60, check=False)
    if tried.returncode:
        settings = ", ".join(f"{name}={value}" for name, value in sorted(os.environ.items()) if re.match(r"RAY_[a-z]", name))
        raise ConfigError(f"Ray must be able to read its settings, but got {settings}. Correct the environment.")


def _compiled_code_is_kept() -> bool:
    """Whether Numba can keep what it compiles: where it is told to, beside the code, or in the user's cache. Else each process would
    compile for itself."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))  # noqa: PTH111  it does not raise without a home
    existing = next(path for path in (cache, *cache.absolute().parents) if path.exists())
    code = Path(provenance.__file__).parent / "sparse" / "kernels"
    return bool(os.environ.get("NUMBA_CACHE_DIR")) or os.access(code, os.W_OK) or os.access(existing, os.W_OK)


@cache
def _token() -> str:
    """What Ray's processes show one another. One per process: Ray reads it once."""
    return secrets.token_hex(32)


def _tried() -> str:
    return ", ".join(dict.fromkeys([os.environ.get("TMPDIR") or "/tmp", "/tmp"]))
