"""The cache of training activations: one safetensors file a shard, its statistics beside it, a manifest over all.

    train-00000.safetensors   tensor "x" [N, d_in], in the precision asked for; of pairs [N, d_in + d_out], the input's values first
    train-00000.json          statistics; its presence says that the shard is complete
    manifest.json             written by `finish`: what a `Stream` needs to know

Any number of workers may harvest into one directory: a shard is a function of the source and its index, files appear whole
or not at all, and a shard that is there is never made again. Every file has a checksum (`sae_core.files`) that is looked at when it is
opened. What is damaged can be made again: `remove_damaged`, then as for what is missing.

Where the disk is too small, shards from some number on leave their statistics only; a stream makes their rows again when it reaches them.
"""

import math
import os
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from sae_core.activations.files import save_tensors
from sae_core.activations.source import ActivationSource
from sae_core.errors import ConfigError, DamagedFileError
from sae_core.files import check_tensors, read_json, write_json

T = TypeVar("T")

ROWS_AT_A_TIME = 1024
"""Rows that are summed at a time."""
SAME_SHARD = 1e-3
"""Largest relative difference between the norms of a shard made twice: processors differ in the last digits."""
OUTLIER_FACTOR = 100.0
"""A row is an outlier where its squared distance from the mean is this many times the median one: a norm ten times the usual."""


@dataclass(frozen=True, slots=True)
class ShardStats:
    """Sums over the rows of a shard, in float64."""

    n_tokens: int
    norm_sum: float
    """Sum of the rows' Euclidean norms; of pairs, those of the input."""
    x_sum: list[float]
    """Sum of the rows, [d_in], of pairs [d_in + d_out]."""
    outlier_rows: int
    """Rows whose squared distance from the shard's mean is more than OUTLIER_FACTOR times the median one."""
    outlier_variance: float
    """Sum of the squared distances of those rows."""
    variance: float
    """Sum of the squared distances of all rows."""
    target_norm_sum: float | None = None
    """Of pairs: sum of the Euclidean norms of the targets."""
    part_norm_sums: list[float] | None = None
    """Of several hook points side by side: sum of the Euclidean norms at each."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a complete cache holds."""

    n_tokens: int
    d_in: int
    dtype: str
    scale: float
    """Factor that makes E||x|| = sqrt(d_in)."""
    mean: list[float]
    """Mean of the rows, unscaled, [d_in], of pairs [d_in + d_out]."""
    shard_tokens: list[int]
    """Rows of each shard."""
    activations_hash: str
    """The source's fingerprint."""
    outlier_rows: int
    """Rows far from all others, as attention sinks are; see `ShardStats`."""
    outlier_share: float
    """Their part of the variance of all rows."""
    d_out: int | None = None
    """Width of what is reconstructed, in a cache of pairs: rows are [d_in + d_out]."""
    target_scale: float | None = None
    """Of pairs: factor that makes E||y|| = sqrt(d_out), y the last d_out values of a row."""
    parts: dict[str, int] | None = None
    """Hook point -> width, where rows are the activations of several side by side."""
    part_scales: list[float] | None = None
    """Of those: factor at each hook point that makes E||x|| there the square root of its width."""

    @property
    def target_mean(self) -> list[float]:
        """Mean of what is reconstructed, unscaled: of x, or of the target."""
        return self.mean[self.d_in :] if self.d_out else self.mean


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


def stored_bytes(directory: Path) -> int:
    """Size of all shards that are there."""
    if not Path(directory).is_dir():
        return 0
    with os.scandir(directory) as entries:
        return sum(entry.stat().st_size for entry in entries if entry.name.startswith("train-") and entry.name.endswith(".safetensors"))


def _stats_path(directory: Path, index: int) -> Path:
    return shard_path(directory, index).with_suffix(".json")


def write_shard(
    directory: Path,
    index: int,
    x: Float[Tensor, "N width"],
    dtype: str,
    *,
    stored: bool = True,
    d_out: int | None = None,
    widths: Collection[int] = (),
) -> ShardStats:
    """Store the rows of one shard, and their statistics as stored.

    Args:
        dtype: float32, float16 or bfloat16.
        d_out: width of the targets, the last values of each row of pairs.
        widths: of several hook points side by side.
        stored: False for the statistics alone.

    Raises:
        ConfigError: a value is not finite, or not in `dtype`.
    """
    in_dtype = x.to(getattr(torch, dtype))
    rows = in_dtype.float()
    # A sum over all rows at once in float64 takes five times as long: it converts what has left the cache.
    x_sum = torch.stack([some.double().sum(dim=0) for some in rows.split(ROWS_AT_A_TIME)]).sum(dim=0)
    if not bool(x_sum.isfinite().all()):  # in float64 it is finite if and only if every value is
        raise _not_finite(x, index, dtype)
    mean = x_sum / len(rows)
    distances = torch.cat([some.double().sub_(mean).square_().sum(dim=1) for some in rows.split(ROWS_AT_A_TIME)])
    outliers = distances[distances > OUTLIER_FACTOR * distances.median()]
    stats = ShardStats(
        n_tokens=len(rows),
        norm_sum=_norm_sum(_input(rows, d_out)),
        x_sum=x_sum.tolist(),
        outlier_rows=len(outliers),
        outlier_variance=float(outliers.sum()),
        variance=float(distances.sum()),
        target_norm_sum=_norm_sum(rows[:, -d_out:]) if d_out else None,
        part_norm_sums=[_norm_sum(part) for part in rows.split(list(widths), dim=1)] if widths else None,
    )
    if stored:
        save_tensors(shard_path(directory, index), {"x": in_dtype.contiguous()})
    write_json(_stats_path(directory, index), _given(stats))
    return stats


