"""The same latent in another SAE: pairs of latents whose decoder rows point the same way.

    one to one   the assignment of latents with the largest sum of cosines (Hungarian method, `scipy.optimize.linear_sum_assignment`)
    nearest      for each latent, the one with the largest cosine: several may have the same one

Cosines keep their sign: latents are not negative, so a row that points the other way means something else. Latents that are never
active on the held-out text are left out where that is known: rows of dead latents are noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from analysis.features.run import LearnedRun
from sae_core.errors import ConfigError

if TYPE_CHECKING:
    from sae_core.sae.base import SparseAutoencoder

MOST_ASSIGNED = 8_192
"""Latents on either side up to which pairs are one to one: the method takes time with the cube of it, and memory with its square."""
ROWS = 128
"""Latents compared with all of the other SAE at a time."""

Floats = NDArray[np.float32]
Alive = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Matches:
    """For each latent of one SAE, its counterpart in another; -1 and NaN for latents that were left out, or have none."""

    nearest: NDArray[np.int64]
    """The latent with the largest cosine, [d_sae]."""
    nearest_cosine: NDArray[np.float64]
    assigned: NDArray[np.int64] | None
    """The partner in the best one-to-one assignment, [d_sae]; None where the SAEs are too wide for one."""
    assigned_cosine: NDArray[np.float64] | None

    @property
    def mean_cosine(self) -> float:
        """Mean cosine over the pairs: of the assignment, or else over nearest ones, which is an upper bound of it."""
        return float(np.nanmean(self.nearest_cosine if self.assigned_cosine is None else self.assigned_cosine))


def match_latents(
    one: LearnedRun | SparseAutoencoder, other: LearnedRun | SparseAutoencoder, latents: Sequence[int] | None = None
) -> Matches:
    """Match the latents of two SAEs by their decoders.

    Args:
        one: a run, whose latents that are never active on its held-out text are left out; or an SAE, with all its latents.
        latents: of `one`, those that are asked for; an assignment is made of all latents, whatever is asked for.

    Raises:
        ConfigError: the SAEs are for activations of different widths, or one has no latent that is active.
    """
    (rows, alive), (others, others_alive) = _rows(one), _rows(other)
    if rows.shape[1] != others.shape[1]:
        raise ConfigError(
            f"SAEs must be for activations of one width to be matched, but got d_in={rows.shape[1]} and d_in={others.shape[1]}. Choose two "
            "of the same hook point."
        )
    if not (alive.any() and others_alive.any()):
        raise ConfigError("SAEs must have active latents to be matched, but got one without any. Choose another run.")
    from_one, from_other = np.flatnonzero(alive), np.flatnonzero(others_alive)
    nearest, cosine = np.full(len(rows), -1, np.int64), np.full(len(rows), np.nan)
    cosines = np.empty((len(from_one), len(from_other)), np.float32) if max(len(from_one), len(from_other)) <= MOST_ASSIGNED else None
    asked = from_one if cosines is not None or latents is None else np.intersect1d(from_one, latents)
    for start in range(0, len(asked), ROWS):
        some = asked[start : start + ROWS]
        block = _cosines(rows[some], others)[:, from_other]
        nearest[some], cosine[some] = from_other[block.argmax(axis=1)], block.max(axis=1)
        if cosines is not None:
            cosines[start : start + len(block)] = block
    if cosines is None:
        return Matches(nearest, cosine, None, None)
    from scipy.optimize import linear_sum_assignment

    pairs = linear_sum_assignment(cosines, maximize=True)
    assigned, assigned_cosine = np.full(len(rows), -1, np.int64), np.full(len(rows), np.nan)
    assigned[from_one[pairs[0]]], assigned_cosine[from_one[pairs[0]]] = from_other[pairs[1]], cosines[pairs]
    return Matches(nearest, cosine, assigned, assigned_cosine)


def _rows(source: LearnedRun | SparseAutoencoder) -> tuple[Floats, Alive]:
    """Decoder rows, and which latents take part."""
    sae = source.sae if isinstance(source, LearnedRun) else source
    rows = sae.W_dec.detach().cpu().numpy()
    return rows, source.activations.counts > 0 if isinstance(source, LearnedRun) else np.ones(len(rows), bool)


def _cosines(rows: Floats, others: Floats) -> Floats:
    """Cosines of all pairs; 0 with a row that is 0."""
    cosines = rows @ others.T
    for axis, vectors in ((1, rows), (0, others)):
        norms = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))
        cosines /= np.expand_dims(np.where(norms > 0, norms, 1), axis)
    return cosines
