"""The sparse kernels for CUDA GPUs, in Triton; what each computes: `kernels.Kernels`.

Not yet run on a GPU: none could be had while this was written. The programs are tested on the CPU through Triton's interpreter, which
runs them one after another, and compiled for compute capability 8.0 and 9.0; sizes of blocks are guesses. On the first machine
with a GPU: `pytest -m gpu`, then `python benchmarks/gpu_steps.py` (docs/decisions/0014-triton.md).

Only `entries_above` and `largest_entries` wait for the device: they make room for as many entries as there are.
"""

import torch
import triton
from jaxtyping import Float, Int
from torch import Tensor

from sae_core.sparse.kernels import triton_kernels as programs
from sae_core.sparse.kernels.reference import largest_entries

__all__ = ["dots", "entries_above", "largest_entries", "sort_columns", "topk_rows", "weighted_sums"]

WIDEST = 4096
"""Columns that one program looks for the largest among."""
SCORES_PER_THREAD = 16
"""That it keeps in registers meanwhile."""
CHUNK = 128
"""A row of many entries is shared out among programs in chunks of so many."""
COLUMNS_AT_ONCE = 4
"""That a thread reads next to each other: 16 bytes of float32."""
THREADS_PER_WARP = 32


def entries_above(
    products: Float[Tensor, "B D"], bias: Float[Tensor, " D"], bound: Float[Tensor, " D"], most: int
) -> tuple[Int[Tensor, " N"], Float[Tensor, " N"], Int[Tensor, " B_plus_1"]] | None:
    products, bias, bound = _plain(products), _plain(bias), _plain(bound)
    n_rows, n_columns = products.shape
    width = min(1024, triton.next_power_of_2(n_columns))
    offsets = torch.zeros(n_rows + 1, dtype=torch.int64, device=products.device)
    with torch.cuda.device_of(products):
        programs.count_above[(n_rows,)](products, bias, bound, offsets[1:], n_columns, width)
        offsets = offsets.cumsum(0)
        n_entries = int(offsets[-1])  # waits for the device
        if n_entries > most:
            return None
        columns = torch.empty(n_entries, dtype=torch.int64, device=products.device)
        values = torch.empty(n_entries, device=products.device)
        programs.list_above[(n_rows,)](products, bias, bound, offsets, columns, values, n_columns, width)
    return columns, values, offsets


def topk_rows(
    products: Float[Tensor, "B D"], bias: Float[Tensor, " D"], factors: Float[Tensor, " D"], k: int
) -> tuple[Int[Tensor, "B k"], Float[Tensor, "B k"]]:
    products, bias = _plain(products), _plain(bias)
    columns = _topk_columns(products, bias, _plain(factors), k)
    return columns, _values_at(products, bias, columns)


def _topk_columns(products: Float[Tensor, "B D"], bias: Float[Tensor, " D"], factors: Float[Tensor, " D"], k: int) -> Int[Tensor, "B k"]:
    n_rows, n_columns = products.shape
    # A wide row is cut into stretches, and its largest are looked for among the largest of those; not where so many are kept that it
    # would hardly get narrower.
    n_parts = triton.cdiv(n_columns, WIDEST) if 4 * k <= WIDEST else 1
    width = triton.cdiv(n_columns, n_parts)
    block = triton.next_power_of_2(width)
    n_warps = min(16, triton.cdiv(block, SCORES_PER_THREAD * THREADS_PER_WARP))
    groups = min(block, COLUMNS_AT_ONCE * THREADS_PER_WARP * n_warps)
    columns = torch.empty(n_rows, n_parts * k, dtype=torch.int64, device=products.device)
    with torch.cuda.device_of(products):
        programs.topk_columns[(n_rows, n_parts)](
            products, bias, factors, columns, n_columns, width, k, block // groups, groups, num_warps=n_warps
        )
    if n_parts == 1:
        return columns
    scores = _values_at(products, bias, columns) * factors[columns]
    neither = bias.new_zeros(n_parts * k)
    return columns.gather(1, _topk_columns(scores, neither, neither + 1, k))


def _values_at(products: Float[Tensor, "B D"], bias: Float[Tensor, " D"], columns: Int[Tensor, "B k"]) -> Float[Tensor, "B k"]:
    values = torch.empty(columns.shape, device=columns.device)
    n_entries, width = columns.numel(), 256
    with torch.cuda.device_of(products):
        programs.values_at[(triton.cdiv(n_entries, width),)](
            products, bias, columns, values, n_entries, products.shape[1], columns.shape[1], width
        )
    return values


def sort_columns(
    columns: Int[Tensor, " N"], offsets: Int[Tensor, " B_plus_1"], n_columns: int
) -> tuple[Int[Tensor, " N"], Int[Tensor, " N"], Int[Tensor, " D_plus_1"]]:
    # PyTorch sorts integers digit by digit: those of 16 bits in a quarter of the passes that 64 take.
    narrow = torch.int16 if n_columns < 2**15 else torch.int32
    sorted_columns, order = columns.to(narrow).sort(stable=True)
    # `bincount` and `repeat_interleave` would wait for the device to know the size of their results.
    rows = torch.searchsorted(offsets[1:], order, right=True)
    starts = torch.searchsorted(sorted_columns, torch.arange(n_columns + 1, dtype=narrow, device=columns.device))
    return order, rows, starts


def weighted_sums(
    offsets: Int[Tensor, " R_plus_1"], which: Int[Tensor, " N"], weights: Float[Tensor, " N"], source: Float[Tensor, "M d"]
) -> Float[Tensor, "R d"]:
    offsets, which, weights, source = _plain(offsets), _plain(which), _plain(weights), _plain(source)
    n_rows, n_chunks, d = len(offsets) - 1, len(which) // CHUNK, source.shape[1]
    chunk_sums = torch.empty(n_chunks, d, device=source.device)
    sums = torch.empty(n_rows, d, device=source.device)
    width = min(256, triton.next_power_of_2(d))
    entries = offsets, which, weights, source
    with torch.cuda.device_of(source):
        programs.sum_chunks[(n_chunks,)](*entries, chunk_sums, n_rows, d, CHUNK, 8, width, num_warps=2)
        programs.sum_rows[(n_rows, triton.cdiv(d, width))](*entries, chunk_sums, sums, d, CHUNK, 8, width, num_warps=2)
    return sums


def dots(
    offsets: Int[Tensor, " R_plus_1"], which: Int[Tensor, " N"], rows: Float[Tensor, "R d"], source: Float[Tensor, "M d"]
) -> Float[Tensor, " N"]:
    offsets, which, rows, source = _plain(offsets), _plain(which), _plain(rows), _plain(source)
    products = torch.empty(len(which), device=source.device)
    # A warp has 128 columns of an entry, so that no sum has to cross from one warp to another.
    width = COLUMNS_AT_ONCE * THREADS_PER_WARP
    with torch.cuda.device_of(source):
        programs.dots[(len(rows),)](offsets, which, rows, source, products, source.shape[1], 16, width, num_warps=4)
    return products


def _plain(x: Tensor) -> Tensor:
    """Without gradient, and row by row in memory."""
    return x.detach().contiguous()
