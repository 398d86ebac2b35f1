"""The sparse kernels for CPUs, compiled by Numba; what each computes: `kernels.Kernels`.

Rows are divided among as many threads as PyTorch uses. Scores may be float32 or bfloat16, which Numba does not know: both are read
as integers, and shifted into the bits of a float32. Machine code is cached on disk, so that a machine compiles once; Numba makes it anew
when this file changes, not when another does, so compiled functions call only those of their own file.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from llvmlite import ir
from numba import types
from numba.np.arrayobj import make_array
from torch import Tensor

from sae_core.sparse.kernels import cpu_sums
from sae_core.sparse.kernels.compiled import array, compiled, instruction, over_rows

COUNTS = 60
"""After so many a search for the k-th largest of a row stops guessing; ties and outliers can make guesses useless."""
MANY = 2**13
"""Scores of which it is worth while to make a shorter list."""
INFINITY_BITS = 0x7F800000
BLOCK = 32
"""Numbers compared at a time; rows are padded to a multiple. One instruction compares 16."""


def entries_above(
    products: Float[Tensor, "B D"], bias: Float[Tensor, " D"], bound: Float[Tensor, " D"], most: int
) -> tuple[Int[Tensor, " N"], Float[Tensor, " N"], Int[Tensor, " B_plus_1"]] | None:
    bits, shift = _bits(products)
    offsets = np.zeros(len(bits) + 1, np.int64)
    parts = over_rows(_list_above, len(bits), bits, shift, array(bias), array(bound), most, offsets[1:])
    np.cumsum(offsets, out=offsets)
    if offsets[-1] > most:
        return None
    columns, values = (listed[0] if len(parts) == 1 else np.concatenate(listed) for listed in zip(*parts, strict=True))
    return torch.from_numpy(columns), torch.from_numpy(values), torch.from_numpy(offsets)


def largest_entries(
    columns: Int[Tensor, " N"], values: Float[Tensor, " N"], offsets: Int[Tensor, " B_plus_1"], scores: Float[Tensor, " N"], n: int
) -> tuple[Int[Tensor, " M"], Float[Tensor, " M"], Int[Tensor, " B_plus_1"], Float[Tensor, ""]]:
    kept_offsets = np.zeros(len(offsets), np.int64)
    kept = _largest_entries(array(columns), array(values), array(offsets), array(scores), n, kept_offsets)
    return torch.from_numpy(kept[0]), torch.from_numpy(kept[1]), torch.from_numpy(kept_offsets), torch.tensor(kept[2], dtype=torch.float32)


def topk_rows(
    products: Float[Tensor, "B D"], bias: Float[Tensor, " D"], factors: Float[Tensor, " D"], k: int
) -> tuple[Int[Tensor, "B k"], Float[Tensor, "B k"]]:
    bits, shift = _bits(products)
    columns, values = np.empty((len(bits), k), np.int64), np.empty((len(bits), k), np.float32)
    over_rows(_topk_rows, len(bits), bits, shift, array(bias), array(factors), columns, values)
    return torch.from_numpy(columns), torch.from_numpy(values)


def sort_columns(
    columns: Int[Tensor, " N"], offsets: Int[Tensor, " B_plus_1"], n_columns: int
) -> tuple[Int[Tensor, " N"], Int[Tensor, " N"], Int[Tensor, " D_plus_1"]]:
    order, rows, starts = np.empty(len(columns), np.int64), np.empty(len(columns), np.int64), np.zeros(n_columns + 1, np.int64)
    cpu_sums.sort_columns(array(columns), array(offsets), order, rows, starts)
    return torch.from_numpy(order), torch.from_numpy(rows), torch.from_numpy(starts)


def weighted_sums(
    offsets: Int[Tensor, " R_plus_1"], which: Int[Tensor, " N"], weights: Float[Tensor, " N"], source: Float[Tensor, "M d"]
) -> Float[Tensor, "R d"]:
    sums = torch.empty(len(offsets) - 1, source.shape[1])
    over_rows(cpu_sums.weighted_sums, len(sums), array(offsets), array(which), array(weights), array(source), array(sums))
    return sums


def dots(
    offsets: Int[Tensor, " R_plus_1"], which: Int[Tensor, " N"], rows: Float[Tensor, "R d"], source: Float[Tensor, "M d"]
) -> Float[Tensor, " N"]:
    products = torch.empty(len(which))
    over_rows(cpu_sums.dots, len(rows), array(offsets), array(which), array(rows), array(source), array(products))
    return products


def _bits(products: Tensor) -> tuple[np.ndarray, int]:
    """Products as integers, and by how much to shift them to have the bits of a float32."""
    assert products.dtype in (torch.float32, torch.bfloat16), f"{products.dtype=}"
    return (array(products.view(torch.int16)), 16) if products.dtype == torch.bfloat16 else (array(products.view(torch.int32)), 0)


@compiled
def _values(products: Any, shift: int, bias: Any, values: Any, bits: Any) -> None:
    """One row of product + bias; `bits` is the memory of `values` as integers."""
    for j in range(len(products)):
        bits[j] = np.int32(products[j]) << shift
    for j in range(len(products)):
        values[j] += bias[j]


@instruction
def _first_bit(typing: Any, mask: Any) -> Any:
    """The number of the lowest bit that is set in 32, or 32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.zext(builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 0)), ir.IntType(64))

    return types.int64(types.uint32), generate


