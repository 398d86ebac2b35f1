"""Which latents of two dictionaries are the same: one-to-one by the cosines of their decoder rows. No torch.

Shape letters: A, B latents of the two, d_in.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sae_core.errors import ConfigError

FloatArray = NDArray[np.float64]

EXACT = 4096
"""Latents up to which the best assignment is found: its time grows with their cube, and at this size it takes seconds."""
NEIGHBOURS = 8
"""Beyond, each latent may be matched with that many of its nearest."""
_ROWS = 1024
"""Rows whose cosines with all others are held at a time, beyond."""


@dataclass(frozen=True)
class Matching:
    """A one-to-one matching of latents: as many pairs as the smaller dictionary has latents, or fewer where it is a bound."""

    rows: NDArray[np.intp]
    """Of each pair: the row of the first dictionary [P]."""
    columns: NDArray[np.intp]
    """Of each pair: the row of the second [P]."""
    cosines: FloatArray
    """|cos| of each pair [P]."""
    n_pairs: int
    """Latents of the smaller dictionary: what a mean over pairs is taken over."""
    is_bound: bool
    """Whether it is one matching of many, not the best: means over it are lower bounds."""

    @property
    def mean(self) -> float:
        """PW-MCC: mean |cos| over the pairs; latents without a partner count as 0."""
        return float(self.cosines.sum() / self.n_pairs)


def match(first: NDArray[np.floating], second: NDArray[np.floating]) -> Matching:
    """Match decoder rows so that the sum of |cos| over the pairs is the largest there is (Hungarian method).

    Above EXACT latents, pairs of near neighbours are taken in the order of their cosines instead: a lower bound, and never less than half
    of what the pairs it may choose from can reach.

    Args:
        first: decoder rows [A, d_in] of latents that are alive.
        second: [B, d_in].

    Raises:
        ConfigError: one of them has no row, or their widths differ.
    """
    if not len(first) or not len(second) or first.shape[1] != second.shape[1]:
        raise ConfigError(
            f"dictionaries must have rows of one width, but got {first.shape} and {second.shape}. Match SAEs of one hook point."
        )
    one, other = _unit(first), _unit(second)
    if max(len(one), len(other)) > EXACT:
        return _greedy(one, other)
    from scipy.optimize import linear_sum_assignment

    cosines = np.abs(one @ other.T).astype(np.float64)
    rows, columns = linear_sum_assignment(cosines, maximize=True)
    return Matching(rows, columns, cosines[rows, columns], min(cosines.shape), is_bound=False)


def _greedy(one: NDArray[np.float32], other: NDArray[np.float32]) -> Matching:
    rows, columns, cosines = (np.concatenate(parts) for parts in zip(*_candidates(one, other), strict=True))
    free_rows, free_columns = np.ones(len(one), dtype=bool), np.ones(len(other), dtype=bool)
    taken = []
    for index in np.argsort(-cosines, kind="stable"):
        if free_rows[rows[index]] and free_columns[columns[index]]:
            free_rows[rows[index]] = free_columns[columns[index]] = False
            taken.append(index)
    return Matching(rows[taken], columns[taken], cosines[taken].astype(np.float64), min(len(one), len(other)), is_bound=True)


def _candidates(
    one: NDArray[np.float32], other: NDArray[np.float32]
) -> list[tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]]:
    """The NEIGHBOURS nearest of each row of `one`."""
    found = []
    for start in range(0, len(one), _ROWS):
        cosines = np.abs(one[start : start + _ROWS] @ other.T)
        k = min(NEIGHBOURS, len(other))
        columns = np.argpartition(cosines, -k, axis=1)[:, -k:]
        rows = np.repeat(np.arange(start, start + len(cosines)), k)
        found.append((rows, columns.ravel(), np.take_along_axis(cosines, columns, axis=1).ravel()))
    return found


def _unit(rows: NDArray[np.floating]) -> NDArray[np.float32]:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return (rows / np.where(norms > 0, norms, 1)).astype(np.float32)
