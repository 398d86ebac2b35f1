"""How much of the activations is stored: all, or as many shards as fit, and each group that reads the others makes them again."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from sae_core.activations.shards import stored_bytes
from sweeps.planning.inputs import SharedActivations
from sweeps.planning.memory import SAVED_BYTES, n_parameters

SPARE_BYTES = 2**30
"""Disk that is left free beside activations and results."""


def share_room(inputs: Sequence[SharedActivations], directory: Path, limit_gib: float | None) -> None:
    """Set `n_stored` where not all activations fit: the first shards are stored, those of the first inputs first.

    Args:
        inputs: with their widths.
        directory: where results go, or will go.
        limit_gib: most that these activations may take; None: what the disk has beside the results.
    """
    there = [stored_bytes(shared.cache) for shared in inputs]
    if limit_gib is None:
        disk = next(path for path in (directory, *directory.parents) if path.exists())
        results = sum(n_parameters(run, shared.d_in) * SAVED_BYTES for shared in inputs for run in shared.runs)
        room = shutil.disk_usage(disk).free + sum(there) - results - SPARE_BYTES
    else:
        room = int(limit_gib * 2**30)
    for shared, n_bytes in zip(inputs, there, strict=True):
        n_fitting = max(0, room) // shared.shard_bytes
        shared.n_stored = None if n_fitting >= shared.n_shards else n_fitting
        room -= max(n_bytes, min(n_fitting, shared.n_shards) * shared.shard_bytes)
