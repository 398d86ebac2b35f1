"""The sparse kernels for CPUs, compiled by Numba; what each computes: `kernels.Kernels`.

Rows are divided among as many threads as PyTorch uses. Scores may be float32 or bfloat16, which Numba does not know: both are read
as integers, and shifted into the bits of a float32. Machine code is cached on disk, so that a machine compiles once.
"""

import inspect
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any

import numba
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

ROWS_PER_THREAD = 256
"""Fewer are not worth waking a thread for."""
COUNTS = 60
"""After so many a search for the k-th largest of a row stops guessing; ties and outliers can make guesses useless."""
INFINITY_BITS = 0x7F800000


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Additions in any order, and fused multiply-adds: without them no sum is vectorised. NaN and infinity keep their meaning."""
    compiler = numba.njit(nogil=True, cache=True, boundscheck=False, fastmath={"nsz", "contract", "reassoc", "arcp"})
    return compiler(inspect.unwrap(function))  # the function itself, also where checks of types were put around it


def entries_above(
    products: Float[Tensor, "B D"], bias: Float[Tensor, " D"], bound: Float[Tensor, " D"], most: int
) -> tuple[Int[Tensor, " N"], Float[Tensor, " N"], Int[Tensor, " B_plus_1"]] | None:
    bits, shift = _bits(products)
    offsets = np.zeros(len(bits) + 1, np.int64)
    inputs = bits, shift, _array(bias), _array(bound)
    _over_rows(_count_above, len(bits), *inputs, offsets[1:])
    np.cumsum(offsets, out=offsets)
    if offsets[-1] > most:
        return None
    columns, values = np.empty(offsets[-1], np.int64), np.empty(offsets[-1], np.float32)
    _over_rows(_list_above, len(bits), *inputs, offsets, columns, values)
    return torch.from_numpy(columns), torch.from_numpy(values), torch.from_numpy(offsets)


def topk_rows(
    products: Float[Tensor, "B D"], bias: Float[Tensor, " D"], factors: Float[Tensor, " D"], k: int
) -> tuple[Int[Tensor, "B k"], Float[Tensor, "B k"]]:
    bits, shift = _bits(products)
    columns, values = np.empty((len(bits), k), np.int64), np.empty((len(bits), k), np.float32)
    _over_rows(_topk_rows, len(bits), bits, shift, _array(bias), _array(factors), columns, values)
    return torch.from_numpy(columns), torch.from_numpy(values)


def sort_columns(
    columns: Int[Tensor, " N"], offsets: Int[Tensor, " B_plus_1"], n_columns: int
) -> tuple[Int[Tensor, " N"], Int[Tensor, " N"], Int[Tensor, " D_plus_1"]]:
    order, rows, starts = np.empty(len(columns), np.int64), np.empty(len(columns), np.int64), np.zeros(n_columns + 1, np.int64)
    _sort_columns(_array(columns), _array(offsets), order, rows, starts)
    return torch.from_numpy(order), torch.from_numpy(rows), torch.from_numpy(starts)


def weighted_sums(
    offsets: Int[Tensor, " R_plus_1"], which: Int[Tensor, " N"], weights: Float[Tensor, " N"], source: Float[Tensor, "M d"]
) -> Float[Tensor, "R d"]:
    sums = torch.empty(len(offsets) - 1, source.shape[1])
    _over_rows(_weighted_sums, len(sums), _array(offsets), _array(which), _array(weights), _array(source), _array(sums))
    return sums


def dots(
    offsets: Int[Tensor, " R_plus_1"], which: Int[Tensor, " N"], rows: Float[Tensor, "R d"], source: Float[Tensor, "M d"]
) -> Float[Tensor, " N"]:
    products = torch.empty(len(which))
    _over_rows(_dots, len(rows), _array(offsets), _array(which), _array(rows), _array(source), _array(products))
    return products


def _array(x: Tensor) -> np.ndarray:
    array: np.ndarray = x.detach().contiguous().numpy()
    return array


def _bits(products: Tensor) -> tuple[np.ndarray, int]:
    """Products as integers, and by how much to shift them to have the bits of a float32."""
    assert products.dtype in (torch.float32, torch.bfloat16), f"{products.dtype=}"
    return (_array(products.view(torch.int16)), 16) if products.dtype == torch.bfloat16 else (_array(products.view(torch.int32)), 0)


def _over_rows(kernel: Callable[..., None], n_rows: int, *arguments: Any) -> None:
    """Call `kernel(first, last, *arguments)` so that every row is in one of the calls, which share the threads."""
    n_threads = min(torch.get_num_threads(), max(1, n_rows // ROWS_PER_THREAD))
    if n_threads == 1:
        kernel(0, n_rows, *arguments)
        return
    cuts = [n_rows * part // n_threads for part in range(n_threads + 1)]
    calls = [_threads(n_threads).submit(kernel, first, last, *arguments) for first, last in pairwise(cuts[1:])]
    kernel(cuts[0], cuts[1], *arguments)
    for call in calls:
        call.result()


@cache
def _threads(n: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(n)


@_compiled
def _values(products: Any, shift: int, bias: Any, values: Any, bits: Any) -> None:
    """One row of product + bias; `bits` is the memory of `values` as integers."""
    for j in range(len(products)):
        bits[j] = np.int32(products[j]) << shift
    for j in range(len(products)):
        values[j] += bias[j]


@_compiled
def _count_above(first: int, last: int, products: Any, shift: int, bias: Any, bound: Any, counts: Any) -> None:
    n_columns = products.shape[1]
    bits = np.empty(n_columns, np.int32)
    row = bits.view(np.float32)
    for b in range(first, last):
        _values(products[b], shift, bias, row, bits)
        count = np.int32(0)
        for j in range(n_columns):
            count += np.int32(row[j] > bound[j])
        counts[b] = count


@_compiled
def _list_above(first: int, last: int, products: Any, shift: int, bias: Any, bound: Any, offsets: Any, columns: Any, values: Any) -> None:
    n_columns = products.shape[1]
    bits, found = np.empty(n_columns, np.int32), np.empty(n_columns + 1, np.int32)
    row = bits.view(np.float32)
    for b in range(first, last):
        _values(products[b], shift, bias, row, bits)
        n = 0
        for j in range(n_columns):  # without a branch: the next entry overwrites one that does not count
            found[n] = j
            n += row[j] > bound[j]
        for entry in range(n):
            columns[offsets[b] + entry] = found[entry]
            values[offsets[b] + entry] = row[found[entry]]


@_compiled
def _topk_rows(first: int, last: int, products: Any, shift: int, bias: Any, factors: Any, columns: Any, values: Any) -> None:
    n_columns, k = products.shape[1], columns.shape[1]
    bits, found = np.empty(n_columns, np.int32), np.empty(n_columns + 1, np.int32)
    row, scores = bits.view(np.float32), np.empty(n_columns, np.float32)
    cut = width = np.float32(np.nan)
    for b in range(first, last):
        _values(products[b], shift, bias, row, bits)
        for j in range(n_columns):
            scores[j] = row[j] * factors[j]
        if not (np.isfinite(cut) and 0 < width < np.inf):
            largest = np.float32(scores.max())
            cut, width = np.float32(0.5) * largest, np.float32(0.1) * abs(largest)
        cut = _kth_largest(scores, k, cut, width)
        n = 0
        for j in range(n_columns):
            found[n] = j
            n += scores[j] >= cut
        if n < k:  # scores that are not numbers reach nothing: any columns will do, the run has diverged
            found[:k] = np.arange(k)
        elif n > k:
            _drop_ties(scores, cut, found, n, k)
        for entry in range(k):
            columns[b, entry] = found[entry]
            values[b, entry] = row[found[entry]]


@_compiled
def _kth_largest(scores: Any, k: int, guess: np.float32, width: np.float32) -> np.float32:
    """A number that exactly k scores reach; where ties allow none, the k-th largest score itself; NaN where too few are numbers.

    Counting is vectorised, so that a handful of passes over a row in the cache beat any sorting. The count falls about exponentially
    where k is small: steps are linear in its logarithm, from a guess, such as the cut of the row before, until it is between two
    numbers tried, then within these.

    Args:
        width: about by how much a number must rise for a factor e fewer scores to reach it.
    """
    low, high = np.float32(-np.inf), np.float32(np.inf)
    n_low: Any = len(scores)
    n_high: Any = 1
    for step in range(COUNTS):
        count = np.int32(0)
        for j in range(len(scores)):
            count += np.int32(scores[j] >= guess)
        if count == k:
            return guess
        if count > k:
            low, n_low = guess, count
        else:
            high, n_high = guess, max(1, count)
        if low == -np.inf or high == np.inf:
            too_many = np.float32(np.log(np.maximum(1, count) / k))
            guess += width * (too_many + np.copysign(np.float32(0.05), np.float32(count - k))) * np.float32(1 << min(step, 20))
            continue
        fraction = np.float32(0.5)
        if step % 4 != 3:
            fraction = np.float32(np.log(n_low / k) / np.log(n_low / (0.9 * n_high)))
            fraction = min(max(fraction, np.float32(0.02)), np.float32(0.98))
        guess = low + (high - low) * fraction
        if not low < guess < high:
            guess = low + (high - low) * np.float32(0.5)
        if not low < guess < high:  # neighbours in float32: more than k scores reach `low`, fewer than k the next number
            return low
    return _kth_largest_by_bits(scores, k)


@_compiled
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


@_compiled
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


@_compiled
def _sort_columns(columns: Any, offsets: Any, order: Any, rows: Any, starts: Any) -> None:
    """Counting sort."""
    for entry in range(len(columns)):
        starts[columns[entry] + 1] += 1
    for column in range(len(starts) - 1):
        starts[column + 1] += starts[column]
    place = starts[:-1].copy()
    for b in range(len(offsets) - 1):
        for entry in range(offsets[b], offsets[b + 1]):
            column = columns[entry]
            order[place[column]] = entry
            rows[place[column]] = b
            place[column] += 1


@_compiled
def _weighted_sums(first: int, last: int, offsets: Any, which: Any, weights: Any, source: Any, sums: Any) -> None:
    """Four source rows at a time: the sum is then read and written a quarter as often."""
    d = source.shape[1]
    for r in range(first, last):
        total = sums[r]
        total[:] = 0
        entry, end = offsets[r], offsets[r + 1]
        while entry + 4 <= end:
            row0, row1, row2, row3 = source[which[entry]], source[which[entry + 1]], source[which[entry + 2]], source[which[entry + 3]]
            w0, w1, w2, w3 = weights[entry], weights[entry + 1], weights[entry + 2], weights[entry + 3]
            for j in range(d):
                total[j] += w0 * row0[j] + w1 * row1[j] + w2 * row2[j] + w3 * row3[j]
            entry += 4
        while entry < end:
            row0, w0 = source[which[entry]], weights[entry]
            for j in range(d):
                total[j] += w0 * row0[j]
            entry += 1


@_compiled
def _dots(first: int, last: int, offsets: Any, which: Any, rows: Any, source: Any, products: Any) -> None:
    """Four source rows at a time: the row on the left is then read a quarter as often."""
    d = source.shape[1]
    for r in range(first, last):
        left = rows[r]
        entry, end = offsets[r], offsets[r + 1]
        while entry + 4 <= end:
            row0, row1, row2, row3 = source[which[entry]], source[which[entry + 1]], source[which[entry + 2]], source[which[entry + 3]]
            sum0 = sum1 = sum2 = sum3 = np.float32(0)
            for j in range(d):
                sum0 += left[j] * row0[j]
                sum1 += left[j] * row1[j]
                sum2 += left[j] * row2[j]
                sum3 += left[j] * row3[j]
            products[entry], products[entry + 1], products[entry + 2], products[entry + 3] = sum0, sum1, sum2, sum3
            entry += 4
        while entry < end:
            row0, sum0 = source[which[entry]], np.float32(0)
            for j in range(d):
                sum0 += left[j] * row0[j]
            products[entry] = sum0
            entry += 1
