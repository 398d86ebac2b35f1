"""The cache of training activations: one safetensors file a shard, its statistics beside it, a manifest over all.

    train-00000.safetensors   tensor "x" [N, d_in], in the precision asked for
    train-00000.json          statistics; its presence says that the shard is complete
    manifest.json             written by `finish`: what a `Stream` needs to know

Any number of workers may harvest into one directory: a shard is a function of the source and its index, files appear whole
or not at all, and a shard that is there is never made again.
"""

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from sae_core.activations.files import save_tensors
from sae_core.activations.source import ActivationSource
from sae_core.errors import ConfigError
from sae_core.records import write_json

ROWS_AT_A_TIME = 1024
"""Rows that are summed at a time."""


@dataclass(frozen=True, slots=True)
class ShardStats:
    """Sums over the rows of a shard, in float64."""

    n_tokens: int
    norm_sum: float
    """Sum of the rows' Euclidean norms."""
    x_sum: list[float]
    """Sum of the rows, [d_in]."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a complete cache holds."""

    n_tokens: int
    d_in: int
    dtype: str
    scale: float
    """Factor that makes E||x|| = sqrt(d_in)."""
    mean: list[float]
    """Mean of x, unscaled, [d_in]."""
    shard_tokens: list[int]
    """Rows of each shard."""
    activations_hash: str
    """The source's fingerprint."""


def cache_directory(root: Path, fingerprint: str) -> Path:
    """Where the activations with a source's fingerprint lie, below the directory of all caches."""
    return Path(root) / fingerprint[:24]


def was_finished(directory: Path) -> bool:
    """Whether the cache was complete once; shards may have been removed since."""
    return _manifest_path(directory).exists()


def _manifest_path(directory: Path) -> Path:
    return Path(directory) / "manifest.json"


def shard_path(directory: Path, index: int) -> Path:
    """Where shard `index` lies."""
    return Path(directory) / f"train-{index:05d}.safetensors"


def _stats_path(directory: Path, index: int) -> Path:
    return shard_path(directory, index).with_suffix(".json")


def write_shard(directory: Path, index: int, x: Float[Tensor, "N d_in"], dtype: str) -> ShardStats:
    """Store the rows of one shard, and their statistics as stored.

    Args:
        dtype: float32, float16 or bfloat16.

    Raises:
        ConfigError: a value is not finite in `dtype`.
    """
    stored = x.to(getattr(torch, dtype))
    rows = stored.float()
    # A sum over all rows at once in float64 takes five times as long: it converts what has left the cache.
    x_sum = torch.stack([some.double().sum(dim=0) for some in rows.split(ROWS_AT_A_TIME)]).sum(dim=0)
    if not bool(x_sum.isfinite().all()):  # in float64 it is finite if and only if every value is
        raise ConfigError(
            f"activations must be finite in `data.activations_dtype`, but got {float(x.abs().max()):.4g} in shard {index} with {dtype}, "
            f"whose largest value is {torch.finfo(stored.dtype).max:.4g}. Set `data.activations_dtype: float32`."
        )
    stats = ShardStats(len(rows), float(rows.norm(dim=1).double().sum()), x_sum.tolist())
    save_tensors(shard_path(directory, index), {"x": stored.contiguous()})
    write_json(_stats_path(directory, index), asdict(stats))
    return stats


def is_complete(directory: Path, index: int) -> bool:
    """Whether shard `index` need not be made."""
    return _stats_path(directory, index).exists() and shard_path(directory, index).exists()


def harvest(
    source: ActivationSource,
    directory: Path,
    *,
    indices: Iterable[int] | None = None,
    on_shard: Callable[[int, int], None] | None = None,
) -> None:
    """Make the shards that are missing, after `source.prepare(directory)`.

    Args:
        indices: which shards; all by default.
        on_shard: called with the index and the number of tokens of each shard, made now or before.

    Raises:
        ConfigError: activations do not fit the precision asked for.
    """
    for index in range(source.n_shards(directory)) if indices is None else indices:
        if is_complete(directory, index):
            stats = _read_stats(directory, index)
        else:
            stats = write_shard(directory, index, source.shard(directory, index), source.activations_dtype)
        if on_shard:
            on_shard(index, stats.n_tokens)


def finish(source: ActivationSource, directory: Path) -> Manifest:
    """Write the manifest, once every shard is there. Sums are taken in shard order: the same for any number of workers.

    Raises:
        ValueError: shards are missing.
    """
    indices = range(source.n_shards(directory))
    missing = [index for index in indices if not is_complete(directory, index)]
    if missing:
        raise ValueError(f"every shard must be harvested before `finish`, but got missing={missing} of {len(indices)}. Harvest them.")
    stats = [_read_stats(directory, index) for index in indices]
    n_tokens = sum(shard.n_tokens for shard in stats)
    mean_norm = sum(shard.norm_sum for shard in stats) / n_tokens
    x_sum = torch.tensor([shard.x_sum for shard in stats], dtype=torch.float64).sum(dim=0)
    manifest = Manifest(
        n_tokens=n_tokens,
        d_in=len(x_sum),
        dtype=source.activations_dtype,
        scale=math.sqrt(len(x_sum)) / mean_norm,
        mean=(x_sum / n_tokens).tolist(),
        shard_tokens=[shard.n_tokens for shard in stats],
        activations_hash=source.fingerprint(),
    )
    write_json(_manifest_path(directory), asdict(manifest))
    return manifest


def read_manifest(directory: Path) -> Manifest:
    """The manifest of a complete cache.

    Raises:
        FileNotFoundError: the cache is not complete.
    """
    return Manifest(**json.loads(_manifest_path(directory).read_text()))


def _read_stats(directory: Path, index: int) -> ShardStats:
    return ShardStats(**json.loads(_stats_path(directory, index).read_text()))
