"""Batches of activations in a reproducible random order, from shards on disk or from a tensor.

The order is a function of `data_seed` and the sizes of the shards alone: in each epoch shards come in a random order, and the
rows of each in a random order. Shards are samples of the whole text, so this mixes all of it. Batches are cut from that endless
sequence one after another: batch n starts at row n * batch_size, so a stream resumes anywhere without reading what it skips.
Batches come in the units of training: see `sae_core.sae.normalization`.
Shape letters: B tokens in a batch, N tokens in a shard, d_in width of the activations, d_out that of what transcoders reconstruct from
them; the width of a row is d_in, of a pair d_in + d_out.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from types import MappingProxyType
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_core.activations.files import open_tensors
from sae_core.activations.local import LocalCopies
from sae_core.activations.shards import make_again, read_manifest, shard_path
from sae_core.activations.source import ActivationSource
from sae_core.errors import ConfigError
from sae_core.sae.normalization import Normalization, normalization_of, pair_normalization, side_by_side
from sae_core.seeds import seed_of


@runtime_checkable
class ActivationStream(Protocol):
    """What training reads from."""

    d_in: int
    """Width of the activations."""
    d_out: int | None = None
    """Width of what transcoders reconstruct from them; None: the stream is of activations, not of pairs."""
    normalization: Normalization
    """What was applied to the activations; a `PairNormalization` in a stream of pairs."""

    def batches(self, start: int = 0) -> Iterator[Float[Tensor, "B width"]]:
        """Normalized float32 batches without end, from batch `start` on: the same ones as if the earlier had been read.

        [B, d_in]; of pairs [B, d_in + d_out], the input's values first.
        """
        ...


def split_pairs(
    batch: Float[Tensor, "B width"], stream: ActivationStream
) -> tuple[Float[Tensor, "B d_in"], Float[Tensor, "B d_out"] | None]:
    """What an SAE or transcoder reads of a batch, and what a transcoder is to make of it; the latter is None in a stream of activations."""
    if stream.d_out is None:
        return batch, None
    return batch[:, : stream.d_in].contiguous(), batch[:, stream.d_in :].contiguous()


def shuffled_rows(shard_tokens: Sequence[int], data_seed: int, start: int) -> Iterator[tuple[int, Int[Tensor, " N"]]]:
    """The endless order of rows: pairs of a shard and of row numbers in it, from row `start` of the sequence on."""
    epoch, skip = divmod(start, sum(shard_tokens))
    while True:
        order = torch.Generator().manual_seed(seed_of("shards", data_seed, epoch))
        for shard in torch.randperm(len(shard_tokens), generator=order).tolist():
            if skip >= shard_tokens[shard]:
                skip -= shard_tokens[shard]
                continue
            rows = torch.Generator().manual_seed(seed_of("rows", data_seed, epoch, shard))
            yield shard, torch.randperm(shard_tokens[shard], generator=rows)[skip:]
            skip = 0
        epoch += 1


class BatchStream(ABC):
    """Batches cut from an endless order of rows, which a subclass makes from blocks in memory.

    Args:
        mean: mean activation, unscaled; of pairs that of the input, then that of the target.
        scale: factor that makes E||x|| = sqrt(d_in).
        target_scale: of pairs, the same of the target; else None.
        parts: hook point -> width, where activations are those of several side by side; else empty.
        part_scales: the same at each hook point.
    """

    normalization: Normalization

    def __init__(
        self,
        mean: Float[Tensor, " width"],
        scale: float,
        target_scale: float | None,
        *,
        d_in: int,
        batch_size: int,
        normalize_activations: str,
        device: str | torch.device,
        parts: Mapping[str, int] = MappingProxyType({}),
        part_scales: Sequence[float] = (),
    ) -> None:
        if batch_size < 1:
            raise ConfigError(f"a stream needs batches of at least one row, but got {batch_size=}.")
        self.batch_size = batch_size
        self.d_in = d_in
        self.d_out = len(mean) - d_in or None
        self.mean = mean
        """Mean activation, unscaled, [d_in]; of pairs [d_in + d_out]."""
        self._device = torch.device(device)
        if parts:
            normalization: Normalization = side_by_side(normalize_activations, part_scales, self._first_rows, parts)
        elif target_scale is None:
            normalization = normalization_of(normalize_activations, scale, self._first_rows)
        else:
            normalization = pair_normalization(normalize_activations, (scale, target_scale), self._first_rows, d_in)
        self.normalization = normalization.to(self._device)

    @abstractmethod
    def _first_rows(self) -> Iterator[Float[Tensor, "N width"]]:
        """Rows that statistics are of, as many as there are."""

    @abstractmethod
    def _ordered(self, start: int) -> Iterator[tuple[Float[Tensor, "N width"], Int[Tensor, " M"]]]:
        """Blocks of rows, unscaled, in any precision, on the CPU, each with the rows of it that come next: without end, from row `start` of
        the whole order on."""

    def batches(self, start: int = 0) -> Iterator[Float[Tensor, "B width"]]:
        """Normalized float32 batches without end, from batch `start` on: the same ones as if the earlier had been read."""
        rows = self._rows(start)
        for batch in self._prefetched(rows) if self._device.type == "cuda" else rows:
            yield self.normalization(batch.float())

    def _rows(self, start: int) -> Iterator[Float[Tensor, "B width"]]:
        """Batches as they are stored."""
        pieces: list[Tensor] = []
        missing = self.batch_size
        for x, order in self._ordered(start * self.batch_size):
            while len(order):
                pieces.append(x.index_select(0, order[:missing]))
                order = order[missing:]
                missing -= len(pieces[-1])
                if not missing:
                    yield pieces[0] if len(pieces) == 1 else torch.cat(pieces)
                    pieces, missing = [], self.batch_size

    def _prefetched(self, rows: Iterator[Tensor]) -> Iterator[Tensor]:
        """Send each batch to the GPU while the one before is worked on."""
        ahead = None
        for batch in rows:
            ready, ahead = ahead, batch.pin_memory().to(self._device, non_blocking=True)
            if ready is not None:
                yield ready


class _ShuffledStream(BatchStream):
    """Batches of shuffled rows of shards; a subclass says where these are."""

    def __init__(
        self,
        shard_tokens: Sequence[int],
        mean: Float[Tensor, " width"],
        scale: float,
        target_scale: float | None,
        *,
        d_in: int,
        batch_size: int,
        data_seed: int,
        normalize_activations: str,
        device: str | torch.device,
        parts: Mapping[str, int] = MappingProxyType({}),
        part_scales: Sequence[float] = (),
    ) -> None:
        self.n_tokens = sum(shard_tokens)
        """Tokens in an epoch."""
        if self.n_tokens < 1:
            raise ConfigError(f"a stream needs at least one token, but got n_tokens={self.n_tokens}.")
        self._shard_tokens = tuple(shard_tokens)
        self._data_seed = data_seed
        super().__init__(
            mean,
            scale,
            target_scale,
            d_in=d_in,
            batch_size=batch_size,
            normalize_activations=normalize_activations,
            device=device,
            parts=parts,
            part_scales=part_scales,
        )

    def _first_rows(self) -> Iterator[Float[Tensor, "N width"]]:
        """All shards, in order."""
        return (self._shard(index) for index in range(len(self._shard_tokens)))

    @abstractmethod
    def _shard(self, index: int) -> Float[Tensor, "N width"]:
        """Rows of one shard, unscaled, in any precision, on the CPU."""

    def _ordered(self, start: int) -> Iterator[tuple[Float[Tensor, "N width"], Int[Tensor, " M"]]]:
        for shard, order in shuffled_rows(self._shard_tokens, self._data_seed, start):
            yield self._shard(shard), order


KEPT_SHARDS = 2
"""Shards made again that a stream keeps: the first two, in which thresholds are calibrated, are read once per run of a group."""


class Stream(_ShuffledStream):
    """Activations harvested into `directory`, memory-mapped: workers on one machine share the pages they read.

    Args:
        directory: a complete cache.
        source: makes the shards again that are not stored; None: all are.
        local: copies of the shards to read instead; see `activations.local`.
        normalize_activations: as in the `TrainConfig` of the runs that read this stream.
        device: where batches go.

    Raises:
        ConfigError: the activations cannot be whitened.
    """

    def __init__(
        self,
        directory: Path,
        *,
        batch_size: int,
        data_seed: int = 0,
        normalize_activations: str = "expected_norm",
        device: str | torch.device = "cpu",
        source: ActivationSource | None = None,
        local: LocalCopies | None = None,
    ) -> None:
        manifest = read_manifest(directory)
        self._directory, self._local = Path(directory), local
        self._live = lru_cache(KEPT_SHARDS)(partial(make_again, source, directory, dtype=manifest.dtype)) if source else None
        self.activations_hash = manifest.activations_hash
        super().__init__(
            manifest.shard_tokens,
            torch.tensor(manifest.mean, dtype=torch.float32),
            manifest.scale,
            manifest.target_scale,
            d_in=manifest.d_in,
            batch_size=batch_size,
            data_seed=data_seed,
            normalize_activations=normalize_activations,
            device=device,
            parts=manifest.parts or {},
            part_scales=manifest.part_scales or (),
        )

    def _shard(self, index: int) -> Float[Tensor, "N width"]:
        path = shard_path(self._directory, index)
        if self._live and not path.exists():
            return self._live(index)
        with open_tensors(self._local.path(path) if self._local else path) as file:
            x: Tensor = file.get_tensor("x")
            return x


class TensorStream(_ShuffledStream):
    """Activations that are in memory: one's own, or a test's.

    Args:
        x: on the CPU, unscaled, in any precision; batches are float32.
        target: what transcoders reconstruct from x, row by row, likewise; None: the stream is of x alone.
        parts: for crosscoders: name of each hook point whose activations are in x side by side -> its width.
        normalize_activations: as in the `TrainConfig` of the runs that read this stream.
        device: where batches go.

    Raises:
        ConfigError: there is no row, the shape is another, a value is not finite in float32, all are 0, whitening is impossible, or
            `target` has another number of rows; or widths do not add up to that of x, or there are targets beside them.
    """

    def __init__(
        self,
        x: Float[Tensor, "N d_in"],
        *,
        target: Float[Tensor, "M d_out"] | None = None,
        parts: Mapping[str, int] | None = None,
        batch_size: int,
        data_seed: int = 0,
        normalize_activations: str = "expected_norm",
        device: str | torch.device = "cpu",
    ) -> None:
        read = [readable(x, "activations")] + ([] if target is None else [readable(target, "targets")])
        if len({len(part) for part in read}) > 1:
            raise ConfigError(
                f"every row of activations must have its target, but got {len(read[0])} rows and {len(read[1])} targets. Pair them."
            )
        if parts and (target is not None or min(parts.values()) < 1 or sum(parts.values()) != x.shape[1]):
            raise ConfigError(
                f"`parts` must be widths that add up to that of the activations, without targets, but got {dict(parts)} for {x.shape[1]} "
                f"{'columns' if target is None else 'columns and targets'}. Correct them."
            )
        scales = [scale_of(part) for part in read]
        self._x = read[0] if target is None else torch.cat(read, dim=1)
        super().__init__(
            [len(x)],
            self._x.mean(dim=0, dtype=torch.float32),
            scales[0],
            scales[1] if target is not None else None,
            d_in=x.shape[1],
            batch_size=batch_size,
            data_seed=data_seed,
            normalize_activations=normalize_activations,
            device=device,
            parts=parts or {},
            part_scales=[scale_of(readable(part)) for part in read[0].split(list(parts.values()), dim=1)] if parts else (),
        )

    def _shard(self, index: int) -> Float[Tensor, "N width"]:
        return self._x


def readable(x: Tensor, what: str = "activations") -> Float[Tensor, "N width"]:
    """Rows in a precision that training can read: float16 and bfloat16 as they are, others as float32.

    Raises:
        ConfigError: there are none that training can read.
    """
    if x.ndim != 2 or x.is_complex():
        raise ConfigError(f"{what} must be real numbers of shape [N, d_in], but got {x.dtype} of {list(x.shape)}. Flatten them.")
    x = x.detach() if x.dtype in (torch.float16, torch.bfloat16) else x.detach().float()
    broken = (~x.isfinite().all(dim=1)).nonzero().flatten()
    mean_norm = _mean_norm(x)
    if len(broken) or not 0 < mean_norm < math.inf:
        problem = (
            f"{len(broken)} of {len(x)} rows that are not, the first of them row {int(broken[0])}"
            if len(broken)
            else f"a mean norm of {mean_norm:g}"
        )
        raise ConfigError(
            f"{what} must be finite and have norms above 0 that float32 can hold, but got {problem}. "
            "Leave such rows out, scale them or correct their source."
        )
    return x


def scale_of(x: Float[Tensor, "N width"]) -> float:
    """Factor that makes E||x|| = sqrt(width)."""
    return math.sqrt(x.shape[1]) / _mean_norm(x)


def _mean_norm(x: Float[Tensor, "N width"]) -> float:
    return float(x.float().norm(dim=1).double().mean()) if len(x) else 1.0  # no rows: refused by the stream
