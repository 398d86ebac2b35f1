"""One pass over the held-out text: where every latent of an SAE is active, and how much.

A list of the active latents of all tokens is too long for memory where d_sae or the text is large, and short on a disk: 12 bytes per
active latent and token while the pass runs, 8 once it is sorted by latent. So it is written to a temporary directory, and everything
that is said about a latent is exact: no sample of its activations is taken. Memory holds a chunk of text, and a few numbers per latent.
Shape letters: N held-out tokens (special tokens excluded), E active latents of all tokens, W windows, T positions in a window.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sae_core.errors import ConfigError

if TYPE_CHECKING:
    from sae_core.activations.source import ActivationSource
    from sae_core.sae.base import SparseAutoencoder

Progress = Callable[[str, int, int], None]
"""Called with what is being done, and how much of how much is; of 0 where that is not known."""

ROWS = {"cpu": 2**9, "cuda": 2**13}
"""Most tokens encoded at a time."""
LATENTS = {"cpu": 2**23, "cuda": 2**28}
"""Most latents of all tokens encoded at a time: 32 MiB on the CPU, a few of which are in memory at once."""
SORTED_AT_A_TIME = 2**21
"""Entries sorted by latent at a time: 24 MiB."""
ENTRY = np.dtype([("latent", "<u4"), ("token", "<u4"), ("value", "<f4")])
BYTES_PER_ENTRY = ENTRY.itemsize + 8
"""On disk, before the unsorted list is removed."""


def unseen(what: str, done: int, total: int) -> None:
    """Progress that nobody looks at."""


@dataclass(frozen=True)
class LatentActivations:
    """Where every latent is active on the held-out text."""

    counts: NDArray[np.int64]
    """Tokens that each latent is active on, [d_sae]."""
    largest: NDArray[np.float32]
    """Largest activation of each latent, [d_sae]; 0 where it is never active."""
    squares: NDArray[np.float64]
    """Sum of the squared activations of each latent, [d_sae]."""
    n_tokens: int
    windows: NDArray[np.int32] | None
    """The text, [W, T]; None where there is none."""
    positions: NDArray[np.int64]
    """Where in the flattened windows each token is, [N]; its number where there is no text."""
    _offsets: NDArray[np.int64]
    _tokens: NDArray[np.uint32]
    _values: NDArray[np.float32]

    @property
    def d_sae(self) -> int:
        return len(self.counts)

    @property
    def density(self) -> NDArray[np.float64]:
        """Fraction of the tokens that each latent is active on, [d_sae]."""
        return self.counts / self.n_tokens

    def of(self, latent: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The tokens that a latent is active on, ascending, and its activations there."""
        some = slice(int(self._offsets[latent]), int(self._offsets[latent + 1]))
        return self._tokens[some].astype(np.int64), np.array(self._values[some])


def collect(
    sae: SparseAutoencoder, source: ActivationSource, cache: Path, *, l0: float | None = None, progress: Progress = unseen
) -> LatentActivations:
    """Run an SAE over all the held-out text of a source.

    Args:
        cache: the source's prepared cache.
        l0: how many latents are active on a token, where that is known: the disk is checked for room.

    Raises:
        ConfigError: the model or the text cannot be read, or the disk has no room.
    """
    d_sae, text = sae.d_sae, _Text()
    counts, squares = np.zeros(d_sae, np.int64), np.zeros(d_sae)
    largest = np.zeros(d_sae, np.float32)
    # The files have no name any more once they are mapped, so that none is left behind whatever ends the process.
    with tempfile.TemporaryDirectory(prefix="sae-sweep-latents-") as directory:
        _check_room((l0 or 0) * source.config.eval_tokens, Path(directory))
        unsorted = Path(directory) / "unsorted"
        with unsorted.open("wb") as file:
            for entries in _entries(sae, source, cache, text, progress):
                latents = entries["latent"]
                counts += np.bincount(latents, minlength=d_sae)
                squares += np.bincount(latents, weights=entries["value"].astype(float) ** 2, minlength=d_sae)
                np.maximum.at(largest, latents, entries["value"])
                entries.tofile(file)
        tokens, values, offsets = _by_latent(unsorted, counts)
    windows, positions = text.joined()
    return LatentActivations(counts, largest, squares, text.n_tokens, windows, positions, offsets, tokens, values)


