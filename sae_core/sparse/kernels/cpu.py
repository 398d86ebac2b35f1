"""The sparse kernels for CPUs, as loops compiled by Numba. Specification: `choice.Kernels`.

Rows are divided among as many threads as PyTorch uses. Products may be float32 or bfloat16, which Numba does not know: both are read as
integers, and shifted into the bits of a float32. Machine code is cached on disk, so that a machine compiles once.
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
FEWEST_GROUPS = 64
"""Of columns; fewer would leave no numbers for vector instructions to compare at once."""


def values_above(
    products: Float[Tensor, "B D"], bias: Float[Tensor, " D"], bound: Float[Tensor, " D"], most: int
) -> tuple[Int[Tensor, " N"], Float[Tensor, " N"], Int[Tensor, " B_plus_1"]] | None:
    bits, shift = _bits(products)
    offsets = np.zeros(len(bits) + 1, np.int64)
    parts = over_rows(_values_above, len(bits), bits, shift, _array(bias), _array(bound), most, offsets[1:])
    np.cumsum(offsets, out=offsets)
    if offsets[-1] > most:
        return None
    columns, values = (np.concatenate(part) for part in zip(*parts, strict=True))
    return torch.from_numpy(columns), torch.from_numpy(values), torch.from_numpy(offsets)


def topk_rows(
    products: Float[Tensor, "B D"], bias: Float[Tensor, " D"], factors: Float[Tensor, " D"], k: int
) -> tuple[Int[Tensor, "B k"], Float[Tensor, "B k"]]:
    bits, shift = _bits(products)
    columns, values = np.empty((len(bits), k), np.int64), np.empty((len(bits), k), np.float32)
    over_rows(_topk_rows, len(bits), bits, shift, _array(bias), _array(factors), columns, values)
    return torch.from_numpy(columns), torch.from_numpy(values)


def sort_columns(
    columns: Int[Tensor, " N"], offsets: Int[Tensor, " B_plus_1"], n_columns: int
) -> tuple[Int[Tensor, " N"], Int[Tensor, " N"], Int[Tensor, " D_plus_1"]]:
    order, rows, starts = np.empty(len(columns), np.int64), np.empty(len(columns), np.int64), np.zeros(n_columns + 1, np.int64)
    _sort_columns(_array(columns), _array(offsets), order, rows, starts)
    return torch.from_numpy(order), torch.from_numpy(rows), torch.from_numpy(starts)


def weighted_sums(
    offsets: Int[Tensor, " R_plus_1"], indices: Int[Tensor, " N"], weights: Float[Tensor, " N"], source: Float[Tensor, "M d"]
) -> Float[Tensor, "R d"]:
    sums = torch.empty(len(offsets) - 1, source.shape[1])
    over_rows(_weighted_sums, len(sums), _array(offsets), _array(indices), _array(weights), _array(source), _array(sums))
    return sums


def dots(
    offsets: Int[Tensor, " R_plus_1"], indices: Int[Tensor, " N"], rows: Float[Tensor, "R d"], source: Float[Tensor, "M d"]
) -> Float[Tensor, " N"]:
    products = torch.empty(len(indices))
    over_rows(_dots, len(rows), _array(offsets), _array(indices), _array(rows), _array(source), _array(products))
    return products


def over_rows(kernel: Callable[..., Any], n_rows: int, *arguments: Any) -> list[Any]:
    """Results of `kernel(first, last, *arguments)` in calls that share the threads; every row is in one of them, in order."""
    n_threads = max(1, min(torch.get_num_threads(), n_rows // ROWS_PER_THREAD))
    cuts = [n_rows * part // n_threads for part in range(n_threads + 1)]
    calls = [_threads(n_threads).submit(kernel, first, last, *arguments) for first, last in pairwise(cuts[1:])]
    return [kernel(cuts[0], cuts[1], *arguments), *(call.result() for call in calls)]


@cache
def _threads(n: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(n)


def _array(x: Tensor) -> np.ndarray:
    """The numbers of a tensor, in its memory where that is contiguous."""
    numbers: np.ndarray = x.detach().contiguous().numpy()
    return numbers


def _bits(products: Tensor) -> tuple[np.ndarray, int]:
    """Products as integers, and by how much to shift them to have the bits of a float32."""
    assert products.dtype in (torch.float32, torch.bfloat16), f"{products.dtype=}"
    return (_array(products.view(torch.int16)), 16) if products.dtype == torch.bfloat16 else (_array(products.view(torch.int32)), 0)


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Additions in any order, and fused multiply-adds: without them no sum is vectorized. NaN and infinity keep their meaning."""
    options: dict[str, Any] = {"nogil": True, "fastmath": {"nsz", "contract", "reassoc", "arcp"}}
    plain = inspect.unwrap(function)  # the function itself, also where checks of types were put around it
    try:
        return numba.njit(plain, cache=True, **options)
    except RuntimeError:  # neither this directory nor the user's cache can be written to: each process compiles anew
        return numba.njit(plain, **options)


