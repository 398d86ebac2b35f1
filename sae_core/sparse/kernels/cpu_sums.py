"""Sums over the entries of a row or of a column, for CPUs, compiled by Numba; what each computes: `kernels.Kernels`.

All time goes into reading rows of a source in the order in which entries name them. Left to itself, LLVM writes a sum to memory after
every few of them; here sums stay in registers until all entries of their row are added.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.np.arrayobj import make_array

from sae_core.sparse.kernels.compiled import compiled, instruction

SUMMED = 64
"""Numbers of a row that are summed at a time: four registers of 512 bits, or eight of 256."""
MULTIPLIED = 16
"""Numbers of a row that an inner product takes at a time."""
TOGETHER = 4
"""Inner products with one row at a time."""
_I64, _F32 = ir.IntType(64), ir.FloatType()


@compiled
def sort_columns(columns: Any, offsets: Any, order: Any, rows: Any, starts: Any) -> None:
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


@compiled
def weighted_sums(first: int, last: int, offsets: Any, which: Any, weights: Any, source: Any, sums: Any) -> None:
    d = source.shape[1]
    whole = d // SUMMED * SUMMED
    for r in range(first, last):
        for column in range(0, whole, SUMMED):
            _sum_columns(offsets[r], offsets[r + 1], which, weights, source, d, column, sums[r])
        sums[r, whole:] = 0
        for entry in range(offsets[r], offsets[r + 1]):
            for j in range(whole, d):
                sums[r, j] += weights[entry] * source[which[entry], j]


@compiled
def dots(first: int, last: int, offsets: Any, which: Any, rows: Any, source: Any, products: Any) -> None:
    d = source.shape[1]
    whole = d // MULTIPLIED * MULTIPLIED
    for r in range(first, last):
        entry, end = offsets[r], offsets[r + 1]
        while entry + TOGETHER <= end:
            _some_products(rows[r], which, entry, source, d, whole, products)
            entry += TOGETHER
        while entry < end:
            _one_product(rows[r], which, entry, source, d, whole, products)
            entry += 1
        for entry in range(offsets[r], end):
            for j in range(whole, d):
                products[entry] += rows[r, j] * source[which[entry], j]


def _starts(context: Any, builder: Any, signature: Any, arguments: Any) -> list[Any]:
    """Where the numbers of each array argument begin; other arguments as they are."""
    pairs = zip(signature.args, arguments, strict=True)
    return [make_array(kind)(context, builder, value).data if isinstance(kind, types.Array) else value for kind, value in pairs]


def _load(builder: Any, start: Any, place: Any, n: int) -> Any:
    """A vector of the n float32 from a place on."""
    return builder.load(_vector_at(builder, start, place, n), align=4)


def _vector_at(builder: Any, start: Any, place: Any, n: int) -> Any:
    return builder.bitcast(builder.gep(start, [place]), ir.VectorType(_F32, n).as_pointer())


def _add_product(builder: Any, left: Any, right: Any, total: Any) -> None:
    """total += left * right, as one instruction where there is one."""
    product = builder.fmul(left, right, flags=("contract",))
    builder.store(builder.fadd(product, builder.load(total), flags=("contract",)), total)


@instruction
def _sum_columns(typing: Any, first: Any, last: Any, which: Any, weights: Any, source: Any, d: Any, column: Any, sums: Any) -> Any:
    """sums[column:][:SUMMED] = the sum of weights[e] * source[which[e], column:][:SUMMED] over the entries e from first to last."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        first, last, which, weights, source, d, column, sums = _starts(context, builder, signature, arguments)
        vector = ir.VectorType(_F32, SUMMED)
        nothing, undefined = ir.Constant(vector, [0.0] * SUMMED), ir.Constant(vector, ir.Undefined)
        in_all = ir.Constant(ir.VectorType(ir.IntType(32), SUMMED), [0] * SUMMED)
        total = cgutils.alloca_once(builder, vector)
        builder.store(nothing, total)
        with cgutils.for_range_slice(builder, first, last, _I64(1), _I64) as (entry, _):
            row = builder.mul(builder.load(builder.gep(which, [entry])), d)
            weight = builder.insert_element(undefined, builder.load(builder.gep(weights, [entry])), ir.IntType(32)(0))
            weight = builder.shuffle_vector(weight, undefined, in_all)
            _add_product(builder, _load(builder, source, builder.add(row, column), SUMMED), weight, total)
        builder.store(builder.load(total), _vector_at(builder, sums, column, SUMMED), align=4)
        return context.get_dummy_value()

    return types.none(first, last, which, weights, source, d, column, sums), generate


def _multiplying(n: int) -> Any:
    """products[e] = the inner product of left and source[which[e]], both up to `whole`, for n entries from `entry` on."""

    @instruction
    def multiply(typing: Any, left: Any, which: Any, entry: Any, source: Any, d: Any, whole: Any, products: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            left, which, entry, source, d, whole, products = _starts(context, builder, signature, arguments)
            vector = ir.VectorType(_F32, MULTIPLIED)
            entries = [builder.add(entry, _I64(i)) for i in range(n)]
            rows = [builder.gep(source, [builder.mul(builder.load(builder.gep(which, [e])), d)]) for e in entries]
            totals = [cgutils.alloca_once(builder, vector) for _ in entries]
            for total in totals:
                builder.store(ir.Constant(vector, [0.0] * MULTIPLIED), total)
            with cgutils.for_range_slice(builder, _I64(0), whole, _I64(MULTIPLIED), _I64) as (column, _):
                some = _load(builder, left, column, MULTIPLIED)
                for row, total in zip(rows, totals, strict=True):
                    _add_product(builder, some, _load(builder, row, column, MULTIPLIED), total)
            kind = ir.FunctionType(_F32, [_F32, vector])
            add_up = cgutils.get_or_insert_function(builder.module, kind, f"llvm.vector.reduce.fadd.v{MULTIPLIED}f32")
            for e, total in zip(entries, totals, strict=True):
                in_any_order = builder.call(add_up, [_F32(0.0), builder.load(total)], fastmath=("reassoc",))
                builder.store(in_any_order, builder.gep(products, [e]))
            return context.get_dummy_value()

        return types.none(left, which, entry, source, d, whole, products), generate

    return multiply


_some_products, _one_product = _multiplying(TOGETHER), _multiplying(1)
