"""How much of the activations is stored: all, or as many shards as fit, and each group that reads the others makes them again."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from sae_core.activations.shards import stored_bytes
from sae_core.config.run import RunConfig
from sae_core.errors import ConfigError
from sweeps.planning.inputs import SharedActivations
from sweeps.planning.memory import SAVED_COPIES, check_fits, weights_bytes

SPARE_BYTES = 2**30
"""Disk that is left free beside activations and results."""
_MUCH = 2**60


def fit(
    needs: Sequence[tuple[SharedActivations, Sequence[RunConfig]]],
    directory: Path | None,
    *,
    limit_gib: float | None,
    slot_bytes: int | None,
    holds_model: bool,
) -> None:
    """Decide how many shards are stored, and make sure that each run can train in a slot and leave its SAE on the disk.

    Args:
        needs: activations, once their sources were asked, and the runs that are to be trained on them.
        directory: where results go, or will go; None: where there is room for all.
        limit_gib: most that these activations may take; None: what the disk has beside the results.
        slot_bytes: memory for training in each slot; None: it is not known.
        holds_model: whether each trial holds the source's model, also where it makes no activations to train on.

    Raises:
        ConfigError: it cannot.
    """
    disk = next(path for path in (directory, *directory.parents) if path.exists()) if directory else None
    free = shutil.disk_usage(disk).free if disk else _MUCH
    sizes = [weights_bytes(run, shared.mean_width) for shared, runs in needs for run in runs]
    if free < sum(sizes):
        raise ConfigError(
            f"results must have room on their disk, but got {free / 2**30:.2f} GiB free in {str(disk)!r} for {len(sizes)} SAEs of "
            f"{sum(sizes) / 2**30:.2f} GiB together. Free space, or choose another `--results`."
        )
    room = free - sum(sizes) * SAVED_COPIES - SPARE_BYTES
    _share([shared for shared, _ in needs], room, limit_gib)
    for shared, runs in needs:
        if slot_bytes is not None:
            model_bytes = shared.model_bytes if holds_model else 0
            check_fits([(run, shared.mean_width) for run in runs], slot_bytes, max(shared.live_bytes, model_bytes))


def _share(inputs: Sequence[SharedActivations], room: int, limit_gib: float | None) -> None:
    """Set `n_stored` where not all activations fit: the first shards are stored, those of the first inputs first."""
    there = [stored_bytes(shared.cache) for shared in inputs]
    room = room + sum(there) if limit_gib is None else int(limit_gib * 2**30)
    for shared, n_bytes in zip(inputs, there, strict=True):
        n_fitting = max(0, room) // shared.shard_bytes
        shared.n_stored = None if n_fitting >= shared.n_shards else n_fitting
        room -= max(n_bytes, min(n_fitting, shared.n_shards) * shared.shard_bytes)