class _Text:
    """The text of a pass, chunk by chunk."""

    def __init__(self) -> None:
        self.n_tokens = 0
        self._windows: list[NDArray[np.int32]] = []
        self._positions: list[NDArray[np.int64]] = []
        self._n_before = 0

    def add(self, chunk: Any) -> None:
        """Note the text of a `HeldOut`."""
        n = len(chunk.x)
        if chunk.tokens is None:
            self._positions.append(np.arange(self.n_tokens, self.n_tokens + n))
        else:
            self._windows.append(chunk.tokens.numpy().astype(np.int32))
            self._positions.append(np.flatnonzero(chunk.keep.numpy()) + self._n_before)
            self._n_before += chunk.tokens.numel()
        self.n_tokens += n

    def joined(self) -> tuple[NDArray[np.int32] | None, NDArray[np.int64]]:
        return np.concatenate(self._windows) if self._windows else None, np.concatenate(self._positions)


def rows_at_a_time(device: str, d_sae: int) -> int:
    """Tokens to encode at a time."""
    return max(1, min(ROWS[device], LATENTS[device] // d_sae))


def _entries(sae: SparseAutoencoder, source: ActivationSource, cache: Path, text: _Text, progress: Progress) -> Iterator[NDArray[Any]]:
    """The active latents of the held-out tokens, some rows at a time, in the order of the text."""
    n_chunks = source.n_eval_chunks(cache)
    for index in range(n_chunks):
        chunk = source.heldout(cache, index)
        first = text.n_tokens
        text.add(chunk)
        for rows in chunk.x.split(rows_at_a_time(chunk.x.device.type, sae.d_sae)):
            active, values = sae.active(rows)
            entries = np.empty(len(values), ENTRY)
            entries["latent"], entries["token"] = active.indices.cpu().numpy(), active.tokens.cpu().numpy() + first
            entries["value"] = values.float().cpu().numpy()
            yield entries
            first += len(rows)
        progress("reading held-out text", index + 1, n_chunks)


def _by_latent(unsorted: Path, counts: NDArray[np.int64]) -> tuple[NDArray[np.uint32], NDArray[np.float32], NDArray[np.int64]]:
    """The same entries latent by latent (a counting sort, on disk), and where those of each latent begin."""
    offsets = np.concatenate([np.zeros(1, np.int64), counts.cumsum()])
    shape = max(int(offsets[-1]), 1)  # no file of length 0 can be mapped
    tokens = np.memmap(unsorted.with_name("tokens"), np.uint32, "w+", shape=shape)
    values = np.memmap(unsorted.with_name("values"), np.float32, "w+", shape=shape)
    next_free = offsets[:-1].copy()
    with unsorted.open("rb") as file:
        while len(entries := np.fromfile(file, ENTRY, SORTED_AT_A_TIME)):
            entries = entries[np.argsort(entries["latent"], kind="stable")]
            latents, starts, n_each = np.unique(entries["latent"], return_index=True, return_counts=True)
            places = np.repeat(next_free[latents] - starts, n_each) + np.arange(len(entries))
            tokens[places], values[places] = entries["token"], entries["value"]
            next_free[latents] += n_each
    return tokens, values, offsets


def _check_room(n_entries: float, directory: Path) -> None:
    """Make sure that the disk holds the pass."""
    needed, free = n_entries * BYTES_PER_ENTRY * 1.1, shutil.disk_usage(directory).free
    if needed > free:
        raise ConfigError(
            f"temporary files need {needed / 2**30:.1f} GiB for the active latents of the held-out tokens, but got {free / 2**30:.1f} GiB "
            f"free in {str(directory.parent)!r}. Set TMPDIR to a directory on another disk."
        )
