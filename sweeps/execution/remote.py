"""A launch at `ray://HOST:PORT`: the command runs on a node of the cluster, and what it prints is printed here.

Ray Client forwards calls one by one, which neither Ray Tune's callbacks nor our files bear. So one actor runs `sae-sweep run` there, as
`ray job submit` does; a connection that is lost ends it, and the same command resumes.
"""

import queue
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import IO, Any

from sae_core.errors import ConfigError
from sweeps.execution import signals
from sweeps.execution.failures import KEPT, LaunchError, reason_of_failure
from sweeps.execution.running_ray import CLIENT_TRIES, check_connection, is_worth_another_try, refuse
from sweeps.execution.shipping import shipped

WAIT_SECONDS = 1.0
"""Most time that a call waits for a line."""

Say = Callable[[str, bool], None]
"""Takes a line, and whether it belongs on stderr."""


class _Command:
    """`sae-sweep run` or `harvest` on a node of the cluster, as an actor."""

    def __init__(self, command: str, definition: str, arguments: Sequence[str]) -> None:
        import ray

        self._directory = tempfile.TemporaryDirectory(prefix="sae-sweep-")
        file = Path(self._directory.name) / "definition.yaml"
        file.write_text(definition)
        address = ray.get_runtime_context().gcs_address
        line = [sys.executable, "-m", "sweeps.cli", command, str(file), "--address", address, *arguments]
        self._process = subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self._lines: queue.Queue[tuple[str, bool]] = queue.Queue()
        self._readers = [
            threading.Thread(target=self._read, args=(stream, is_error), daemon=True)
            for stream, is_error in ((self._process.stdout, False), (self._process.stderr, True))
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, stream: IO[str], is_error: bool) -> None:
        with stream:
            for line in stream:
                self._lines.put((line.rstrip("\n"), is_error))

    def lines(self) -> tuple[list[tuple[str, bool]], int | None]:
        """What was printed since the last call, and the exit code once that is all."""
        lines: list[tuple[str, bool]] = []
        ended = not any(reader.is_alive() for reader in self._readers)
        try:
            lines.append(self._lines.get(timeout=0.0 if ended else WAIT_SECONDS))
            while True:
                lines.append(self._lines.get_nowait())
        except queue.Empty:
            if not ended:
                return lines, None
        self._directory.cleanup()
        return lines, self._process.wait()

    def stop(self) -> None:
        """As Ctrl-C."""
        self._process.terminate()


def run_remotely(address: str, command: str, definition: str, arguments: Sequence[str], say: Say, *, ship_code: bool) -> int:
    """Run a command that launches on the cluster. Returns its exit code.

    Args:
        command: `run` or `harvest`.
        definition: as YAML.
        arguments: of the command, but for definition and address.

    Raises:
        ConfigError: no cluster can be used at this address.
        LaunchError: the command, its node or the connection was lost.
    """
    check_connection(address)
    code: AbstractContextManager[dict[str, Any]] = shipped() if ship_code else nullcontext({})
    with code as runtime_env:
        _connect(address, runtime_env)
    import ray

    try:
        actor = ray.remote(_Command).options(num_cpus=0, max_concurrency=2)
        return _follow(actor.remote(command, definition, list(arguments)), say)
    finally:
        signals.disconnect()


def _connect(address: str, runtime_env: dict[str, Any]) -> None:
    for tries_left in reversed(range(CLIENT_TRIES)):
        try:
            signals.connect(address, runtime_env=runtime_env)
        except Exception as error:  # of Ray Client, which is Python throughout: nothing else can happen
            said = "".join(traceback.format_exception(error))
            if not (tries_left and is_worth_another_try(address, said)):
                refuse(address, said)
        else:
            return


def _follow(command: Any, say: Say) -> int:
    import ray
    from ray.exceptions import RayError

    code = None
    try:
        while code is None:
            try:
                lines, code = ray.get(command.lines.remote())
                for line, is_error in lines:
                    say(line, is_error)
            except KeyboardInterrupt:
                signals.was_interrupted()
                command.stop.remote()
    except (RayError, ConnectionError) as error:
        if isinstance(error, RayError) and "No module named" in str(error):
            raise ConfigError(
                "the cluster must have this sae-sweep, but it has none, or another. Install it there, or add `--ship-code`."
            ) from error
        reason = reason_of_failure(error)[1]
        raise LaunchError(f"the cluster must run the launch to its end, but {reason}. {KEPT}") from error
    return code
