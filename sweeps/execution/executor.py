"""Executors, which do the work of a launch: Ray, or this process, for debuggers and tests. Results are the same.

Both are contexts, and have `pool`, whose workers do the methods of `SourceWorker`; `n_slots`, trials side by side;
`slot_bytes`, memory for training in each slot, None where it is not limited; `needs`, what a launch needs on every node, to be set before;
`train`; and `died` and `raise_death`, for what ends by itself.
"""

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Literal, Self

from sae_core import provenance
from sae_core.errors import ConfigError, facts_of
from sae_core.orders import NO_ORDERS, OrdersFile
from sae_core.sparse.kernels.choice import Choice
from sae_core.trainable import run_trial
from sweeps.execution.cluster import Cluster
from sweeps.execution.preflight import Needs
from sweeps.execution.training import Training
from sweeps.execution.workers import SourceWorker, WorkerPool
from sweeps.planning.memory import local_slot_bytes


class RayExecutor(Cluster):
    """A Ray cluster: started on this machine, or a running one. It starts with the context."""

    def __init__(self, address: str | None, cpus: int, gpus: float, kernels: Choice, ship_code: bool, stall_seconds: float) -> None:
        super().__init__(address=address, cpus=cpus, gpus=gpus, ship_code=ship_code, stall_seconds=stall_seconds)
        self.pool = WorkerPool(self, kernels)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if not self.died:  # then Ray does not answer
                self.pool.close()
        finally:
            super().__exit__(kind, error, trace)

    def train(self, training: Training) -> None:
        """Train all trials through Ray Tune."""
        from sweeps.execution import ray_tune  # imports ray, which reads what `cluster` has set in the environment

        ray_tune.train(training, self)

    def capacity(self) -> tuple[int, int]:
        """Nodes and slots at this moment."""
        return self.n_nodes, self.n_slots


class InlineExecutor:
    """This process: one job after another, so that breakpoints work. Nobody ends it when it hangs."""

    n_slots = 1
    died = False
    needs: Needs | None = None

    def __init__(self, address: str | None, cpus: int, gpus: float, kernels: Choice, ship_code: bool, stall_seconds: float) -> None:
        if address is not None:
            raise ConfigError(f"`--address` must be left out with `--executor inline`, but got {address!r}. Leave out one of them.")
        if gpus > provenance.n_gpus():
            raise ConfigError(f"`--gpus-per-trial` must be at most the GPUs of this machine, but got {gpus:g}. Lower it.")
        self.cpus, self.kernels, self.device, self.n_gpus = cpus, kernels, "cuda:0" if gpus else "cpu", int(gpus)
        self.slot_bytes = local_slot_bytes(1, gpus)

    def __enter__(self) -> Self:
        import torch

        self._threads = torch.get_num_threads()
        self.pool = _InlinePool(SourceWorker(self.device, self.cpus, self.kernels, n_gpus=self.n_gpus))
        return self

    def __exit__(self, *_: object) -> None:
        import torch

        torch.set_num_threads(self._threads)

    def train(self, training: Training) -> None:
        """Train one trial after another."""
        while (trial := training.next()) is not None:

            def report(told: dict[str, Any], trial: Any = trial) -> None:
                if training.report(trial, told):
                    raise _StoppedError

            failure = None
            try:
                run_trial(trial.config, report, self.device)
            except _StoppedError:
                pass
            except Exception as error:  # the boundary of a trial
                failure = facts_of(error)
            training.end(trial, failure)

    def capacity(self) -> tuple[int, int]:
        return 1, 1

    def raise_death(self) -> None:
        pass


class _StoppedError(Exception):
    """A trial is to stop at a rung."""


class _InlinePool:
    def __init__(self, worker: SourceWorker) -> None:
        self._worker = worker

    def ask(self, job: str, *arguments: Any) -> Any:
        return getattr(self._worker, job)(*arguments)

    def map(self, job: str, indices: Sequence[int], done: Callable[[Any], None], *arguments: Any, orders: OrdersFile = NO_ORDERS) -> None:
        for index in indices:
            orders.go_on()
            done(self.ask(job, index, *arguments))

    def close(self) -> None:
        pass


Executor = RayExecutor | InlineExecutor
ExecutorName = Literal["ray", "inline"]
EXECUTORS: dict[ExecutorName, type[RayExecutor] | type[InlineExecutor]] = {"ray": RayExecutor, "inline": InlineExecutor}
