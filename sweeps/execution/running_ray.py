"""A Ray cluster that runs already: found to be usable before Ray is asked to connect, and watched while it is used."""

import importlib.util
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from typing import Any, NoReturn

from sae_core.errors import ConfigError, border
from sweeps.execution import signals
from sweeps.execution.failures import Death
from sweeps.execution.local_ray import LOOPBACK

PREFLIGHT_SECONDS = 15.0
"""Most time from the first connection until it is known whether a cluster can be used."""
CONNECT_SECONDS = 13.0
"""The part of it that a first connection may take."""
CLIENT_SECONDS = 60.0
"""The same at ray://, where the head node starts a process for a client. Whether it answers at all is known within ten seconds."""
CLIENT_TRIES = 3
"""Most times that a client asks the head node for its process."""
ANSWER_SECONDS = 4.0
"""Most time until what listens at an address says anything."""
SETTINGS_FRAME = 4
SCHEME = "ray://"
WATCH_SECONDS = 2.0
"""Time between two looks at the nodes."""
SILENT_SECONDS = 20.0
"""Time without an answer of the head node after which a launch ends: a head that only starts again is not the end."""
_AUTHENTICATION = re.compile(r"[^\n]*(Unauthenticated|InvalidAuthToken|AuthenticationError|authentication token)[^\n]*")

_NOT_A_REASON = re.compile(r"\s|Traceback |\d{4}-\d\d-\d\d ")
"""Lines of a traceback, and of a log."""

_FEW_RETRIES = {
    "RAY_NUM_REDIS_GET_RETRIES": "3",
    "RAY_CLIENT_INITIAL_CONNECTION_TIMEOUT_S": "2",
    "RAY_CLIENT_MAX_CONNECTION_TIMEOUT_S": "2",
}
"""Ray tries again for long, also where the answer is clear."""

Nodes = Sequence[Mapping[str, Any]]
"""Living nodes, as Ray describes them."""


class RunningRay:
    """A running Ray cluster, connected to by `start` and left by `stop`.

    Args:
        on_nodes: called with the nodes every few seconds: they come and go.

    Attributes:
        death: why it can no longer be used, as a message; empty as long as it can.

    Raises:
        ConfigError: no cluster can be used at this address.
    """

    def __init__(self, address: str, on_nodes: Callable[[Nodes], None]) -> None:
        self.address, self._on_nodes = address, on_nodes
        self._death = Death()
        self._watcher: threading.Thread | None = None
        started = time.monotonic()
        check_connection(address)
        self.seconds_left = PREFLIGHT_SECONDS - (time.monotonic() - started)
        """For the rest of the preflight."""

    @property
    def death(self) -> str:
        return self._death.reason

    def start(self, runtime_env: Mapping[str, Any]) -> None:
        """Connect to it.

        Args:
            runtime_env: of its workers, as Ray names it.
        """
        # Under `ray job submit` the job has an environment, too: what both name is taken from here, which extends the job's.
        os.environ.setdefault("RAY_OVERRIDE_JOB_RUNTIME_ENV", "1")
        started = time.monotonic()
        with _address_border(self.address):
            signals.connect(self.address, runtime_env=runtime_env)
        import ray

        self.seconds_left -= time.monotonic() - started
        context = ray.get_runtime_context()
        self._watcher = threading.Thread(target=self._watch, args=(context.gcs_address, context.get_node_id()), daemon=True)
        self._watcher.start()

    def stop(self) -> None:
        """Leave it."""
        self._death.launch_ends.set()
        try:
            if self._watcher is not None:
                self._watcher.join(WATCH_SECONDS)  # Ray ends a process in which it is used while it stops
            signals.disconnect()
        finally:
            self._death.launch_ended.set()

    def _watch(self, gcs_address: str, node_id: str) -> None:
        """Look for nodes that come and go, and interrupt the launch when the head node is gone: Ray would wait for a minute or more."""
        heard = time.monotonic()
        while not self._death.launch_ends.wait(WATCH_SECONDS):
            if not _answers(gcs_address):
                if time.monotonic() - heard > SILENT_SECONDS:
                    self._death.happened(f"the head node at {gcs_address} has not answered for {SILENT_SECONDS:g} s")
                continue
            heard = time.monotonic()
            nodes = living_nodes()
            if all(node["NodeID"] != node_id for node in nodes):
                self._death.happened("the node of this launch is no longer part of the cluster")
            self._on_nodes(nodes)


def living_nodes() -> Nodes:
    """The nodes of the cluster that this process is connected to."""
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=WATCH_SECONDS).close()
    except OSError:
        return False
    return True


def _address_border(address: str) -> AbstractContextManager[None]:
    remedy = "Start one with `ray start --head`, or omit `--address` to use this machine."
    return border(f"`--address` must be that of a running Ray cluster, but got {address!r}", remedy)


