"""Starting and stopping Ray, and what it can hold: the slots in which trials and workers run."""

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from sae_core import provenance
from sae_core.errors import ConfigError
from sweeps.lean_ray import SELDOM, lean_start

# Read by Ray when it is imported or when processes start. Facts behind each: docs/reliability.md.
_ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",  # with verbose=0, Tune prints nothing: progress is ours
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # no progress.csv, result.json, tensorboard files: records are ours
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C reaches us instead of ending fit() as if all were well
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # the behaviour to come; trials ask Ray for their GPUs anyway
}

# Of the processes that train and evaluate: C libraries read it when a process starts. Measured in docs/performance.md.
WORKER_ENVIRONMENT = {
    # glibc keeps freed memory. Else each batch-sized tensor is mapped, and its pages cleared, anew: a tenth of a CPU step.
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
    "MALLOC_TRIM_THRESHOLD_": str(2**32),
    "MALLOC_TOP_PAD_": str(2**26),
    # PyTorch's threads do not spin on the cores that the kernels' threads need: a sixth of a step on 2 cores.
    "OMP_WAIT_POLICY": "PASSIVE",
}

_HERE = str(Path(__file__).resolve().parent.parent)


class Cluster:
    """A Ray cluster in use: one started on this machine, or a running one.

    Args:
        address: of a running cluster; None starts one on this machine for the time of the launch, unless this process has
            Ray running already: then that is used, and left running.
        cpus: cores of each slot.
        gpus: GPUs of each slot; a fraction shares one.

    Raises:
        ConfigError: nothing answers at `address`, or no slot fits, e.g. a GPU is asked for where there is none. For this machine
            it is known before Ray starts.
    """

    def __init__(self, *, address: str | None, cpus: int, gpus: float) -> None:
        self.address, self.cpus, self.gpus = address, cpus, gpus
        self.keeps_workers = False
        """Whether workers may wait, beside trials, for the next stage: they hold no GPU, and need none to be spread over nodes."""
        if address is None:
            self.n_slots = _slots([{"CPU": provenance.n_cores(), "GPU": provenance.n_gpus()}], cpus, gpus)
        else:
            _check_answers(address)

    def __enter__(self) -> "Cluster":
        for name, value in (_ENVIRONMENT | WORKER_ENVIRONMENT).items():
            os.environ.setdefault(name, value)
        import ray

        self.ours = not ray.is_initialized()
        try:
            if self.ours:
                _start(self.address)
            nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            self.n_slots = _slots(nodes, self.cpus, self.gpus)
            self.keeps_workers = self.gpus == 0 and len(nodes) == 1
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop()

    def _stop(self) -> None:
        import ray

        if self.ours:
            ray.shutdown()

    @property
    def actor(self) -> dict[str, float]:
        """A slot, in the words of Ray actors."""
        return {"num_cpus": self.cpus, "num_gpus": self.gpus}

    @property
    def trial(self) -> dict[str, float]:
        """A slot, in the words of Ray Tune."""
        return {"cpu": self.cpus, "gpu": self.gpus}


def _start(address: str | None) -> None:
    """Start Ray on this machine, or connect to a running cluster.

    Raises:
        ConfigError: there is no cluster at `address`.
    """
    import ray

    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    # Workers import this package from where the driver did, also when it is not installed.
    paths = {"PYTHONPATH": os.pathsep.join(dict.fromkeys(filter(None, [_HERE, *os.environ.get("PYTHONPATH", "").split(os.pathsep)])))}
    with _sigterm_handler_kept():
        if address is None:
            # Workers inherit it. A `runtime_env` would do as well, but costs each stage two seconds.
            os.environ.update(paths)
            with lean_start():
                options |= {"num_cpus": provenance.n_cores(), "num_gpus": provenance.n_gpus(), "_system_config": SELDOM}
                # "local": not the cluster that RAY_ADDRESS may name.
                ray.init(address="local", include_dashboard=False, **options)
            return
        try:
            ray.init(address=address, runtime_env={"env_vars": paths | WORKER_ENVIRONMENT}, **options)
        except (ConnectionError, ValueError) as error:
            raise _no_cluster(address, str(error).strip().partition("\n")[0]) from None


def _check_answers(address: str) -> None:
    """Ray itself tries for a quarter of an hour before it says that nothing is there."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except OSError as error:
            raise _no_cluster(address, f"{error}.") from None


def _no_cluster(address: str, reason: str) -> ConfigError:
    return ConfigError(
        f"`--address` must be that of a running Ray cluster, but got {address!r}: {reason} Start one with `ray start --head`, or leave "
        "`--address` out to use this machine."
    )


@contextmanager
def _sigterm_handler_kept() -> Iterator[None]:
    """ray.init sets a handler of its own, which ends the process; the launcher's, which stops cleanly, comes back afterwards."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _slots(nodes: Sequence[Mapping[str, float]], cpus: int, gpus: float) -> int:
    """How many slots there are in all; each lies within one node.

    Args:
        nodes: resources of each, in the words of Ray: "CPU", "GPU".
    """
    n_cpus, n_gpus = (max((node.get(name, 0) for node in nodes), default=0) for name in ("CPU", "GPU"))
    if gpus > n_gpus:
        raise ConfigError(
            f"`--gpus-per-trial` must be at most the {n_gpus:g} GPUs there are, but got {gpus:g}. Lower it, or use a GPU machine."
        )
    if gpus > 1 and gpus != int(gpus):
        raise ConfigError(f"`--gpus-per-trial` must be a whole number above 1, but got {gpus:g}. Round it.")
    if cpus > n_cpus:
        raise ConfigError(f"`--cpus-per-trial` must be at most the {n_cpus:g} cores there are, but got {cpus}. Lower it.")
    return sum(_slots_of_node(node, cpus, gpus) for node in nodes)


def _slots_of_node(node: Mapping[str, float], cpus: int, gpus: float) -> int:
    by_cpu, n_gpus = int(node.get("CPU", 0) // cpus), int(node.get("GPU", 0))
    if gpus == 0:
        return by_cpu
    # 1 // 0.1 is 9: a tenth is a little more than 0.1 in binary.
    by_gpu = n_gpus // int(gpus) if gpus >= 1 else n_gpus * int(1 / gpus + 1e-9)
    return min(by_cpu, by_gpu)
