"""The programs that `gpu.py` launches, in Triton. Not yet run on a GPU: see there.

Every element of a result is written by exactly one program, and no program reads what another of the same launch writes, so that
neither the order nor the number of programs at work can change a result. Masks make any width do. Numbers are added in float32.

Names of sizes that are part of the compiled program are in capitals; they are powers of two.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs

import inspect
from collections.abc import Callable
from typing import Any

import triton
import triton.language as tl

LOWEST: tl.constexpr = tl.constexpr(-(2**31))


def _program(function: Callable[..., Any]) -> Any:
    """`triton.jit` of the function itself, also where checks of types were put around it."""
    return triton.jit(inspect.unwrap(function))


@_program
def count_above(products, bias, bound, counts, n_columns, WIDTH: tl.constexpr):
    """One program a row: how many of its values are above their column's bound."""
    row = tl.program_id(0).to(tl.int64)
    count = tl.zeros([WIDTH], tl.int32)
    for left in range(0, n_columns, WIDTH):
        column = left + tl.arange(0, WIDTH)
        count += _above(_values(products + row * n_columns, bias, column, column < n_columns), bound, column, n_columns)
    tl.store(counts + row, tl.sum(count).to(tl.int64))


@_program
def list_above(products, bias, bound, offsets, columns, values, n_columns, WIDTH: tl.constexpr):
    """One program a row: the columns and values that `count_above` counted, from `offsets[row]` on."""
    row = tl.program_id(0).to(tl.int64)
    entry = tl.load(offsets + row)
    for left in range(0, n_columns, WIDTH):
        column = left + tl.arange(0, WIDTH)
        value = _values(products + row * n_columns, bias, column, column < n_columns)
        above = _above(value, bound, column, n_columns)
        place = entry + tl.cumsum(above, axis=0) - above
        tl.store(columns + place, column.to(tl.int64), mask=above > 0)
        tl.store(values + place, value, mask=above > 0)
        entry += tl.sum(above)


@_program
def _values(row, bias, column, wanted):
    """Product + bias in float32 at the columns wanted, 0 elsewhere."""
    return tl.load(row + column, mask=wanted, other=0.0).to(tl.float32) + tl.load(bias + column, mask=wanted, other=0.0)


@_program
def _above(value, bound, column, n_columns):
    exists = column < n_columns
    return ((value > tl.load(bound + column, mask=exists, other=0.0)) & exists).to(tl.int32)


@_program
def topk_columns(products, bias, factors, columns, n_columns, width, k, DEPTH: tl.constexpr, GROUPS: tl.constexpr):
    """One program a row and stretch of `width` columns: the k columns of largest score, the first of equal ones, ascending.

    The scores of the stretch stay in registers, as integers. The k-th largest of them is found by counting how many reach a number,
    and halving the range that it can be in. That range starts at the k-th largest of the maxima of GROUPS groups of DEPTH columns, which
    at least k scores reach, and seldom many more: so the long search is one among few numbers, and the short one takes over from it.
    """
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    column = part * width + tl.arange(0, DEPTH)[:, None] * GROUPS + tl.arange(0, GROUPS)[None, :]
    exists = column < tl.minimum((part + 1) * width, n_columns)
    value = _values(products + row * n_columns, bias, column, exists)
    key = tl.where(exists, _key(value * tl.load(factors + column, mask=exists, other=0.0)), LOWEST)
    cut, n = _cut(key, k, GROUPS)
    kept = key >= cut
    if n > k:  # the k-th largest is there more than once, so it is the cut
        tie = key == cut
        room = k - tl.sum((key > cut).to(tl.int32))
        first, _ = _kth_largest(tl.where(tie, -column, LOWEST), room, cut * 0 - n_columns, cut * 0 + 1)
        kept = kept & ((key > cut) | (-column >= first))
    columns += (row * tl.num_programs(1) + part) * k
    tl.store(columns + _rank(kept), column.to(tl.int64), mask=kept)