def check_connection(address: str) -> None:
    """Connect to a cluster from another process: where something is wrong, Ray may retry for minutes, or end the process.

    Raises:
        ConfigError: no cluster can be used at this address.
    """
    if "ray" in sys.modules and os.environ.get(LOOPBACK) == "0":
        raise ConfigError(f"`--address` must be given to a process that has not started Ray, but got {address!r}. Use a new process.")
    _check_answers(address)
    limit = CLIENT_SECONDS if address.startswith(SCHEME) else CONNECT_SECONDS
    give_up = time.monotonic() + limit
    for tries_left in reversed(range(CLIENT_TRIES)):
        said = _failure_of_another_process(address, limit, max(give_up - time.monotonic(), 0.0))
        if said is None:
            return
        if not (tries_left and is_worth_another_try(address, said) and time.monotonic() < give_up):
            refuse(address, said)


def is_worth_another_try(address: str, said: str) -> bool:
    """Whether the head node failed to start a process for a client: it forks while other threads are in gRPC, which can kill the child."""
    return address.startswith(SCHEME) and "Initialization failure from server" in said


def _failure_of_another_process(address: str, limit: float, seconds: float) -> str | None:
    """Connect in another process, in `seconds` of `limit`. Returns what Ray said on stderr, or None where it connected."""
    # At ray:// only lines for debuggers say that a token was refused.
    program = "import ray, sys; ray.init(sys.argv[1], log_to_driver=False, logging_level=10); ray.shutdown()"
    try:
        tried = subprocess.run(
            [sys.executable, "-c", program, address],
            timeout=seconds,
            capture_output=True,
            text=True,
            check=False,
            env={**_FEW_RETRIES, **os.environ},
        )
    except subprocess.TimeoutExpired as late:
        said = (late.stderr or b"").decode(errors="replace")
        return f"{said}\nConnectionError: no cluster answered within {limit:g} s"
    return tried.stderr if tried.returncode else None


def _check_answers(address: str) -> None:
    """Make sure that an address is one, and that something listens there.

    Raises:
        ConfigError: it is not so.
    """
    form = re.fullmatch(rf"({SCHEME})?(\S+):([0-9]+)", address, re.ASCII)
    with _address_border(address):
        if form is None and address != "auto":
            raise ValueError("an address is HOST:PORT, auto, or ray://HOST:PORT")
    if address.startswith(SCHEME) and importlib.util.find_spec("grpc") is None:
        raise ConfigError(
            f"`--address` at ray:// must be given where Ray Client is installed, but got {address!r} where it is not. Install it: `pip "
            "install 'sae-sweep[client]'`, here and on the head node."
        )
    with _address_border(address):
        if form is not None:
            with socket.create_connection((form[2].strip("[]"), int(form[3])), timeout=ANSWER_SECONDS) as connection:
                _check_grpc(connection)


def _check_grpc(connection: socket.socket) -> None:
    """Make sure that what listens may be Ray: a server of HTTP/2, whose first frame has its settings. With TLS, Ray itself has to see."""
    if os.environ.get("RAY_USE_TLS", "0") not in ("1", "true"):
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, SETTINGS_FRAME, 0, 0, 0, 0, 0]))
        header = b""
        with suppress(TimeoutError):
            header = connection.recv(9)
        if len(header) < 9 or header[3] != SETTINGS_FRAME:
            raise ConnectionError("another program than Ray listens there")


def refuse(address: str, said: str) -> NoReturn:
    """Say what was wrong with a connection.

    Args:
        said: by Ray, on stderr, as a traceback.

    Raises:
        ConfigError: always.
    """
    versions = re.findall(r"Ray: (\S+)\s+Python: (\S+)", said)
    if len(versions) == 2:  # of the cluster, and of this process
        (ray, python), ours = versions
        raise ConfigError(
            f"a cluster must have the Ray and Python of this process, {ours[0]} and {ours[1]}, but {address!r} has Ray {ray} and Python "
            f"{python}. Install `ray[tune]=={ray}` in Python {python} here, or start the cluster with the versions of this process."
        )
    if _AUTHENTICATION.search(said):
        mode = os.environ.get("RAY_AUTH_MODE", "not set")
        raise ConfigError(
            f"a cluster that requires a token must be given its own, but {address!r} refused this process (RAY_AUTH_MODE is {mode}). "
            "Set `RAY_AUTH_MODE=token`, and `RAY_AUTH_TOKEN_PATH` or `RAY_AUTH_TOKEN` to the token of the cluster."
        )
    with _address_border(address):
        # What a server says of its failure may be lines of its own, a traceback among them.
        *_, reason = ["", *re.split(r"^[\w.]*Error: ", said, flags=re.MULTILINE)[1:]]
        lines = [line.strip() for line in reason.splitlines() if line.strip() and not _NOT_A_REASON.match(line)]
        raise ConnectionError(" ".join(lines) or "Ray could not connect to it")