@instruction
def _count_bits(typing: Any, mask: Any) -> Any:
    """How many of 32 bits are set."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.zext(builder.ctpop(arguments[0]), ir.IntType(64))

    return types.int64(types.uint32), generate


@compiled
def _list_bits(mask: Any, first: int, found: Any, n: int) -> int:
    """Write first + the number of every bit that is set to `found[n:]`, and something to the four places after; returns the new n.

    The first four are written whether or not there are as many: a branch that is as random as the data costs more.
    """
    end = n + _count_bits(mask)
    for entry in range(n, n + 4):
        found[entry] = first + _first_bit(mask)
        mask &= mask - np.uint32(1)
    n += 4
    while mask:
        found[n] = first + _first_bit(mask)
        mask &= mask - np.uint32(1)
        n += 1
    return end


def _comparing(operator: str) -> Any:
    """A function that compares 32 values, from `first` on, with their bounds, one bit each."""

    @instruction
    def passed(typing: Any, values: Any, bounds: Any, first: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            vector = ir.VectorType(ir.FloatType(), BLOCK)

            def load(array: Any, kind: Any) -> Any:
                start = builder.gep(make_array(kind)(context, builder, array).data, [arguments[2]])
                return builder.load(builder.bitcast(start, vector.as_pointer()), align=4)

            bits = builder.fcmp_ordered(operator, load(arguments[0], values), load(arguments[1], bounds))
            return builder.bitcast(bits, ir.IntType(BLOCK))

        return types.uint32(values, bounds, first), generate

    return passed


_above = _comparing(">")
"""Which of 32 numbers of one array, from a place on, are above those of another; NaN is not."""
_reached = _comparing(">=")
"""Which of 32 numbers of one array, from a place on, are equal to those of another or above; NaN is not."""


@compiled
def _list_above(first: int, last: int, products: Any, shift: int, bias: Any, bound: Any, most: int, counts: Any) -> tuple[Any, Any]:
    """Columns and values of some rows' entries, and their counts; ends early after a row with which there are more than `most`."""
    n_columns = products.shape[1]
    n_padded = (n_columns + BLOCK - 1) // BLOCK * BLOCK
    bits, bounds, found = np.zeros(n_padded, np.int32), np.full(n_padded, np.inf, np.float32), np.empty(n_padded + 4, np.int32)
    row = bits.view(np.float32)
    bounds[:n_columns] = bound
    capacity = min(most, (last - first) * n_columns) + n_columns
    columns, values = np.empty(capacity, np.int64), np.empty(capacity, np.float32)
    total = 0
    for b in range(first, last):
        _values(products[b], shift, bias, row, bits)
        n = 0
        for block in range(0, n_padded, BLOCK):
            n = _list_bits(_above(row, bounds, block), block, found, n)
        for entry in range(n):
            columns[total + entry] = found[entry]
            values[total + entry] = row[found[entry]]
        counts[b] = n
        total += n
        if total > most:
            break
    return columns[:total].copy(), values[:total].copy()


@compiled
def _topk_rows(first: int, last: int, products: Any, shift: int, bias: Any, factors: Any, columns: Any, values: Any) -> None:
    n_columns, k = products.shape[1], columns.shape[1]
    n_padded = (n_columns + BLOCK - 1) // BLOCK * BLOCK
    bits, found = np.empty(n_columns, np.int32), np.empty(n_padded + 4, np.int32)
    row, padded_scores, cuts = bits.view(np.float32), np.full(n_padded, np.nan, np.float32), np.empty(BLOCK, np.float32)
    scores = padded_scores[:n_columns]
    cut = width = np.float32(np.nan)
    for b in range(first, last):
        _values(products[b], shift, bias, row, bits)
        for j in range(n_columns):
            scores[j] = row[j] * factors[j]
        if not (np.isfinite(cut) and 0 < width < np.inf):
            largest = np.float32(scores.max())
            cut, width = np.float32(0.5) * largest, np.float32(0.1) * abs(largest)
        cut = _kth_largest(scores, k, cut, width)
        cuts[:] = cut
        n = 0
        for block in range(0, n_padded, BLOCK):
            n = _list_bits(_reached(padded_scores[block:], cuts, 0), block, found, n)
        if n < k:  # scores that are not numbers reach nothing: any columns will do, the run has diverged
            found[:k] = np.arange(k)
        elif n > k:
            _drop_ties(scores, cut, found, n, k)
        for entry in range(k):
            columns[b, entry] = found[entry]
            values[b, entry] = row[found[entry]]


