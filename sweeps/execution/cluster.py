"""Starting and stopping Ray, and what it can hold: the slots in which trials and workers run."""

import math
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any

from sae_core import provenance
from sae_core.devices import tensor_bytes
from sae_core.errors import ConfigError
from sweeps.execution import preflight
from sweeps.execution.failures import LaunchError, launch_ended_by
from sweeps.execution.local_ray import LocalRay
from sweeps.execution.preflight import Needs
from sweeps.execution.running_ray import Nodes, RunningRay, living_nodes
from sweeps.execution.shipping import shipped
from sweeps.planning.memory import local_slot_bytes

_ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",  # with verbose=0, Tune prints nothing: progress is ours
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # no progress.csv, result.json, tensorboard files: records are ours
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C reaches us instead of ending fit() as if all were well
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_DISABLE_FAILURE_SIGNAL_HANDLER": "1",  # its C++ part has one for SIGTERM, too, which ends the process
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
_HERE = str(Path(__file__).resolve().parents[2])


class Cluster:
    """A Ray cluster in use: one started on this machine, or a running one.

    Args:
        address: of a running cluster; None starts one on this machine for the time of the launch, unless this process has
            Ray running already: then that is used, and left running.
        cpus: cores of each slot.
        gpus: GPUs of each slot; a fraction shares one.
        ship_code: run this process's code on all nodes, instead of what is installed there.
        stall_seconds: most time that a process of it may hang, or be stopped; it is ended then. 0: any.

    Attributes:
        needs: what a launch needs on every node of a running cluster; to be set before the context.
        n_slots: of all nodes together, as they come and go.
        slot_bytes: memory for training in each slot, on the node that has least; None where it is not known.

    Raises:
        ConfigError: no cluster answers at `address`, or one with other versions, or no slot fits, e.g. a GPU is requested where there is
            none. For this machine it is raised before Ray starts.
    """

    def __init__(self, *, address: str | None, cpus: int, gpus: float, ship_code: bool = False, stall_seconds: float = 0.0) -> None:
        self.cpus, self.gpus, self.ship_code, self.stall_seconds = cpus, gpus, ship_code, stall_seconds
        self.needs: Needs | None = None
        self._ray: LocalRay | RunningRay | None = None
        _check_slot(cpus, gpus)
        if address is None:
            self.n_slots = _slots([{"CPU": provenance.n_cores(), "GPU": provenance.n_gpus()}], cpus, gpus)
        else:
            self._ray = RunningRay(address, self._recount)

    def __enter__(self) -> "Cluster":
        for name, value in (_ENVIRONMENT | WORKER_ENVIRONMENT).items():
            os.environ.setdefault(name, value)
        try:
            self._start()
            self._check(living_nodes())
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
        """Whether Ray died before it was stopped."""
        return self._ray is not None and bool(self._ray.death)

    def raise_death(self) -> None:
        """Raise what ended the launch, if that was the death of Ray.

        Raises:
            LaunchError: it was.
        """
        if self._ray is not None and self._ray.death:
            raise LaunchError(launch_ended_by(self._ray.death)) from None

    def _check(self, nodes: Nodes) -> None:
        """Count the slots, and make sure that every node with one can be used.

        Raises:
            ConfigError: with every problem, one per line.
        """
        problems: list[str] = []
        try:
            self.n_slots, self.n_nodes = _slots([node["Resources"] for node in nodes], self.cpus, self.gpus), len(nodes)
            self.n_workers = self._count_workers(nodes)
            nodes = [node for node in nodes if self._slots_of(node)]
        except ConfigError as error:
            problems.append(str(error))
        if isinstance(self._ray, RunningRay) and self.needs:
            problems += preflight.check(self.needs, nodes, self._ray.seconds_left)
        if problems:
            raise ConfigError("\n".join(problems))
        self.slot_bytes: int | None
        if self.gpus:
            self.slot_bytes = self._gpu_bytes(nodes)
        elif isinstance(self._ray, RunningRay):
            self.slot_bytes = min(int(node["Resources"]["memory"] / self._slots_of(node)) for node in nodes)
        else:
            self.slot_bytes = local_slot_bytes(self.n_slots, self.gpus)

    def _gpu_bytes(self, nodes: Nodes) -> int | None:
        """Memory for tensors in a slot, on the smallest GPU of all nodes; None where that is not known."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        look = ray.remote(provenance.gpu_memory_bytes)
        there = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in nodes]
        found = ray.get([look.options(num_cpus=0, scheduling_strategy=strategy).remote() for strategy in there])
        smallest = min((gpu for node in found for gpu in node), default=None)
        return None if smallest is None else tensor_bytes(smallest, self.gpus)

    def _count_workers(self, nodes: Nodes) -> int:
        return sum(_slots_of_node(node["Resources"], self.cpus, math.ceil(self.gpus)) for node in nodes)

    def _slots_of(self, node: Mapping[str, Any]) -> int:
        return _slots_of_node(node["Resources"], self.cpus, self.gpus)

    def _start(self) -> None:
        """Start Ray on this machine, or connect to a running cluster, unless this process has Ray running already."""
        if _ray_runs():
            self._ray = None
            return
        # Workers import this package from where the launch does, also when it is not installed.
        packages = dict.fromkeys(filter(None, [_HERE, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]))
        environment = WORKER_ENVIRONMENT | {"PYTHONPATH": os.pathsep.join(packages)}
        if not isinstance(self._ray, RunningRay):
            self._ray = LocalRay(environment, self.needs.directory if self.needs else "", self.stall_seconds)
            self._ray.start()
            return
        with shipped() if self.ship_code else nullcontext({"env_vars": {"PYTHONPATH": environment["PYTHONPATH"]}}) as runtime_env:
            env_vars = WORKER_ENVIRONMENT | runtime_env["env_vars"]
            self._ray.start({**runtime_env, "env_vars": env_vars})

    def _stop(self) -> None:
        if self._ray is not None:
            self._ray.stop()

    def _recount(self, nodes: Nodes) -> None:
        """Nodes came or went."""
        self.n_nodes, self.n_slots, self.n_workers = len(nodes), max(1, sum(map(self._slots_of, nodes))), max(1, self._count_workers(nodes))

    @property
    def actor(self) -> dict[str, float]:
        """What a worker takes, in the words of Ray actors: a slot, with a whole GPU where slots share one."""
        return {"num_cpus": self.cpus, "num_gpus": math.ceil(self.gpus)}

    @property
    def trial(self) -> dict[str, float]:
        """A slot, in the words of Ray Tune."""
        return {"cpu": self.cpus, "gpu": self.gpus}


def _ray_runs() -> bool:
    """Whether this process has Ray running. Ray is not imported for this: its environment must be set first."""
    return "ray" in sys.modules and bool(sys.modules["ray"].is_initialized())


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
