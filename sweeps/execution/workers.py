"""Ray actors that hold a language model: they check what they are given, harvest shards and evaluate chunks, one job at a time each.

The jobs are fixed by the source, so results do not depend on how many workers share them.
"""

import fcntl
import resource
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import ray
from ray.exceptions import RayError

from sae_core import provenance
from sae_core.activations.source import source_of
from sae_core.config.run import ActivationsConfig
from sae_core.errors import ConfigError
from sae_core.sparse.kernels.choice import Choice, use_kernels
from sweeps.execution.cluster import Cluster
from sweeps.execution.failures import LaunchError, cause_of, reason_of_failure

RESTARTS = 2
"""Times a worker whose process or node died is started again; its job is then done anew."""
WAKING_SECONDS = 5.0
"""Most that a worker is waited for to notice that its rest is over: it takes milliseconds."""
KEPT_MEMORY_SHARE = 0.15
"""Part of the machine's memory that idle workers may keep while trials, which plan with 0.7 of it, run."""


class SourceWorker:
    """One activation source in a process of its own.

    Args:
        threads: of its matrix products.
        kernels: that evaluate, see `sae_core.sparse.kernels.choice`.
    """

    def __init__(self, config: dict[str, Any], cache: str, threads: int, kernels: Choice) -> None:
        import torch

        torch.set_num_threads(threads)  # Ray would give one to a worker that reserves no core
        use_kernels(kernels)
        # Ray leaves every GPU visible to an actor that asked for none.
        self.device = "cuda:0" if ray.get_gpu_ids() else "cpu"
        self.source = source_of(config, self.device)
        self.cache = Path(cache)

    def load(self) -> None:
        """Import what the source needs, which for a language model takes seconds, before there is a job. What is wrong, `prepare` tells."""
        with suppress(ConfigError):
            _ = self.source.d_in

    def prepare(self, sources: Sequence[tuple[dict[str, Any], str]]) -> list[dict[str, float]]:
        """Check the sources of a launch, this one and others, then do once what their jobs need.

        Args:
            sources: config, as JSON, and cache of each.

        Returns:
            What each says about its activations: `ActivationSource.facts`.

        Raises:
            ConfigError: with every problem found, one a line.
        """
        made = [(self.source if Path(cache) == self.cache else source_of(config, self.device), Path(cache)) for config, cache in sources]
        problems: list[str] = []
        for source, _ in made:
            try:
                source.check()
            except ConfigError as error:
                problems += str(error).splitlines()
        if problems:
            raise ConfigError("\n".join(dict.fromkeys(problems)))
        for source, path in made:
            source.prepare(path)
        return [source.facts() for source, _ in made]

    def rest(self, lock: str) -> None:
        """Wait for the launcher to give the file `lock` free, or to end.

        In a call, because a process that waits for its next call is woken by Ray a hundred times a second, for 0.8 % of a core.
        """
        with suppress(FileNotFoundError), Path(lock).open() as file:  # not there: the rest is over already
            fcntl.flock(file, fcntl.LOCK_SH)

    def memory_bytes(self) -> int:
        """The most memory that this process has had."""
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

    def harvest(self, index: int) -> int:
        """Make one training shard; a finished one is not made again. Returns its number of tokens."""
        from sae_core.activations.shards import harvest

        tokens: list[int] = []
        harvest(self.source, self.cache, indices=[index], on_shard=lambda _, n_tokens: tokens.append(n_tokens))
        return tokens[0]

    def evaluate(self, index: int, saes: Mapping[str, str]) -> tuple[Any, dict[str, Any]]:
        """Sums of one held-out chunk, and where they were made: `provenance.node`.

        Args:
            saes: run id -> directory of the exported SAE.
        """
        import torch

        from sae_core.activations.shards import read_manifest
        from sae_core.evaluation import evaluate_chunk

        mean = torch.tensor(read_manifest(self.cache).mean)
        loaded = _loaded(tuple(saes.items()), self.device)
        return evaluate_chunk(self.source.eval_chunk(self.cache, index, mean), loaded, index), provenance.node()


@lru_cache(maxsize=1)
def _loaded(saes: tuple[tuple[str, str], ...], device: str) -> dict[str, Any]:
    """The SAEs to evaluate: the same ones for every chunk."""
    from sae_core.sae.base import SparseAutoencoder

    return {run_id: SparseAutoencoder.from_pretrained(path).to(device) for run_id, path in saes}


