"""The sparse kernels in plain PyTorch: what the others are tested against, and what runs on GPUs. Specification: `choice.Kernels`."""

import warnings

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag, pad

# The CSR layout has been "in beta" since PyTorch 1.8; the one product we ask of it is tested against the dense one.
warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state", category=UserWarning)


def values_above(
    products: Float[Tensor, "B D"], bias: Float[Tensor, " D"], bound: Float[Tensor, " D"], most: int
) -> tuple[Int[Tensor, " N"], Float[Tensor, " N"], Int[Tensor, " B_plus_1"]] | None:
    values = products.float() + bias
    above = values > bound
    offsets = pad(above.sum(dim=1).cumsum(0), (1, 0))
    if int(offsets[-1]) > most:
        return None
    positions = above.flatten().nonzero().squeeze(1)
    return positions % products.shape[1], values.flatten()[positions], offsets


def topk_rows(
    products: Float[Tensor, "B D"], bias: Float[Tensor, " D"], factors: Float[Tensor, " D"], k: int
) -> tuple[Int[Tensor, "B k"], Float[Tensor, "B k"]]:
    values = products.float() + bias
    columns = (values * factors).topk(k, dim=-1, sorted=False).indices.sort(dim=-1).values
    return columns, values.gather(-1, columns)


def sort_columns(
    columns: Int[Tensor, " N"], offsets: Int[Tensor, " B_plus_1"], n_columns: int
) -> tuple[Int[Tensor, " N"], Int[Tensor, " N"], Int[Tensor, " D_plus_1"]]:
    # A GPU sorts integers digit by digit, and would have to be waited for by `bincount` and `repeat_interleave`.
    sorted_columns, order = columns.int().sort(stable=True)
    rows = torch.searchsorted(offsets[1:], order, right=True)
    return order, rows, torch.searchsorted(sorted_columns, torch.arange(n_columns + 1, dtype=torch.int32, device=columns.device))


def weighted_sums(
    offsets: Int[Tensor, " R_plus_1"], indices: Int[Tensor, " N"], weights: Float[Tensor, " N"], source: Float[Tensor, "M d"]
) -> Float[Tensor, "R d"]:
    return embedding_bag(indices, source, offsets, mode="sum", per_sample_weights=weights, include_last_offset=True)


def dots(
    offsets: Int[Tensor, " R_plus_1"], indices: Int[Tensor, " N"], rows: Float[Tensor, "R d"], source: Float[Tensor, "M d"]
) -> Float[Tensor, " N"]:
    # A product sampled at the entries.
    at = torch.sparse_csr_tensor(offsets, indices, rows.new_zeros(len(indices)), (len(rows), len(source)), check_invariants=False)
    return torch.sparse.sampled_addmm(at, rows, source.T, beta=0.0).values()