@compiled
def _kth_largest(scores: Any, k: int, guess: np.float32, width: np.float32) -> np.float32:
    """A number that exactly k scores reach; where ties allow none, the k-th largest score itself; NaN where too few are numbers.

    Counting is vectorised, so that a handful of passes over a row in the cache beat any sorting. The count falls about exponentially
    where k is small: steps are linear in its logarithm, from a guess, such as the cut of the row before, until it is between two
    numbers tried, then within these. Of many scores, the few between these are soon all that is looked at.

    Args:
        width: about by how much a number must rise for a factor e fewer scores to reach it.
    """
    low, high = np.float32(-np.inf), np.float32(np.inf)
    n_low: Any = len(scores)
    n_high: Any = 0
    for step in range(COUNTS):
        count = np.int32(0)
        for j in range(len(scores)):
            count += np.int32(scores[j] >= guess)
        if count == k:
            return guess
        if count > k:
            low, n_low = guess, count
        else:
            high, n_high = guess, count
        if low == -np.inf or high == np.inf:
            too_many = np.float32(np.log(np.maximum(1, count) / k))
            guess += width * (too_many + np.copysign(np.float32(0.05), np.float32(count - k))) * np.float32(1 << min(step, 20))
            continue
        if len(scores) > MANY and n_low - n_high < len(scores) // 8:
            scores, k = _between(scores, low, high), k - n_high
            n_low, n_high = len(scores), 0
        fraction = np.float32(0.5)
        if step % 4 != 3:
            fraction = np.float32(np.log(n_low / k) / np.log(n_low / (0.9 * max(1, n_high))))
            fraction = min(max(fraction, np.float32(0.02)), np.float32(0.98))
        guess = low + (high - low) * fraction
        if not low < guess < high:
            guess = low + (high - low) * np.float32(0.5)
        if not low < guess < high:  # neighbours in float32: more than k scores reach `low`, fewer than k the next number
            return low
    return _kth_largest_by_bits(scores, k)


@compiled
def _between(scores: Any, low: np.float32, high: np.float32) -> Any:
    """The scores that reach `low` and not `high`."""
    found = np.empty(len(scores) + 1, np.float32)
    n = 0
    for j in range(len(scores)):  # without a branch: the next one overwrites one that is not wanted
        found[n] = scores[j]
        n += (scores[j] >= low) & (scores[j] < high)
    return found[:n]


@compiled
def _kth_largest_by_bits(scores: Any, k: int) -> np.float32:
    """The k-th largest score itself, by halving the range of the float32s there are: 32 counts, whatever the scores.

    The bits of a float32, without the sign, read as an integer, order as magnitudes do.
    """
    bits = np.empty(1, np.int32)
    guess = bits.view(np.float32)
    low, high = -INFINITY_BITS, INFINITY_BITS + 1  # at least k scores reach `low`, fewer than k reach `high`
    while high - low > 1:
        middle = (low + high) // 2
        bits[0] = middle if middle >= 0 else -middle - 2**31
        count = np.int32(0)
        for j in range(len(scores)):
            count += np.int32(scores[j] >= guess[0])
        if count >= k:
            low = middle
        else:
            high = middle
    bits[0] = low if low >= 0 else -low - 2**31
    return guess[0]


@compiled
def _largest_entries(columns: Any, values: Any, offsets: Any, scores: Any, n: int, kept_offsets: Any) -> tuple[Any, Any, np.float32]:
    cut = np.float32(-np.inf)
    if len(scores) > n:
        largest, smallest = scores.max(), scores.min()
        cut = _kth_largest(scores, n, smallest + (largest - smallest) * np.float32(0.1), (largest - smallest) * np.float32(0.2))
    kept_columns, kept_values = np.empty(len(scores) + 1, np.int64), np.empty(len(scores) + 1, np.float32)
    kept, least = 0, np.float32(np.inf)
    for b in range(len(offsets) - 1):
        for entry in range(offsets[b], offsets[b + 1]):  # without a branch: the next entry overwrites one that is not kept
            kept_columns[kept] = columns[entry]
            kept_values[kept] = values[entry]
            is_kept = scores[entry] >= cut
            least = min(least, scores[entry]) if is_kept else least
            kept += is_kept
        kept_offsets[b + 1] = kept
    return kept_columns[:kept], kept_values[:kept], least


@compiled
def _drop_ties(scores: Any, cut: np.float32, found: Any, n: int, k: int) -> None:
    """Keep k of the columns in `found[:n]`: those above `cut`, and of those equal to it the first."""
    room = k
    for entry in range(n):
        room -= scores[found[entry]] > cut
    kept = 0
    for entry in range(n):
        column = found[entry]
        ties = scores[column] == cut
        if not ties or room > 0:
            found[kept] = column
            kept += 1
            room -= ties