class WorkerPools:
    """The workers of a launch: a pool for each source.

    A pool is kept from one stage to the next, with its model loaded, where that takes nothing from the trials in between: on one
    machine, without GPUs, if it needs little memory. Else it ends with the stage, and the next one starts another.
    """

    def __init__(self, cluster: Cluster, kernels: Choice) -> None:
        self.cluster, self.kernels = cluster, kernels
        self.pools: dict[Path, WorkerPool] = {}

    def load(self, config: ActivationsConfig, cache: Path) -> None:
        """Start the workers of a source on all slots, ahead of the stage that needs them. Does not wait for them."""
        self._pool(config, cache, self.cluster.n_slots).load()

    def of(self, config: ActivationsConfig, cache: Path, n_jobs: int) -> "WorkerPool":
        """The workers of a source, for a stage: as many as there are slots, or jobs where those are fewer."""
        return self._pool(config, cache, min(self.cluster.n_slots, n_jobs))

    def rest(self) -> None:
        """A stage has ended: end the workers that may not be kept, and let the others rest."""
        for pool in self.pools.values():
            pool.wake()
        if not self.cluster.keeps_workers or self._memory_bytes() > KEPT_MEMORY_SHARE * provenance.memory_bytes():
            self.close()
        for pool in self.pools.values():
            pool.rest()

    def close(self) -> None:
        """End all workers and free what they reserve."""
        while self.pools:
            self.pools.popitem()[1].close()

    def _pool(self, config: ActivationsConfig, cache: Path, n_workers: int) -> "WorkerPool":
        if cache not in self.pools:
            resources = {"num_cpus": 0.0} if self.cluster.keeps_workers else self.cluster.actor
            self.pools[cache] = WorkerPool(
                config,
                cache,
                threads=self.cluster.cpus,
                kernels=self.kernels,
                resources=resources,
                directory=self.cluster.directory,
            )
        self.pools[cache].wake()
        self.pools[cache].grow(n_workers)
        return self.pools[cache]

    def _memory_bytes(self) -> int:
        return sum(pool.memory_bytes() for pool in self.pools.values())


class WorkerPool:
    """Workers of one source.

    Args:
        threads: of each worker.
        kernels: that evaluate, see `sae_core.sparse.kernels.choice`.
        resources: that each worker reserves as long as it lives, e.g. {"num_cpus": 1, "num_gpus": 0}.
        directory: for the file by which workers that rest are woken; None: where temporary files are usually put.
    """

    def __init__(
        self,
        config: ActivationsConfig,
        cache: Path,
        *,
        threads: int,
        kernels: Choice,
        resources: dict[str, float],
        directory: Path | None = None,
    ) -> None:
        self._directory = directory
        self._actor = ray.remote(SourceWorker).options(max_restarts=RESTARTS, max_task_retries=RESTARTS, **resources)
        self._arguments = (config.model_dump(mode="json"), str(cache), threads, kernels)
        self.workers: list[Any] = []
        self._rest: IO[bytes] | None = None
        """A locked file, while the workers rest."""
        self._resting: list[Any] = []
        """Their calls."""

    def grow(self, n_workers: int) -> None:
        """Have at least so many workers."""
        self.workers += [self._actor.remote(*self._arguments) for _ in range(n_workers - len(self.workers))]

    def load(self) -> None:
        """Have every worker load; does not wait for it. What goes wrong there goes wrong in the first job again."""
        for worker in self.workers:
            worker.load.remote()

    def ask(self, job: str, *arguments: Any) -> Any:
        """Call the method `job` of one worker. Returns what it does.

        Raises:
            ConfigError: the job raised it.
            LaunchError: the worker's process died, however often it was started.
        """
        return _result(getattr(self.workers[0], job).remote(*arguments))

    def rest(self) -> None:
        """Let the workers, which must be on this machine, rest until `wake`. Calls before that would wait for it."""
        self._rest = tempfile.NamedTemporaryFile(prefix="rest-", dir=self._directory, delete=False)  # noqa: SIM115  `wake` closes it
        fcntl.flock(self._rest, fcntl.LOCK_EX)
        self._resting = [worker.rest.remote(self._rest.name) for worker in self.workers]

    def wake(self) -> None:
        """End the rest of the workers, if they have one."""
        if self._rest is not None:
            self._rest.close()
            Path(self._rest.name).unlink(missing_ok=True)
            self._rest = None
            # Ray tells the user of a call that did not end because its worker was.
            ray.wait(self._resting, num_returns=len(self._resting), timeout=WAKING_SECONDS)

    def memory_bytes(self) -> int:
        """Memory of all workers together."""
        return sum(ray.get([worker.memory_bytes.remote() for worker in self.workers]))

    def map(self, job: str, indices: Iterable[int], done: Callable[[Any], None], *arguments: Any) -> None:
        """Call the method `job` for every index; each worker takes the next one when it is free.

        Args:
            arguments: of every call, after the index.
            done: called with each result, in order of completion.

        Raises:
            ConfigError: the job raised it, e.g. activations do not fit the precision asked for.
            LaunchError: a worker's process died, however often it was started.
        """
        waiting = iter(indices)
        running: dict[Any, Any] = {}
        idle: Sequence[Any] = self.workers
        while True:
            for worker in idle:
                if (index := next(waiting, None)) is not None:
                    running[getattr(worker, job).remote(index, *arguments)] = worker
            if not running:
                return
            finished, _ = ray.wait(list(running), num_returns=1)
            idle = [running.pop(ref) for ref in finished]
            for ref in finished:
                done(_result(ref))

    def close(self) -> None:
        """End the workers and free what they reserve."""
        self.wake()
        for worker in self.workers:
            ray.kill(worker)


def _result(ref: Any) -> Any:
    """What a job returned. What it raised comes as it was raised there, with the worker's traceback as its cause."""
    try:
        return ray.get(ref)
    except RayError as error:
        cause = cause_of(error)
        if not isinstance(cause, RayError):
            raise cause from error
        raise LaunchError(
            f"a worker must do its job, but {reason_of_failure(error)[1]}, {RESTARTS + 1} times at most. What is finished is kept; the "
            "same command continues from here. If memory is short, use fewer slots: raise `--cpus-per-trial`."
        ) from error