@_compiled
def _read_row(products: Any, shift: int, bias: Any, values: Any, bits: Any) -> None:
    """One row of product + bias; `bits` is the memory of `values` as integers."""
    for j in range(len(products)):
        bits[j] = np.int32(products[j]) << shift
    for j in range(len(products)):
        values[j] += bias[j]


@_compiled
def _list_above(values: Any, bounds: Any, above: Any, columns: Any) -> int:
    """Write to `columns` where values are above their bounds, and return how many are; `above` is memory for a flag per value.

    Eight flags are looked at together, since nearly all are 0.
    """
    for j in range(len(values)):
        above[j] = values[j] > bounds[j]
    words = above.view(np.uint64)
    n = 0
    for word in range(len(words)):
        if words[word]:
            for j in range(8 * word, 8 * word + 8):  # without a branch: the next column overwrites one that is not wanted
                columns[n] = j
                n += above[j]
    return n


@_compiled
def _values_above(first: int, last: int, products: Any, shift: int, bias: Any, bounds: Any, most: int, counts: Any) -> tuple[Any, Any]:
    """Columns and values of some rows' entries, and their counts; ends early after a row with which there are more than `most`."""
    n_columns = products.shape[1]
    bits, above, found = np.empty(n_columns, np.int32), np.zeros((n_columns + 7) // 8 * 8, np.uint8), np.empty(n_columns + 8, np.int64)
    row = bits.view(np.float32)
    capacity = min(most, (last - first) * n_columns) + n_columns
    columns, values = np.empty(capacity, np.int64), np.empty(capacity, np.float32)
    total = 0
    for b in range(first, last):
        _read_row(products[b], shift, bias, row, bits)
        n = _list_above(row, bounds, above, found)
        for entry in range(n):
            columns[total + entry] = found[entry]
            values[total + entry] = row[found[entry]]
        counts[b] = n
        total += n
        if total > most:
            break
    return columns[:total].copy(), values[:total].copy()


@_compiled
def _topk_rows(first: int, last: int, products: Any, shift: int, bias: Any, factors: Any, columns: Any, values: Any) -> None:
    """At least k scores reach the k-th largest of the largest scores of groups of columns, and few more: only those are sorted."""
    n_columns, k = products.shape[1], columns.shape[1]
    n_groups = min(n_columns, max(FEWEST_GROUPS, 2 * k))
    bits, above, found = np.empty(n_columns, np.int32), np.zeros((n_columns + 7) // 8 * 8, np.uint8), np.empty(n_columns + 8, np.int64)
    row, scores, bounds = bits.view(np.float32), np.empty(n_columns, np.float32), np.empty(n_columns, np.float32)
    for b in range(first, last):
        _read_row(products[b], shift, bias, row, bits)
        for j in range(n_columns):
            scores[j] = row[j] * factors[j]
        largest = np.full(n_groups, -np.inf, np.float32)
        for start in range(0, n_columns, n_groups):
            group = scores[start : start + n_groups]
            for j in range(len(group)):
                largest[j] = max(group[j], largest[j])
        bounds[:] = np.nextafter(np.partition(largest, n_groups - k)[n_groups - k], np.float32(-np.inf))
        n = _list_above(scores, bounds, above, found)
        if n < k:  # scores that are not numbers are above nothing: any columns will do, the run has diverged
            found[:k] = np.arange(k)
        elif n > k:
            _keep_largest(scores, found, n, k)
        for entry in range(k):
            columns[b, entry] = found[entry]
            values[b, entry] = row[found[entry]]


@_compiled
def _keep_largest(scores: Any, found: Any, n: int, k: int) -> None:
    """Keep k of the columns `found[:n]`: of equal scores the first."""
    cut = np.partition(scores[found[:n]], n - k)[n - k]
    room = k
    for entry in range(n):
        room -= scores[found[entry]] > cut
    kept = 0
    for entry in range(n):
        score = scores[found[entry]]
        if score > cut or (score == cut and room > 0):
            room -= score == cut
            found[kept] = found[entry]
            kept += 1


@_compiled
def _sort_columns(columns: Any, offsets: Any, order: Any, rows: Any, starts: Any) -> None:
    """Counting sort. `starts` is zeros."""
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
def _weighted_sums(first: int, last: int, offsets: Any, indices: Any, weights: Any, source: Any, sums: Any) -> None:
    """Four entries at a time, so that a sum is written to memory once for them."""
    d = source.shape[1]
    for r in range(first, last):
        sums[r] = 0
        entry, end = offsets[r], offsets[r + 1]
        while entry + 4 <= end:
            w0, w1, w2, w3 = weights[entry], weights[entry + 1], weights[entry + 2], weights[entry + 3]
            s0, s1, s2, s3 = source[indices[entry]], source[indices[entry + 1]], source[indices[entry + 2]], source[indices[entry + 3]]
            for j in range(d):
                sums[r, j] = sums[r, j] + w0 * s0[j] + w1 * s1[j] + w2 * s2[j] + w3 * s3[j]
            entry += 4
        for rest in range(entry, end):
            w0, s0 = weights[rest], source[indices[rest]]
            for j in range(d):
                sums[r, j] += w0 * s0[j]


@_compiled
def _dots(first: int, last: int, offsets: Any, indices: Any, rows: Any, source: Any, products: Any) -> None:
    """Eight entries at a time, so that a row is read once for them; the last entry of a row is repeated where fewer are left."""
    for r in range(first, last):
        row, end = rows[r], offsets[r + 1] - 1
        for entry in range(offsets[r], end + 1, 8):
            e1, e2, e3, e4 = min(entry + 1, end), min(entry + 2, end), min(entry + 3, end), min(entry + 4, end)
            e5, e6, e7 = min(entry + 5, end), min(entry + 6, end), min(entry + 7, end)
            s0, s1, s2, s3 = source[indices[entry]], source[indices[e1]], source[indices[e2]], source[indices[e3]]
            s4, s5, s6, s7 = source[indices[e4]], source[indices[e5]], source[indices[e6]], source[indices[e7]]
            p0 = p1 = p2 = p3 = p4 = p5 = p6 = p7 = np.float32(0)
            for j in range(len(row)):
                p0 += row[j] * s0[j]
                p1 += row[j] * s1[j]
                p2 += row[j] * s2[j]
                p3 += row[j] * s3[j]
                p4 += row[j] * s4[j]
                p5 += row[j] * s5[j]
                p6 += row[j] * s6[j]
                p7 += row[j] * s7[j]
            products[entry], products[e1], products[e2], products[e3] = p0, p1, p2, p3
            products[e4], products[e5], products[e6], products[e7] = p4, p5, p6, p7
