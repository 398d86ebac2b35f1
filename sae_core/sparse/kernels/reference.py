"""The sparse kernels in plain PyTorch: what the fast ones are tested against, and what runs where there are none.

What each computes: `kernels.Kernels`.
"""

import warnings

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag

# The CSR layout has been "in beta" since PyTorch 1.8; the one product we ask of it is tested against the dense one.
warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state", category=UserWarning)


def entries_above(
    products: Float[Tensor, "B D"], bias: Float[Tensor, " D"], bound: Float[Tensor, " D"], most: int
) -> tuple[Int[Tensor, " N"], Float[Tensor, " N"], Int[Tensor, " B_plus_1"]] | None:
    values = products.float() + bias
    above = values > bound
    offsets = _offsets(above.sum(dim=1))
    if int(offsets[-1]) > most:
        return None
    positions = above.flatten().nonzero().squeeze(1)
    return positions % products.shape[1], values.flatten()[positions], offsets


def largest_entries(
    columns: Int[Tensor, " N"], values: Float[Tensor, " N"], offsets: Int[Tensor, " B_plus_1"], scores: Float[Tensor, " N"], n: int
) -> tuple[Int[Tensor, " M"], Float[Tensor, " M"], Int[Tensor, " B_plus_1"], Float[Tensor, ""]]:
    smallest = scores.kthvalue(max(1, len(scores) - n + 1)).values
    keep = scores >= smallest
    kept, kept_before = keep.nonzero().squeeze(1), _offsets(keep.long())
    return columns[kept], values[kept], kept_before[offsets], smallest


def topk_rows(
    products: Float[Tensor, "B D"], bias: Float[Tensor, " D"], factors: Float[Tensor, " D"], k: int
) -> tuple[Int[Tensor, "B k"], Float[Tensor, "B k"]]:
    values = products.float() + bias
    columns = (values * factors).topk(k, dim=-1, sorted=False).indices.sort(dim=-1).values
    return columns, values.gather(-1, columns)


def sort_columns(
    columns: Int[Tensor, " N"], offsets: Int[Tensor, " B_plus_1"], n_columns: int
) -> tuple[Int[Tensor, " N"], Int[Tensor, " N"], Int[Tensor, " D_plus_1"]]:
    order = torch.argsort(columns, stable=True)
    rows = torch.repeat_interleave(torch.arange(len(offsets) - 1, device=columns.device), offsets.diff(), output_size=len(columns))
    return order, rows[order], _offsets(torch.bincount(columns, minlength=n_columns))


def weighted_sums(
    offsets: Int[Tensor, " R_plus_1"], which: Int[Tensor, " N"], weights: Float[Tensor, " N"], source: Float[Tensor, "M d"]
) -> Float[Tensor, "R d"]:
    return embedding_bag(which, source, offsets, mode="sum", per_sample_weights=weights, include_last_offset=True)


def dots(
    offsets: Int[Tensor, " R_plus_1"], which: Int[Tensor, " N"], rows: Float[Tensor, "R d"], source: Float[Tensor, "M d"]
) -> Float[Tensor, " N"]:
    # A product sampled at the entries.
    pattern = torch.sparse_csr_tensor(offsets, which, rows.new_zeros(len(which)), (len(rows), len(source)), check_invariants=False)
    return torch.sparse.sampled_addmm(pattern, rows, source.T, beta=0.0).values()


def _offsets(counts: Int[Tensor, " R"]) -> Int[Tensor, " R_plus_1"]:
    return torch.nn.functional.pad(counts.cumsum(0), (1, 0))
