"""Starting and stopping Ray, and what it can hold: the slots in which trials and workers run."""

import logging
import math
import os
import re
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any

from sae_core import provenance
from sae_core.errors import ConfigError, border
from sweeps.execution import signals
from sweeps.execution.failures import LaunchError
from sweeps.execution.local_ray import LOOPBACK, LocalRay, launch_ended_by

_ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",  # with verbose=0, Tune prints nothing: progress is ours
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # no progress.csv, result.json, tensorboard files: records are ours
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C reaches us instead of ending fit() as if all were well
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # the behaviour to come; trials ask Ray for their GPUs anyway
}
"""Of the launch; read when Ray is imported. Facts behind each: docs/reliability.md."""

WORKER_ENVIRONMENT = {
    # glibc keeps freed memory. Else the pages of each batch-sized tensor are mapped and cleared again: a tenth of a CPU step.
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
    "MALLOC_TRIM_THRESHOLD_": str(2**32),
    "MALLOC_TOP_PAD_": str(2**26),
    # PyTorch's threads do not spin on the cores that the kernels' threads need: a sixth of a step on 2 cores.
    "OMP_WAIT_POLICY": "PASSIVE",
}
"""Of the processes that train and evaluate; read by C libraries when a process starts."""

LEAST_GPU_SHARE = 0.0001
"""Ray counts in ten-thousandths."""
CONNECT_SECONDS = 45.0
"""Most time that connecting to a running cluster may take."""
_HERE = str(Path(__file__).resolve().parents[2])


class Cluster:
    """A Ray cluster in use: one started on this machine, or a running one.

    Args:
        address: of a running cluster; None starts one on this machine for the time of the launch, unless this process has
            Ray running already: then that is used, and left running.
        cpus: cores of each slot.
        gpus: GPUs of each slot; a fraction shares one.

    Raises:
        ConfigError: no cluster answers at `address`, or one with other versions, or no slot fits, e.g. a GPU is requested where there is
            none. For this machine it is raised before Ray starts.
    """

    def __init__(self, *, address: str | None, cpus: int, gpus: float) -> None:
        self.address, self.cpus, self.gpus = address, cpus, gpus
        self._local: LocalRay | None = None
        self._is_ours = False
        _check_slot(cpus, gpus)
        if address is None:
            self.n_slots = _slots([{"CPU": provenance.n_cores(), "GPU": provenance.n_gpus()}], cpus, gpus)
        else:
            _check_cluster(address)

    def __enter__(self) -> "Cluster":
        for name, value in (_ENVIRONMENT | WORKER_ENVIRONMENT).items():
            os.environ.setdefault(name, value)
        try:
            self._start()
            import ray

            self.n_slots = _slots([node["Resources"] for node in ray.nodes() if node["Alive"]], self.cpus, self.gpus)
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop()
        if isinstance(error, Exception | KeyboardInterrupt):
            self.raise_death()

    @property
    def died(self) -> bool:
        """Whether a local Ray died before it was stopped."""
        return self._local is not None and bool(self._local.death)

    def raise_death(self) -> None:
        """Raise what ended the launch, if that was the death of a local Ray.

        Raises:
            LaunchError: it was.
        """
        if self._local is not None and self._local.death:
            raise LaunchError(launch_ended_by(self._local.death)) from None

    def _start(self) -> None:
        """Start Ray on this machine, or connect to a running cluster, unless this process has Ray running already."""
        if _ray_runs():
            return
        self._is_ours = True
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        # Workers import this package from where the launch does, also when it is not installed.
        packages = dict.fromkeys(filter(None, [_HERE, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]))
        environment = WORKER_ENVIRONMENT | {"PYTHONPATH": os.pathsep.join(packages)}
        if self.address is None:
            self._local = LocalRay(environment)
            self._local.start(**options)
            return
        import ray

        with _address_border(self.address), signals.kept():
            ray.init(address=self.address, runtime_env={"env_vars": environment}, **options)

    def _stop(self) -> None:
        if self._local is not None:
            self._local.stop()
        elif self._is_ours:
            import ray

            with signals.kept():
                ray.shutdown()

    @property
    def actor(self) -> dict[str, float]:
        """A slot, in the words of Ray actors."""
        return {"num_cpus": self.cpus, "num_gpus": self.gpus}

    @property
    def trial(self) -> dict[str, float]:
        """A slot, in the words of Ray Tune."""
        return {"cpu": self.cpus, "gpu": self.gpus}


def _ray_runs() -> bool:
    """Whether this process has Ray running. Ray is not imported for this: its environment must be set first."""
    return "ray" in sys.modules and bool(sys.modules["ray"].is_initialized())


def _address_border(address: str) -> AbstractContextManager[None]:
    remedy = "Start one with `ray start --head`, or omit `--address` to use this machine."
    return border(f"`--address` must be that of a running Ray cluster, but got {address!r}", remedy)


def _check_cluster(address: str) -> None:
    """Connect to a cluster from another process: where something is wrong, Ray may retry for minutes, or end the process.

    Raises:
        ConfigError: no cluster can be used at this address.
    """
    if "ray" in sys.modules and os.environ.get(LOOPBACK) == "0":
        raise ConfigError(f"`--address` must be given to a process that has not started Ray, but got {address!r}. Use a new process.")
    with _address_border(address):
        if address != "auto":
            form = re.fullmatch(r"(ray://)?(\S+):([0-9]+)", address, re.ASCII)
            if form is None:
                raise ValueError("an address is HOST:PORT or auto")
            socket.create_connection((form[2].strip("[]"), int(form[3])), timeout=CONNECT_SECONDS).close()
        command = [sys.executable, "-c", "import ray, sys; ray.init(sys.argv[1], log_to_driver=False)", address]
        try:
            tried = subprocess.run(command, timeout=CONNECT_SECONDS, capture_output=True, text=True, check=False)
        except subprocess.TimeoutExpired:
            raise ConnectionError(f"no cluster answered within {CONNECT_SECONDS:g} s") from None
    if tried.returncode == 0:
        return
    versions = re.findall(r"Ray: (\S+)\s+Python: (\S+)", tried.stderr)
    if len(versions) == 2:  # of the cluster, and of this process
        (ray, python), ours = versions
        raise ConfigError(
            f"a cluster must have the Ray and Python of this process, {ours[0]} and {ours[1]}, but {address!r} has Ray {ray} and Python "
            f"{python}. Install `ray[tune]=={ray}` in Python {python} here, or start the cluster with the versions of this process."
        )
    with _address_border(address):
        reasons = re.findall(r"^(?:[\w.]*Error): (.*\S)", tried.stderr, re.MULTILINE)
        raise ConnectionError(reasons[-1] if reasons else "Ray could not connect to it")


def _check_slot(cpus: int, gpus: float) -> None:
    if cpus < 1:
        raise ConfigError(f"`--cpus-per-trial` must be at least 1, but got {cpus}. Raise it.")
    if not math.isfinite(gpus) or gpus < 0 or 0 < gpus < LEAST_GPU_SHARE:
        raise ConfigError(f"`--gpus-per-trial` must be 0, or a number from {LEAST_GPU_SHARE} on, but got {gpus:g}. Correct it.")


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
