"""logsumexp of the rows of a matrix of logits, for CPUs, compiled by Numba.

exp is computed in vectors, on blocks of a row that stay in the nearest cache: half the time of PyTorch's log_softmax.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sae_core.sparse.compiled import array, compiled, compiled_in_order, over_rows

BLOCK = 1024
LOG2_E = np.float32(1.4426950408889634)
SMALLEST = np.float32(-126)
"""Powers of 2 below 2^-126 count as that: they are no normal numbers, and nothing beside the largest, which is 1."""
ROUNDER = np.float32(3 * 2**22)
"""A float32 of this size has no fraction: adding it rounds, and leaves the whole number in the lowest bits."""
POWER_OF_2 = tuple(np.float32(c) for c in (0.693146978, 0.240222421, 0.0555073374, 0.00967151265, 0.00132647271))
"""2^g = 1 + c1 g + c2 g^2 + ... on [-1/2, 1/2], to less than 1e-7 of it: Chebyshev's fit with what is left weighted until it is even."""


def logsumexp(logits: Float[Tensor, "N V"]) -> Float[Tensor, " N"]:
    """log sum exp of each row."""
    sums = torch.empty(len(logits))
    over_rows(_logsumexp, len(logits), array(logits), array(logits.amax(dim=-1)), array(sums))
    return sums


@compiled_in_order  # reordering would cancel ROUNDER
def _exp(x: Any, largest: np.float32, whole: Any, whole_bits: Any, values: Any, value_bits: Any) -> None:
    """values = exp(x - largest), as 2^whole * 2^g with |g| <= 1/2; the arrays of bits are the memory of the others, as integers."""
    c1, c2, c3, c4, c5 = POWER_OF_2
    for j in range(len(x)):
        y = (x[j] - largest) * LOG2_E
        y = y if y > SMALLEST else SMALLEST
        whole[j] = y + ROUNDER
        g = y - (whole[j] - ROUNDER)
        values[j] = ((((c5 * g + c4) * g + c3) * g + c2) * g + c1) * g + np.float32(1)
    for j in range(len(x)):
        value_bits[j] += whole_bits[j] << np.int32(23)


@compiled
def _logsumexp(first: int, last: int, logits: Any, largest: Any, sums: Any) -> None:
    whole_bits, value_bits = np.empty(BLOCK, np.int32), np.empty(BLOCK, np.int32)
    whole, values = whole_bits.view(np.float32), value_bits.view(np.float32)
    for row in range(first, last):
        total = np.float32(0)
        for start in range(0, logits.shape[1], BLOCK):
            some = logits[row, start : start + BLOCK]
            _exp(some, largest[row], whole, whole_bits, values, value_bits)
            for j in range(len(some)):
                total += values[j]
        sums[row] = np.log(total) + largest[row]