def make_again(source: ActivationSource, directory: Path, index: int, dtype: str) -> Float[Tensor, "N width"]:
    """The rows of a shard that left its statistics only, as they would have been stored.

    Raises:
        ConfigError: they are not those that the statistics are of.
    """
    with torch.no_grad():
        x = source.shard(directory, index).to(getattr(torch, dtype))
        stats, norm_sum = _read(_stats_path(directory, index), ShardStats), _norm_sum(_input(x, source.d_out).float())
    if len(x) != stats.n_tokens or not abs(norm_sum - stats.norm_sum) <= SAME_SHARD * stats.norm_sum:
        raise ConfigError(
            f"a shard must be the same each time it is made, but shard {index} of {str(directory)!r} now has {len(x)} rows with norms that "
            f"sum to {norm_sum:.6g}, instead of {stats.n_tokens} and {stats.norm_sum:.6g}. Correct the source, or remove the directory and "
            "launch again."
        )
    return x


def _norm_sum(rows: Float[Tensor, "N d_in"]) -> float:
    return float(rows.norm(dim=1).double().sum())


def _input(rows: Float[Tensor, "N width"], d_out: int | None) -> Float[Tensor, "N d_in"]:
    """The input of pairs; else the rows."""
    return rows[:, :-d_out] if d_out else rows


def _given(entry: ShardStats | Manifest) -> dict[str, Any]:
    """What is written of it: fields of pairs only where there are some."""
    return {name: value for name, value in asdict(entry).items() if value is not None}


def _not_finite(x: Float[Tensor, "N width"], index: int, dtype: str) -> ConfigError:
    broken = (~x.isfinite().all(dim=1)).nonzero().flatten()
    if not len(broken):
        return ConfigError(
            f"activations must be finite in `data.activations_dtype`, but got {float(x.abs().max()):.4g} in shard {index} with {dtype}, "
            f"whose largest value is {torch.finfo(getattr(torch, dtype)).max:.4g}. Set `data.activations_dtype: float32`."
        )
    return ConfigError(
        f"activations must be finite, but got NaN or infinity in {len(broken)} of the {len(x)} rows of shard {index}, first in row "
        f"{int(broken[0])}. Correct their source: the model's weights, or its precision where that is below float32."
    )


def remove_damaged(directory: Path) -> list[Path]:
    """Remove the files of a cache that are damaged, so that a harvest makes them again. Returns them."""
    damaged = damaged_files(directory)
    for path in damaged:
        path.unlink(missing_ok=True)
    return damaged


def damaged_files(directory: Path) -> list[Path]:
    """The files of a cache that are not what was written, or that an earlier version wrote without a checksum; all are read."""
    paths = [*Path(directory).glob("*.safetensors"), *Path(directory).glob("*.json")]
    with ThreadPoolExecutor(os.cpu_count()) as threads:  # hashing lets other threads run
        return sorted(path for path, is_sound in zip(paths, threads.map(_is_sound, paths), strict=True) if not is_sound)


def _is_sound(path: Path) -> bool:
    try:
        if path.suffix == ".safetensors":
            return check_tensors(path)
        _read(path, Manifest if path == _manifest_path(path.parent) else ShardStats)
    except FileNotFoundError:  # removed meanwhile
        return True
    except DamagedFileError:
        return False
    return True


def is_complete(directory: Path, index: int, n_stored: int | None = None) -> bool:
    """Whether shard `index` need not be made.

    Args:
        n_stored: shards from this number on need their statistics only; None: all are stored.
    """
    return _stats_path(directory, index).exists() and (not _is_stored(index, n_stored) or shard_path(directory, index).exists())


def _is_stored(index: int, n_stored: int | None) -> bool:
    return n_stored is None or index < n_stored


