"""logsumexp of the rows of a matrix of logits, for CPUs, compiled by Numba.

exp is computed in vectors, on blocks of a row that stay in the nearest cache: half the time of PyTorch's log_softmax. What changes the
logits is added there too, as it is, in bfloat16: their sum is never written to memory.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import BFloat16, Float
from llvmlite import ir
from numba import types
from numba.core import cgutils
from torch import Tensor

from sae_core.sparse.compiled import array, compiled, compiled_in_order, instruction, over_rows

BLOCK = 1024
LOG2_E = np.float32(1.4426950408889634)
SMALLEST = np.float32(-126)
"""Powers of 2 below 2^-126 count as that: they are no normal numbers, and nothing beside the largest, which is 1."""
ROUNDER = np.float32(3 * 2**22)
"""A float32 of this size has no fraction: adding it rounds, and leaves the whole number in the lowest bits."""
POWER_OF_2 = tuple(np.float32(c) for c in (0.693146978, 0.240222421, 0.0555073374, 0.00967151265, 0.00132647271))
"""2^g = 1 + c1 g + c2 g^2 + ... on [-1/2, 1/2], to less than 1e-7 of it: Chebyshev's fit with what is left weighted until it is even."""


def logsumexp(logits: Float[Tensor, "N V"], change: BFloat16[Tensor, "N V"] | None = None) -> Float[Tensor, " N"]:
    """log sum exp of each row of logits + change."""
    sums = torch.empty(len(logits))
    bits = None if change is None else array(change.view(torch.int16))
    over_rows(_logsumexp, len(logits), array(logits), bits, array(sums))
    return sums


@instruction
def _larger(typing: Any, a: Any, b: Any) -> Any:
    """The larger of two numbers; NaN where one is. Of `a if a > b else b` in a loop LLVM makes no vectors, because of NaN."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(ir.FloatType(), [ir.FloatType(), ir.FloatType()])
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.maximum.f32"), arguments)

    return types.float32(types.float32, types.float32), generate


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
def _logsumexp(first: int, last: int, logits: Any, changes: Any, sums: Any) -> None:
    """A block at a time: `total` is the sum so far, divided by exp(largest)."""
    some_bits, whole_bits, value_bits = np.empty(BLOCK, np.int32), np.empty(BLOCK, np.int32), np.empty(BLOCK, np.int32)
    some, whole, values = some_bits.view(np.float32), whole_bits.view(np.float32), value_bits.view(np.float32)
    for row in range(first, last):
        total, largest = np.float32(0), np.float32(-np.inf)
        for start in range(0, logits.shape[1], BLOCK):
            clean = logits[row, start : start + BLOCK]
            n = len(clean)
            if changes is None:
                for j in range(n):
                    some[j] = clean[j]
            else:
                change = changes[row, start : start + BLOCK]
                for j in range(n):
                    some_bits[j] = np.int32(change[j]) << 16
                for j in range(n):
                    some[j] += clean[j]
            block_largest = np.float32(-np.inf)
            for j in range(n):
                block_largest = _larger(block_largest, some[j])
            if block_largest > largest:
                total *= np.exp(largest - block_largest)
            largest = _larger(largest, block_largest)
            _exp(some[:n], largest, whole, whole_bits, values, value_bits)
            for j in range(n):
                total += values[j]
        sums[row] = np.log(total) + largest
