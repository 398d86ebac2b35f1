"""Ray actors that hold a language model: they harvest shards and evaluate chunks, one job at a time each.

The jobs are fixed by the source, so results do not depend on how many workers share them.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayTaskError

from sae_core.config import SOURCES, ActivationsConfig
from sae_core.errors import ConfigError

RESTARTS = 2
"""Times a worker whose process or node died is started again; its job is then done anew."""


class SourceWorker:
    """One activation source in a process of its own."""

    def __init__(self, config: dict[str, Any], cache: str, sae_directories: dict[str, str]) -> None:
        # Ray leaves every GPU visible to an actor that asked for none.
        self.device = "cuda:0" if ray.get_gpu_ids() else "cpu"
        source = SOURCES[config["source"]]
        self.source = source(source.Config.model_validate(config), device=self.device)
        self.cache = Path(cache)
        self.sae_directories = sae_directories

    @cached_property
    def saes(self) -> dict[str, Any]:
        """The exported SAEs to evaluate. Read when first needed, so also by a worker that was started again."""
        from sae_core.sae import SparseAutoencoder

        return {run_id: SparseAutoencoder.from_pretrained(path).to(self.device) for run_id, path in self.sae_directories.items()}

    def harvest(self, index: int) -> int:
        """Make one training shard; a finished one is not made again. Returns its number of tokens."""
        from sae_core.activations.shards import harvest

        tokens: list[int] = []
        harvest(self.source, self.cache, indices=[index], on_shard=lambda _, n_tokens: tokens.append(n_tokens))
        return tokens[0]

    def evaluate(self, index: int) -> Any:
        """Sums of one held-out chunk for the SAEs."""
        import torch

        from sae_core.activations.shards import read_manifest
        from sae_core.evaluation import evaluate_chunk

        mean = torch.tensor(read_manifest(self.cache).mean)
        return evaluate_chunk(self.source.eval_chunk(self.cache, index, mean), self.saes, index)


class WorkerPool:
    """As many workers as there are slots (or jobs, where those are fewer).

    Args:
        resources: of each worker, e.g. {"num_cpus": 1, "num_gpus": 0}.
        saes: run id -> directory of the exported SAEs to evaluate.
    """

    def __init__(
        self, config: ActivationsConfig, cache: Path, *, n_workers: int, resources: dict[str, float], saes: Mapping[str, Path] | None = None
    ) -> None:
        actor = ray.remote(SourceWorker).options(max_restarts=RESTARTS, max_task_retries=RESTARTS, **resources)
        directories = {run_id: str(path) for run_id, path in (saes or {}).items()}
        self.workers: list[Any] = [actor.remote(config.model_dump(mode="json"), str(cache), directories) for _ in range(n_workers)]

    def map(self, job: str, indices: Iterable[int], done: Callable[[Any], None]) -> None:
        """Call the method `job` for every index; each worker takes the next one when it is free.

        Args:
            done: called with each result, in order of completion.

        Raises:
            ConfigError: the job raised it, e.g. activations do not fit the precision asked for.
        """
        waiting = iter(indices)
        running: dict[Any, Any] = {}
        idle: Sequence[Any] = self.workers
        while True:
            for worker in idle:
                if (index := next(waiting, None)) is not None:
                    running[getattr(worker, job).remote(index)] = worker
            if not running:
                return
            finished, _ = ray.wait(list(running), num_returns=1)
            idle = [running.pop(ref) for ref in finished]
            for ref in finished:
                done(_result(ref))

    def close(self) -> None:
        """End the workers and free what they reserve."""
        for worker in self.workers:
            ray.kill(worker)

    def __enter__(self) -> "WorkerPool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _result(ref: Any) -> Any:
    """What a job returned. Its ConfigError comes without the worker's traceback, which Ray puts into the message."""
    try:
        return ray.get(ref)
    except RayTaskError as error:
        if isinstance(error.cause, ConfigError):
            raise error.cause from None
        raise
