"""The training of a sweep without Ray, records or progress: a process a slot, each of which takes the next group when it is free.

    python benchmarks/bare_slots.py DEFINITION CACHE

What `overhead.py` compares a launch with. Training begins, and its first line is told, when all processes have imported what they need.
"""

import multiprocessing
import sys
from pathlib import Path
from typing import Any

from sae_core import provenance
from sae_core.activations.shards import read_manifest
from sae_core.activations.stream import Stream
from sae_core.config.run import RunConfig
from sae_core.training.loop import batches_at_a_time, train_group
from sweeps.definition.sweep import Sweep
from sweeps.planning.grouping import group_runs


def main(definition: str, cache: str) -> None:
    runs, d_in, n_slots = Sweep.from_yaml(definition, []).runs(), read_manifest(Path(cache)).d_in, provenance.n_cores()
    groups = group_runs(runs, n_slots=n_slots, d_in=lambda run: d_in, memory_bytes=provenance.slot_memory_bytes(n_slots))
    spawn = multiprocessing.get_context("spawn")
    ready, waiting = spawn.Barrier(n_slots + 1), spawn.SimpleQueue()
    for group in [*groups, *[None] * n_slots]:
        waiting.put(group and [run.model_dump(mode="json") for run in group])
    slots = [spawn.Process(target=slot, args=(waiting, ready, cache)) for _ in range(n_slots)]
    for process in slots:
        process.start()
    ready.wait()
    sys.stderr.write("train: begins\n")
    ready.wait()
    sys.stderr.write("train: done\n")
    for process in slots:
        process.join()


def slot(waiting: Any, ready: Any, cache: str) -> None:
    """Train groups, one after another, until there are no more."""
    import torch

    torch.set_num_threads(1)
    ready.wait()
    while (group := waiting.get()) is not None:
        runs = [RunConfig.model_validate(run) for run in group]
        train, seed = runs[0].train, runs[0].data_seed
        stream = Stream(Path(cache), batch_size=train.batch_size, data_seed=seed, normalize_activations=train.normalize_activations)
        train_group(runs, stream, batches_at_a_time=batches_at_a_time(runs, stream.d_in))
    ready.wait()


if __name__ == "__main__":
    main(*sys.argv[1:])