def harvest(
    source: ActivationSource,
    directory: Path,
    *,
    indices: Iterable[int] | None = None,
    n_stored: int | None = None,
    on_shard: Callable[[int, int], None] | None = None,
) -> None:
    """Make the shards that are missing, after `source.prepare(directory)`.

    Args:
        indices: which shards; all by default.
        n_stored: shards from this number on leave their statistics only; None: all are stored.
        on_shard: called with the index and the number of tokens of each shard, made now or before.

    Raises:
        ConfigError: activations do not fit the precision asked for.
    """
    for index in range(source.n_shards(directory)) if indices is None else indices:
        if is_complete(directory, index, n_stored):
            stats = _read(_stats_path(directory, index), ShardStats)
        else:
            x, stored = source.shard(directory, index), _is_stored(index, n_stored)
            stats = _write(source, directory, index, x, stored=stored)
        if on_shard:
            on_shard(index, stats.n_tokens)


def harvest_together(sources: Sequence[tuple[ActivationSource, Path, int | None]], index: int) -> list[int]:
    """Make shard `index` of sources with one `pass_key`, from one pass, where it is missing. Returns its tokens, of each source.

    Args:
        sources: each with its directory and `n_stored`; the first one's model runs.

    Raises:
        ConfigError: activations do not fit the precision asked for.
    """
    missing = [entry for entry in sources if not is_complete(entry[1], index, entry[2])]
    if missing:
        first, directory, _ = sources[0]
        rows = first.shards(directory, index, [source for source, _, _ in missing])
        for (source, directory, n_stored), x in zip(missing, rows, strict=True):
            stored = _is_stored(index, n_stored)
            _write(source, directory, index, x, stored=stored)
    return [_read(_stats_path(directory, index), ShardStats).n_tokens for _, directory, _ in sources]


def _write(source: ActivationSource, directory: Path, index: int, x: Float[Tensor, "N width"], *, stored: bool) -> ShardStats:
    widths = source.parts.values()
    return write_shard(directory, index, x, source.activations_dtype, stored=stored, d_out=source.d_out, widths=widths)


def finish(source: ActivationSource, directory: Path, n_stored: int | None = None) -> Manifest:
    """Write the manifest, once every shard is there. Sums are taken in shard order: the same for any number of workers.

    Args:
        n_stored: as `harvest` was given.

    Raises:
        ValueError: shards are missing.
        ConfigError: all activations are 0.
    """
    indices = range(source.n_shards(directory))
    missing = [index for index in indices if not is_complete(directory, index, n_stored)]
    if missing:
        raise ValueError(f"every shard must be harvested before `finish`, but got missing={missing} of {len(indices)}. Harvest them.")
    stats = [_read(_stats_path(directory, index), ShardStats) for index in indices]
    n_tokens = sum(shard.n_tokens for shard in stats)
    mean_norm = sum(shard.norm_sum for shard in stats) / n_tokens
    target_norm = sum(shard.target_norm_sum or 0.0 for shard in stats) / n_tokens
    variance = sum(shard.variance for shard in stats)
    d_out, parts = source.d_out, source.parts
    part_norms = [sum(sums) / n_tokens for sums in zip(*(shard.part_norm_sums or [] for shard in stats), strict=True)]
    if not mean_norm or (d_out and not target_norm) or not all(part_norms):
        raise ConfigError(
            f"activations must not all be 0, but got {n_tokens} rows of zeros. Choose another hook point, or check the model's weights."
        )
    x_sum = torch.tensor([shard.x_sum for shard in stats], dtype=torch.float64).sum(dim=0)
    d_in = len(x_sum) - (d_out or 0)
    manifest = Manifest(
        n_tokens=n_tokens,
        d_in=d_in,
        dtype=source.activations_dtype,
        scale=math.sqrt(d_in) / mean_norm,
        mean=(x_sum / n_tokens).tolist(),
        shard_tokens=[shard.n_tokens for shard in stats],
        activations_hash=source.activations_hash(),
        outlier_rows=sum(shard.outlier_rows for shard in stats),
        outlier_share=sum(shard.outlier_variance for shard in stats) / variance if variance else 0.0,
        d_out=d_out,
        target_scale=math.sqrt(d_out) / target_norm if d_out else None,
        parts=parts or None,
        part_scales=[math.sqrt(width) / norm for width, norm in zip(parts.values(), part_norms, strict=True)] if parts else None,
    )
    write_json(_manifest_path(directory), _given(manifest))
    return manifest


def read_manifest(directory: Path) -> Manifest:
    """The manifest of a complete cache.

    Raises:
        FileNotFoundError: the cache is not complete.
        DamagedFileError: it is not what was written.
    """
    return _read(_manifest_path(directory), Manifest)


def _read(path: Path, kind: Callable[..., T]) -> T:
    """An object of this kind from the JSON file that holds its fields."""
    try:
        return kind(**read_json(path))
    except TypeError as error:
        raise DamagedFileError.of(path, error, "Launch again: it is created again.") from error
