"""logsumexp of the rows of a matrix of logits, for CPUs, compiled by Numba.

exp is computed in vectors, on blocks of a row that stay in the nearest cache: half the time of PyTorch's log_softmax.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from llvmlite import ir
from numba import types
from numba.core import cgutils
from torch import Tensor

from sae_core.sparse.kernels.compiled import array, compiled, instruction, over_rows

BLOCK = 1024
LOG2_E = np.float32(1.4426950408889634)
SMALLEST = np.float32(-126)
"""Powers of 2 below 2^-126 count as that: they are no normal numbers, and nothing beside the largest, which is 1."""
POWER_OF_2 = tuple(np.float32(c) for c in (0.693146978, 0.240222421, 0.0555073374, 0.00967151265, 0.00132647271))
"""2^g = 1 + c1 g + c2 g^2 + ... on [-1/2, 1/2], to less than 1e-7 of it: Chebyshev's fit with what is left weighted until it is even."""


def logsumexp(logits: Float[Tensor, "N V"]) -> Float[Tensor, " N"]:
    """log sum exp of each row of logits."""
    sums = torch.empty(len(logits))
    over_rows(_logsumexp, len(logits), array(logits), array(sums))
    return sums


@instruction
def _larger(typing: Any, a: Any, b: Any) -> Any:
    """The larger of two numbers; NaN where one is. Of `a if a > b else b` in a loop LLVM makes no vectors, because of NaN."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(ir.FloatType(), [ir.FloatType(), ir.FloatType()])
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.maximum.f32"), arguments)

    return types.float32(types.float32, types.float32), generate


@instruction
def _nearest(typing: Any, x: Any) -> Any:
    """The nearest whole number."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(ir.FloatType(), [ir.FloatType()])
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.rint.f32"), arguments)

    return types.float32(types.float32), generate


def _as(kind: Any) -> Any:
    """The bits of a number of 32 bits, read as another kind."""

    @instruction
    def read(typing: Any, x: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.bitcast(arguments[0], context.get_value_type(kind))

        return kind(x), generate

    return read


_as_float, _as_int = _as(types.float32), _as(types.int32)


@compiled
def _exp(x: np.float32) -> np.float32:
    """exp(x) of a number that is not above 0, as 2^whole * 2^g with |g| <= 1/2."""
    y = x * LOG2_E
    y = y if y > SMALLEST else SMALLEST
    whole = _nearest(y)
    g = y - whole
    c1, c2, c3, c4, c5 = POWER_OF_2
    power = ((((c5 * g + c4) * g + c3) * g + c2) * g + c1) * g + np.float32(1)
    return _as_float(np.int32(_as_int(power) + (np.int32(whole) << 23)))


@compiled
def _logsumexp(first: int, last: int, logits: Any, sums: Any) -> None:
    """A block at a time: `total` is the sum so far, divided by exp(largest)."""
    for row in range(first, last):
        total, largest = np.float32(0), np.float32(-np.inf)
        for start in range(0, logits.shape[1], BLOCK):
            values = logits[row, start : start + BLOCK]
            block_largest = np.float32(-np.inf)
            for j in range(len(values)):
                block_largest = _larger(block_largest, values[j])
            if block_largest > largest:
                total *= np.exp(largest - block_largest)
            largest = _larger(largest, block_largest)
            for j in range(len(values)):
                total += _exp(values[j] - largest)
        sums[row] = np.log(total) + largest
