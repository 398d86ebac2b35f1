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


def _program(function: Callable[..., Any]) -> Any:
    """`triton.jit` of the function itself, also where checks of types were put around it."""
    return triton.jit(inspect.unwrap(function))


@_program
def sum_chunks(offsets, indices, weights, source, sums, n_rows, d, CHUNK: tl.constexpr, ENTRIES: tl.constexpr, WIDTH: tl.constexpr):
    """One program a chunk of CHUNK entries: their weighted sum, where all belong to one row; else nothing is written.

    A row of many entries, such as a latent that is active on every token, is thus shared out; `sum_rows` adds up.
    """
    chunk = tl.program_id(0).to(tl.int64)
    start = chunk * CHUNK
    end = start + CHUNK
    if tl.load(offsets + _row_of(offsets, n_rows, start) + 1) >= end:
        for left in range(0, d, WIDTH):
            column = left + tl.arange(0, WIDTH)
            total = _weighted_sum(indices, weights, source, start, end, column, d, ENTRIES, WIDTH)
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
def sum_rows(offsets, indices, weights, source, chunk_sums, sums, d, CHUNK: tl.constexpr, ENTRIES: tl.constexpr, WIDTH: tl.constexpr):
    """One program a row and WIDTH columns: the entries before its first whole chunk and after its last, and the sums of those chunks."""
    row, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    start, end = tl.load(offsets + row), tl.load(offsets + row + 1)
    first, last = (start + CHUNK - 1) // CHUNK, end // CHUNK
    head = tl.minimum(first * CHUNK, end)
    total = _weighted_sum(indices, weights, source, start, head, column, d, ENTRIES, WIDTH)
    total += _weighted_sum(indices, weights, source, tl.maximum(last * CHUNK, head), end, column, d, ENTRIES, WIDTH)
    for chunk in range(first, last):
        total += tl.load(chunk_sums + chunk * d + column, mask=column < d, other=0.0)
    tl.store(sums + row * d + column, total, mask=column < d)


@_program
def _weighted_sum(indices, weights, source, start, end, column, d, ENTRIES: tl.constexpr, WIDTH: tl.constexpr):
    """The sum over the entries from `start` to `end`, at these columns; ENTRIES rows of the source are on their way at once."""
    total = tl.zeros([ENTRIES, WIDTH], tl.float32)
    for first in range(start, end, ENTRIES):
        entry = first + tl.arange(0, ENTRIES)
        listed = entry < end
        weight = tl.load(weights + entry, mask=listed, other=0.0)
        total += weight[:, None] * _rows_at(indices, source, entry, listed, column, d)
    return tl.sum(total, axis=0)


@_program
def _rows_at(indices, source, entry, listed, column, d):
    """The rows of the source that entries point at, in float32, at these columns."""
    at = tl.load(indices + entry, mask=listed, other=0).to(tl.int64)
    wanted = listed[:, None] & (column < d)[None, :]
    return tl.load(source + at[:, None] * d + column[None, :], mask=wanted, other=0.0).to(tl.float32)


@_program
def dots(offsets, indices, rows, source, products, d, ENTRIES: tl.constexpr, WIDTH: tl.constexpr):
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
            total += of_row[None, :] * _rows_at(indices, source, entry, listed, column, d)
        tl.store(products + entry, tl.sum(total, axis=1), mask=listed)