@_program
def values_at(products, bias, columns, values, n_entries, n_columns, k, WIDTH: tl.constexpr):
    """Product + bias at the columns of k entries a row."""
    entry = tl.program_id(0).to(tl.int64) * WIDTH + tl.arange(0, WIDTH)
    exists = entry < n_entries
    column = tl.load(columns + entry, mask=exists, other=0)
    product = tl.load(products + entry // k * n_columns + column, mask=exists, other=0.0).to(tl.float32)
    tl.store(values + entry, product + tl.load(bias + column, mask=exists, other=0.0), mask=exists)


@_program
def _key(score):
    """Integers that are ordered as the numbers are, -0 with 0. NaN is above or below all numbers, so that k entries are always found."""
    bits = tl.where(score == 0.0, 0.0, score).to(tl.int32, bitcast=True)
    return tl.where(bits >= 0, bits, bits ^ 0x7FFFFFFF)


@_program
def _cut(key, k, GROUPS: tl.constexpr):
    """As `_kth_largest`, of all keys."""
    peaks = tl.max(key, axis=0)
    high = tl.max(peaks).to(tl.int64) + 1
    low = tl.min(peaks).to(tl.int64)
    if k <= GROUPS:
        low, _ = _kth_largest(peaks, k, low, high)
    else:
        low = tl.min(key).to(tl.int64)
    return _kth_largest(key, k, low, high)


@_program
def _kth_largest(keys, k, low, high):
    """A number that exactly k keys reach, and k; where ties allow none, the k-th largest key itself, and how many reach it.

    At least k keys reach `low`, fewer reach `high`. Both are int64, because `high` may be above all int32.
    """
    n = _n_reaching(keys, low)
    while (high - low > 1) & (n != k):
        middle = (low + high) >> 1
        n_middle = _n_reaching(keys, middle)
        enough = n_middle >= k
        low, high, n = tl.where(enough, middle, low), tl.where(enough, high, middle), tl.where(enough, n_middle, n)
    return low, n


@_program
def _n_reaching(keys, bound):
    return tl.sum((keys >= bound.to(tl.int32)).to(tl.int32))


@_program
def _rank(flags):
    """How many flags are set before each element, row by row."""
    ones = flags.to(tl.int32)
    in_row = tl.sum(ones, axis=1)
    return (tl.cumsum(in_row, axis=0) - in_row)[:, None] + tl.cumsum(ones, axis=1) - ones


@_program
def sum_chunks(offsets, which, weights, source, sums, n_rows, d, CHUNK: tl.constexpr, ENTRIES: tl.constexpr, WIDTH: tl.constexpr):
    """One program a chunk of CHUNK entries: their weighted sum, where all belong to one row; else nothing is written.

    A row of many entries, such as a latent that is active on every token, is thus shared out; `sum_rows` adds up.
    """
    chunk = tl.program_id(0).to(tl.int64)
    start = chunk * CHUNK
    end = start + CHUNK
    if tl.load(offsets + _row_of(offsets, n_rows, start) + 1) >= end:
        for left in range(0, d, WIDTH):
            column = left + tl.arange(0, WIDTH)
            total = _weighted_sum(which, weights, source, start, end, column, d, ENTRIES, WIDTH)
            tl.store(sums + chunk * d + column, total, mask=column < d)


@_program
def _row_of(offsets, n_rows, entry):
    """The row an entry belongs to: the last that starts at it or before."""
    row, beyond = entry * 0, entry * 0 + n_rows
    while beyond - row > 1:
        middle = (row + beyond) // 2
        before = tl.load(offsets + middle) <= entry
        row, beyond = tl.where(before, middle, row), tl.where(before, beyond, middle)
    return row


@_program
def sum_rows(offsets, which, weights, source, chunk_sums, sums, d, CHUNK: tl.constexpr, ENTRIES: tl.constexpr, WIDTH: tl.constexpr):
    """One program a row and WIDTH columns: the entries before its first whole chunk and after its last, and the sums of those chunks."""
    row, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    start, end = tl.load(offsets + row), tl.load(offsets + row + 1)
    first, last = (start + CHUNK - 1) // CHUNK, end // CHUNK
    head = tl.minimum(first * CHUNK, end)
    total = _weighted_sum(which, weights, source, start, head, column, d, ENTRIES, WIDTH)
    total += _weighted_sum(which, weights, source, tl.maximum(last * CHUNK, head), end, column, d, ENTRIES, WIDTH)
    for chunk in range(first, last):
        total += tl.load(chunk_sums + chunk * d + column, mask=column < d, other=0.0)
    tl.store(sums + row * d + column, total, mask=column < d)


@_program
def _weighted_sum(which, weights, source, start, end, column, d, ENTRIES: tl.constexpr, WIDTH: tl.constexpr):
    """The sum over the entries from `start` to `end`, at these columns; ENTRIES rows of the source are on their way at once."""
    total = tl.zeros([ENTRIES, WIDTH], tl.float32)
    for first in range(start, end, ENTRIES):
        entry = first + tl.arange(0, ENTRIES)
        listed = entry < end
        weight = tl.load(weights + entry, mask=listed, other=0.0)
        total += weight[:, None] * _rows_at(which, source, entry, listed, column, d)
    return tl.sum(total, axis=0)


@_program
def _rows_at(which, source, entry, listed, column, d):
    """The rows of the source that entries point at, in float32, at these columns."""
    at = tl.load(which + entry, mask=listed, other=0).to(tl.int64)
    wanted = listed[:, None] & (column < d)[None, :]
    return tl.load(source + at[:, None] * d + column[None, :], mask=wanted, other=0.0).to(tl.float32)


@_program
def dots(offsets, which, rows, source, products, d, ENTRIES: tl.constexpr, WIDTH: tl.constexpr):
    """One program a row: the inner products of all its entries."""
    row = tl.program_id(0).to(tl.int64)
    start, end = tl.load(offsets + row), tl.load(offsets + row + 1)
    for first in range(start, end, ENTRIES):
        entry = first + tl.arange(0, ENTRIES)
        listed = entry < end
        total = tl.zeros([ENTRIES, WIDTH], tl.float32)
        for left in range(0, d, WIDTH):
            column = left + tl.arange(0, WIDTH)
            of_row = tl.load(rows + row * d + column, mask=column < d, other=0.0).to(tl.float32)
            total += of_row[None, :] * _rows_at(which, source, entry, listed, column, d)
        tl.store(products + entry, tl.sum(total, axis=1), mask=listed)
