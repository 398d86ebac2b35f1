"""Workers of a launch: processes that hold an activation source, check it, harvest shards and evaluate chunks.

The jobs are fixed by the source, so results do not depend on how many workers share them. Nothing heavy is imported here: a worker is
watched before it does.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_core import plugins, provenance
from sae_core.errors import ConfigError
from sae_core.layout import SweepPaths
from sae_core.orders import LOOK_SECONDS, NO_ORDERS, OrdersFile
from sae_core.watchdog import expected, watched
from sweeps.execution.failures import LaunchError, cause_of, reason_of_failure

if TYPE_CHECKING:
    from sae_core.activations.source import ActivationSource
    from sae_core.sparse.kernels.choice import Choice
    from sweeps.execution.cluster import Cluster

RESTARTS = 2
"""Times a worker whose process or node died is started again; its job is then repeated."""


class SourceWorker:
    """Jobs on activation sources. Each takes the source as its config, in JSON, and its cache; the last source stays loaded.

    Args:
        device: e.g. "cpu" or "cuda:0".
        threads: of matrix products on the CPU.
        kernels: that evaluate, see `sae_core.sparse.kernels.choice`.
        n_gpus: see `ActivationSource.n_gpus`.
    """

    def __init__(self, device: str, threads: int, kernels: Choice, n_gpus: int = 1) -> None:
        import torch

        from sae_core.sparse.kernels.choice import use_kernels

        torch.set_num_threads(threads)
        use_kernels(kernels)
        self.device, self.n_gpus = device, n_gpus

    def prepare(self, sources: Sequence[tuple[dict[str, Any], str]]) -> list[tuple[dict[str, float], int, int | None, dict[str, int], int]]:
        """Check all sources of a launch, then do once what their jobs need, e.g. tokenize.

        Args:
            sources: config and cache of each.

        Returns:
            Of each, what `ActivationSource` says: `facts`, `d_in`, `d_out`, `parts` and `model_bytes`.

        Raises:
            ConfigError: with every problem, one per line.
        """
        loaded = [(self._sources([config])[0], Path(cache)) for config, cache in reversed(sources)][::-1]
        firsts: dict[str, tuple[ActivationSource, Path]] = {}
        for source, cache in loaded:
            if source.pass_key is not None and (first := firsts.setdefault(source.pass_key, (source, cache)))[0] is not source:
                source.beside(first[0])
        problems: list[str] = []
        for source, _ in loaded:
            try:
                source.check()
            except ConfigError as error:
                problems += str(error).splitlines()
        if problems:
            raise ConfigError("\n".join(dict.fromkeys(problems)))
        for source, cache in loaded:
            first = firsts.get(source.pass_key or "", (source, cache))
            if first[0] is source:
                source.prepare(cache)
            else:
                source.prepare_as(cache, first[1])
        return [(source.facts(), source.d_in, source.d_out, source.parts, source.model_bytes) for source, _ in loaded]

    def harvest(self, index: int, sources: Sequence[tuple[dict[str, Any], str, int | None]]) -> int:
        """Make one training shard of sources with one `pass_key`, where it does not exist. Returns its number of tokens, of all together.

        Args:
            sources: config, cache and `n_stored` of each, see `shards.harvest`.
        """
        from sae_core.activations.shards import harvest_together

        loaded = self._sources([config for config, _, _ in sources])
        with expected():
            return sum(harvest_together([(source, Path(cache), n) for source, (_, cache, n) in zip(loaded, sources, strict=True)], index))

    def compare(self, index: int, sources: Sequence[tuple[dict[str, Any], str]]) -> list[float]:
        """Make a stored training shard of sources with one `pass_key` again: see `comparison.differences`.

        Args:
            sources: config and cache of each.
        """
        from sae_core.activations.comparison import differences

        loaded = self._sources([config for config, _ in sources])
        with expected():
            return differences([(source, Path(cache)) for source, (_, cache) in zip(loaded, sources, strict=True)], index)

    def _sources(self, configs: Sequence[dict[str, Any]]) -> list[ActivationSource]:
        from sae_core.activations.source import kept_sources

        return kept_sources(configs, self.device, self.n_gpus)

    def evaluate(
        self, index: int, sources: Sequence[tuple[dict[str, Any], str]], saes: Sequence[Mapping[str, str]]
    ) -> tuple[list[Any], dict[str, Any]]:
        """Sums of one held-out chunk, and where and how they were computed: `provenance.node` and `arithmetic`.

        Args:
            sources: config and cache of each source of one `pass_key`.
            saes: of each source, run id -> directory of the exported SAE.

        Returns:
            Sums of each source.
        """
        import torch

        from sae_core.activations.shards import read_manifest
        from sae_core.arithmetic import eval_arithmetic
        from sae_core.evaluation import evaluate_chunk

        node = {**provenance.node(), "arithmetic": eval_arithmetic(self.device, sources[0][0])}
        means = [torch.tensor(read_manifest(Path(cache)).target_mean) for _, cache in sources]
        loaded, to_measure = (
            self._sources([config for config, _ in sources]),
            _saes(tuple(tuple(some.items()) for some in saes), self.device),
        )
        with expected():
            chunks = loaded[0].eval_chunks(Path(sources[0][1]), index, loaded, means)
            found = [evaluate_chunk(chunk, some, index, mean) for chunk, some, mean in zip(chunks, to_measure, means, strict=True)]
        return found, node

    def evaluate_further(
        self, index: int, sources: Sequence[tuple[dict[str, Any], str]], saes: Sequence[Mapping[str, str]]
    ) -> tuple[str, tuple[dict[str, float | None], dict[str, str]]]:
        """What the evaluators say of one SAE, the one of this number among all of them. Returns its run id first.

        Args:
            sources: as `evaluate`.
            saes: as `evaluate`.
        """
        from sae_core.metrics.evaluators import evaluate_further

        loaded, to_measure = (
            self._sources([config for config, _ in sources]),
            _saes(tuple(tuple(some.items()) for some in saes), self.device),
        )
        each = [(number, run_id) for number, some in enumerate(saes) for run_id in some]
        number, run_id = each[index]
        with expected():
            return run_id, evaluate_further(to_measure[number][run_id], loaded[number], Path(sources[number][1]))


@lru_cache(maxsize=1)
def _saes(saes: tuple[tuple[tuple[str, str], ...], ...], device: str) -> list[dict[str, Any]]:
    """The SAEs to evaluate of each source, which are the same for every chunk."""
    from sae_core.sae.base import SparseAutoencoder

    return [{run_id: SparseAutoencoder.from_pretrained(path).to(device) for run_id, path in some} for some in saes]


class WorkerPool:
    """Workers on a Ray cluster, one per slot, or per GPU where slots share one: each may hold a language model. They start with the first
    job, and hold their cores and GPUs until `close`."""

    def __init__(self, cluster: Cluster, kernels: Choice) -> None:
        self.cluster, self.kernels = cluster, kernels
        self.workers: list[Any] = []

    def ask(self, job: str, *arguments: Any) -> Any:
        """Have one worker do `job`, a method of `SourceWorker`.

        Raises:
            ConfigError: the job raised it, as any other exception.
            LaunchError: the worker's process died each time it was started.
        """
        self._grow(1)
        return _result(getattr(self.workers[0], job).remote(*arguments))

    def map(self, job: str, indices: Sequence[int], done: Callable[[Any], None], *arguments: Any, orders: OrdersFile = NO_ORDERS) -> None:
        """Have the workers do `job` for every index; each takes the next one when it is free.

        Args:
            done: called with each result, in order of completion.
            arguments: of every call, after the index.
            orders: to pause or stop; what is under way when they say stop is lost.

        Raises:
            StoppedError: the orders say so.
            ConfigError: a job raised it, e.g. activations do not fit the precision requested; as any other exception.
            LaunchError: a worker's process died each time it was started.
        """
        import ray

        waiting = list(indices)[::-1]
        running: dict[Any, Any] = {}
        while waiting or running:
            orders.go_on()
            self._grow(min(self.cluster.n_workers, len(waiting) + len(running)))
            for worker in [worker for worker in self.workers if worker not in running.values()]:
                if len(self.workers) > self.cluster.n_workers:  # a node left: the worker that was there needs this one's slot
                    self.workers.remove(worker)
                    ray.kill(worker)
                elif waiting:
                    running[getattr(worker, job).remote(waiting.pop(), *arguments)] = worker
            finished, _ = ray.wait(list(running), num_returns=1, timeout=LOOK_SECONDS)
            for ref in finished:
                del running[ref]
                done(_result(ref))

    def close(self) -> None:
        """End the workers, which frees their slots. The next job starts others."""
        import ray

        while self.workers:
            ray.kill(self.workers.pop())

    def _grow(self, n_workers: int) -> None:
        import ray

        actor = ray.remote(_RayWorker).options(max_restarts=RESTARTS, max_task_retries=RESTARTS, **self.cluster.actor)
        hangs = str(SweepPaths(Path(self.cluster.needs.directory)).hangs) if self.cluster.needs else ""
        cluster = self.cluster
        arguments = (cluster.cpus, self.kernels, cluster.stall_seconds, hangs, plugins.checksums(), int(cluster.gpus))
        self.workers += [actor.remote(*arguments) for _ in range(n_workers - len(self.workers))]


class _RayWorker(SourceWorker):
    """A `SourceWorker` as an actor, on the device that Ray gave it. Ray leaves every GPU visible to an actor that asked for none."""

    def __init__(self, threads: int, kernels: Choice, stall_seconds: float, hangs: str, checksums: Mapping[str, str], n_gpus: int) -> None:
        import ray

        self._watch = ExitStack()  # to the end of this process
        self._watch.enter_context(watched(stall_seconds, Path(hangs) / f"{socket.gethostname()}-{os.getpid()}"))
        super().__init__("cuda:0" if ray.get_gpu_ids() else "cpu", threads, kernels, n_gpus)
        plugins.load_same(checksums)


def _result(ref: Any) -> Any:
    """Result of a job. An exception is raised as it was there, with the worker's traceback as its cause."""
    import ray
    from ray.exceptions import RayError

    try:
        return ray.get(ref)
    except RayError as error:
        cause = cause_of(error)
        if not isinstance(cause, RayError):
            raise cause from error
        raise LaunchError(
            f"a worker must finish its job, but {reason_of_failure(error)[1]}, {RESTARTS + 1} times. What is finished is kept; the "
            "same command resumes. If memory is short, use fewer slots: raise `--cpus-per-trial`."
        ) from error
