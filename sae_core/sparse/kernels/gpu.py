"""The two sparse products in Triton, for CUDA; selection is `reference.py`'s. Specification: `choice.Kernels`.

Not yet run on a GPU, and so used on request only. The programs are tested on the CPU through Triton's interpreter, which runs them one
after another, and compiled for compute capability 8.0 and 9.0; sizes of blocks are guesses. On the first machine with a GPU:
`pytest -m gpu`, then `python benchmarks/gpu_steps.py` (docs/decisions/0014-triton.md).
"""

import torch
import triton
from jaxtyping import Float, Int
from torch import Tensor

from sae_core.sparse.kernels import triton_kernels as programs
from sae_core.sparse.kernels.reference import sort_columns, topk_rows, values_above

__all__ = ["dots", "sort_columns", "topk_rows", "values_above", "weighted_sums"]

CHUNK = 128
"""A row of many entries is shared out among programs in chunks of so many."""
COLUMNS_PER_WARP = 128
"""16 bytes of float32 for each of 32 threads: an inner product needs no sum across warps."""


def weighted_sums(
    offsets: Int[Tensor, " R_plus_1"], indices: Int[Tensor, " N"], weights: Float[Tensor, " N"], source: Float[Tensor, "M d"]
) -> Float[Tensor, "R d"]:
    entries = _plain(offsets), _plain(indices), _plain(weights), _plain(source)
    n_rows, n_chunks, d = len(offsets) - 1, len(indices) // CHUNK, source.shape[1]
    chunk_sums = torch.empty(n_chunks, d, device=source.device)
    sums = torch.empty(n_rows, d, device=source.device)
    width = min(256, triton.next_power_of_2(d))
    with torch.cuda.device_of(source):
        programs.sum_chunks[(n_chunks,)](*entries, chunk_sums, n_rows, d, CHUNK, 8, width, num_warps=2)
        programs.sum_rows[(n_rows, triton.cdiv(d, width))](*entries, chunk_sums, sums, d, CHUNK, 8, width, num_warps=2)
    return sums


def dots(
    offsets: Int[Tensor, " R_plus_1"], indices: Int[Tensor, " N"], rows: Float[Tensor, "R d"], source: Float[Tensor, "M d"]
) -> Float[Tensor, " N"]:
    products = torch.empty(len(indices), device=source.device)
    inputs = _plain(offsets), _plain(indices), _plain(rows), _plain(source)
    with torch.cuda.device_of(source):
        programs.dots[(len(rows),)](*inputs, products, source.shape[1], 16, COLUMNS_PER_WARP, num_warps=4)
    return products


def _plain(x: Tensor) -> Tensor:
    """Without gradient, and row by row in memory."""
    return x.detach().contiguous()
