"""Batches from an iterator of activations: what a model gives while it runs, with no cache in between.

The rows of the iterator, one after the other, are cut into blocks of `buffer_rows`, and each block is shuffled: only one is in memory at a
time, and batch n is a function of the rows, `data_seed` and `buffer_rows` alone. So a stream begins anywhere, as a run that resumes from
its checkpoint asks for: `seek` goes straight to a row; without it the rows before are made again and dropped. An iterator that ends is
started again.
Shape letters: B tokens in a batch, N rows, d_in width of the activations, width d_in or, of pairs, d_in + d_out.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import count
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_core.activations.stream import BatchStream, readable, scale_of
from sae_core.errors import ConfigError
from sae_core.seeds import seed_of

Yielded = Tensor | tuple[Tensor, Tensor]
"""Activations [n, d_in]; or pairs of these and their targets [n, d_out]. Any number of rows, on any device."""
BEGINNING_ROWS = 64
"""Rows that are compared when an iterator is started again."""
SAME_ROWS = 1e-3
"""Largest relative difference of the first rows of an iterator that is started again: GPUs differ in the last digits."""
STATISTICS_ROWS = 65_536
"""First rows that the scale and the mean are estimated on."""


class IteratorStream(BatchStream):
    """Activations that an iterator yields, shuffled in a buffer.

    Args:
        activations: makes the iterator, each time the same one: a generator function, or a list, DataLoader or other object that can be
            iterated over again. It yields tensors [n, d_in], or pairs of tensors for transcoders, unscaled.
        seek: of a row number, an iterator over the same rows from there on, counted through all repetitions. None: the rows before it are
            made again and dropped.
        buffer_rows: rows that are shuffled together: 65,536 rows of width 768 take 200 MB. Rows of one document should be much fewer.
        statistics_rows: first rows that scale and mean are estimated on.
        normalize_activations: as in the `TrainConfig` of the runs that read this stream.
        device: where batches go.

    Raises:
        ConfigError: it yields nothing, something else, values that are not finite, or can be iterated over only once.
    """

    def __init__(
        self,
        activations: Callable[[], Iterable[Yielded]] | Iterable[Yielded],
        *,
        batch_size: int,
        buffer_rows: int = 65_536,
        seek: Callable[[int], Iterable[Yielded]] | None = None,
        data_seed: int = 0,
        normalize_activations: str = "expected_norm",
        statistics_rows: int = STATISTICS_ROWS,
        device: str | torch.device = "cpu",
    ) -> None:
        if isinstance(activations, Iterator):
            raise ConfigError(
                "activations must be something that makes an iterator, so that it can be started again, but got "
                f"{type(activations).__name__}, which can be read once. Give the generator function itself, without calling it, or a list "
                "or DataLoader."
            )
        for name, value in {"buffer_rows": buffer_rows, "statistics_rows": statistics_rows}.items():
            if value < 1:
                raise ConfigError(f"`{name}` must be at least 1, but got {name}={value}. Raise it.")
        self._make = activations if callable(activations) else lambda: activations
        self._seek, self._buffer_rows, self._data_seed = seek, buffer_rows, data_seed
        self._widths: tuple[int, ...] | None = None
        self._statistics: Tensor = torch.cat(list(_up_to(statistics_rows, (rows for _, rows in self._once(self._make(), 0)))))
        assert self._widths, "rows were read"
        self._beginning: Tensor = self._statistics[:BEGINNING_ROWS].clone()
        parts = [
            readable(part, what)
            for part, what in zip(self._statistics.split(list(self._widths), dim=1), ("activations", "targets"), strict=False)
        ]
        scales = [scale_of(part) for part in parts]
        super().__init__(
            self._statistics.mean(dim=0, dtype=torch.float32),
            scales[0],
            scales[1] if len(scales) > 1 else None,
            d_in=self._widths[0],
            batch_size=batch_size,
            normalize_activations=normalize_activations,
            device=device,
        )
        del self._statistics

    def _first_rows(self) -> Iterator[Float[Tensor, "N width"]]:
        yield self._statistics

    def _ordered(self, start: int) -> Iterator[tuple[Float[Tensor, "N width"], Int[Tensor, " M"]]]:
        block, skip = divmod(start, self._buffer_rows)
        for number, rows in enumerate(self._blocks(block * self._buffer_rows), start=block):
            generator = torch.Generator().manual_seed(seed_of("rows", self._data_seed, number))
            yield rows, torch.randperm(self._buffer_rows, generator=generator)[skip:]
            skip = 0

    def _blocks(self, start: int) -> Iterator[Float[Tensor, "N width"]]:
        """The rows from `start` on, a buffer at a time."""
        pieces: list[Tensor] = []
        missing = self._buffer_rows
        for first, rows in self._endless(start):
            rows = rows[max(0, start - first) :]
            while len(rows):
                pieces.append(rows[:missing])
                rows = rows[missing:]
                missing -= len(pieces[-1])
                if not missing:
                    yield torch.cat(pieces)
                    pieces, missing = [], self._buffer_rows

    def _endless(self, start: int) -> Iterator[tuple[int, Float[Tensor, "n width"]]]:
        """What is yielded, with the number of its first row: from `start`, or an earlier row, on."""
        first = start if self._seek and start else 0
        made = self._seek(start) if self._seek and start else self._make()
        for repetition in count():
            before = first
            for at, rows in self._once(made, first):
                if at == 0 or (repetition and at == before):
                    self._check_same(rows)
                yield at, rows
                first = at + len(rows)
            if first == before and repetition:
                raise ConfigError(f"an iterator of activations must give rows again when it is repeated, but got none after row {first}.")
            made = self._make()

    def _once(self, made: Iterable[Yielded], first: int) -> Iterator[tuple[int, Float[Tensor, "n width"]]]:
        """The rows of one iterator, checked, each piece with the number of its first row."""
        for yielded in made:
            rows = self._checked(yielded, first)
            yield first, rows
            first += len(rows)

    def _check_same(self, rows: Float[Tensor, "n width"]) -> None:
        """Make sure that an iterator begins as the first one did."""
        n_rows = min(len(rows), len(self._beginning))
        difference = (rows[:n_rows] - self._beginning[:n_rows]).norm()
        if not difference <= SAME_ROWS * self._beginning[:n_rows].norm():
            raise ConfigError(
                "an iterator of activations must give the same rows each time it is started, but got others in its first "
                f"{n_rows}. Do not shuffle its inputs (`shuffle=False`): the buffer does; put the model into evaluation mode."
            )

    def _checked(self, yielded: Any, first: int) -> Float[Tensor, "n width"]:
        """What was yielded as rows on the CPU.

        Raises:
            ConfigError: it is something else than before, or not finite.
        """
        parts = yielded if isinstance(yielded, tuple | list) else (yielded,)
        shapes = [list(part.shape) if isinstance(part, Tensor) else type(part).__name__ for part in parts]
        if (
            not all(isinstance(part, Tensor) and part.ndim == 2 and len(part) == len(parts[0]) for part in parts)
            or not 1 <= len(parts) <= 2
        ):
            raise ConfigError(
                "an iterator of activations must yield tensors of shape [n, d_in], or pairs of such tensors with equally many rows, but "
                f"got {shapes} at row {first}. Flatten all axes but the last."
            )
        widths = tuple(part.shape[1] for part in parts)
        if self._widths is None:
            self._widths = widths
        if widths != self._widths:
            raise ConfigError(
                f"an iterator of activations must yield one width, but got {list(widths)} at row {first} after {list(self._widths)}. "
                "Correct what makes it."
            )
        rows = torch.cat([part.detach().float().cpu() for part in parts], dim=1)
        broken = (~rows.isfinite().all(dim=1)).nonzero().flatten()
        if len(broken):
            raise ConfigError(f"activations must be finite, but got NaN or infinity in row {first + int(broken[0])}. Correct their source.")
        return rows


def _up_to(n_rows: int, pieces: Iterable[Float[Tensor, "n width"]]) -> Iterator[Float[Tensor, "n width"]]:
    """The first rows.

    Raises:
        ConfigError: there are none.
    """
    n_read = 0
    for rows in pieces:
        yield rows[: n_rows - n_read]
        n_read += len(rows)
        if n_read >= n_rows:
            return
    if not n_read:
        raise ConfigError("an iterator of activations must yield rows, but got none. Check the data that it reads.")
