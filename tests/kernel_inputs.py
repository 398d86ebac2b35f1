"""Inputs at which sparse kernels break: ties, zeros of both signs, outliers, empty rows; and their k largest by sorting."""

import torch
from hypothesis import strategies as st
from torch import Tensor

DTYPES = st.sampled_from([torch.float32, torch.bfloat16])
KINDS = st.sampled_from(["normal", "few values", "all equal", "zeros of both signs", "negative", "one outlier", "wide range"])
SEEDS = st.integers(0, 10**6)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def matrix(kind: str, shape: tuple[int, int], seed: int) -> Tensor:
    normal = randn(*shape, seed=seed)
    return {
        "normal": normal,
        "few values": normal.round(),
        "all equal": torch.full(shape, 0.3),
        "zeros of both signs": 0 * normal,
        "negative": -normal.abs() - 1,
        "one outlier": normal.index_fill(1, torch.tensor([0]), 1e6),
        "wide range": normal * 10 ** (4 * randn(*shape, seed=seed + 1)),
    }[kind]


def largest(products: Tensor, bias: Tensor, factors: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Columns and values as `topk_rows` gives them; of equal scores the first are kept."""
    values = products.float() + bias
    columns = (values * factors).sort(dim=1, descending=True, stable=True).indices[:, :k].sort(dim=1).values
    return columns, values.gather(1, columns)


@st.composite
def entries(draw: st.DrawFn) -> tuple[Tensor, Tensor, int, int]:
    """Offsets of rows, some empty and some longer than a chunk; what each entry points at, the number of those, and a seed."""
    n_source = draw(st.integers(1, 20))
    rows = draw(st.lists(st.sets(st.integers(0, n_source - 1)), min_size=1, max_size=6))
    offsets = torch.tensor([0, *map(len, rows)]).cumsum(0)
    indices = torch.tensor([each for row in rows for each in sorted(row)], dtype=torch.int64)
    return offsets, indices, n_source, draw(SEEDS)
