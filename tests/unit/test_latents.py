"""sae_core/sparse/latents.py, against the dense reference."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sae_core.sparse.latents import LatentOrder, SparseLatents, pre_acts_at, sparse_decode

# Three tokens, four latents; the second token has none, latent 3 is never active:
# [[1, 0, 2, 0],
#  [0, 0, 0, 0],
#  [0, -3, 4, 0]]
INDICES, OFFSETS = torch.tensor([0, 2, 1, 2]), torch.tensor([0, 2, 2, 4])
DENSE = torch.tensor([[1.0, 0.0, 2.0, 0.0], [0.0, 0.0, 0.0, 0.0], [0.0, -3.0, 4.0, 0.0]])


def latents(values: Tensor | None = None) -> SparseLatents:
    return SparseLatents(torch.tensor([1.0, 2.0, -3.0, 4.0]) if values is None else values, INDICES, OFFSETS, 4)


def nothing() -> SparseLatents:
    return SparseLatents(torch.zeros(0), torch.zeros(0, dtype=torch.int64), torch.zeros(4, dtype=torch.int64), 4)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_dense_is_the_same_matrix() -> None:
    assert torch.equal(latents().dense(), DENSE)
    assert latents().n_tokens == 3
    assert latents().tokens().tolist() == [0, 0, 2, 2]


def test_where_keeps_the_marked_entries() -> None:
    kept = latents().where(torch.tensor([False, True, True, False]))
    assert kept.dense().tolist() == [[0, 0, 2, 0], [0, 0, 0, 0], [0, -3, 0, 0]]
    assert kept.offsets.tolist() == [0, 1, 1, 2]


def test_active_latents_are_those_not_0() -> None:
    assert latents(torch.tensor([0.0, 2.0, -3.0, 4.0])).active().tolist() == [False, True, True, False]


def test_scatter_rows_is_the_transposed_product() -> None:
    sparse, rows = latents(), random(3, 5)
    torch.testing.assert_close(LatentOrder.of(sparse).scatter_rows(sparse.values, rows), DENSE.T @ rows)


def gradients(function: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    """The output, and gradients of an arbitrary functional of it for every input."""
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    out = function(*leaves)
    (out * random(*out.shape, seed=9)).sum().backward()
    return [out.detach(), *(leaf.grad if leaf.grad is not None else torch.zeros_like(leaf) for leaf in leaves)]


def to_dense(values: Tensor) -> Tensor:
    return torch.zeros(3, 4).index_put((torch.tensor([0, 0, 2, 2]), INDICES), values)


def test_sparse_decode_is_the_dense_product_with_its_gradients() -> None:
    values, W_dec = random(4), random(4, 5)

    def sparse(values: Tensor, W_dec: Tensor) -> Tensor:
        entries = latents(values)
        return sparse_decode(entries, W_dec, LatentOrder.of(entries))

    torch.testing.assert_close(gradients(sparse, values, W_dec), gradients(lambda v, W: to_dense(v) @ W, values, W_dec))


def test_pre_acts_at_are_the_dense_ones_with_their_gradients() -> None:
    x, b_dec, W_enc, b_enc = random(3, 5), random(5, seed=1), random(5, 4, seed=2), random(4, seed=3)

    def dense(b_dec: Tensor, W_enc: Tensor, b_enc: Tensor) -> Tensor:
        return ((x - b_dec) @ W_enc + b_enc)[torch.tensor([0, 0, 2, 2]), INDICES]

    def sparse(b_dec: Tensor, W_enc: Tensor, b_enc: Tensor) -> Tensor:
        entries = latents(dense(b_dec, W_enc, b_enc).detach())
        return pre_acts_at(entries, x, b_dec, W_enc, b_enc, LatentOrder.of(entries))

    torch.testing.assert_close(gradients(sparse, b_dec, W_enc, b_enc), gradients(dense, b_dec, W_enc, b_enc))


def test_gradients_are_derivatives() -> None:
    W_dec = random(4, 5).double().requires_grad_()
    values = random(4).double().requires_grad_()

    def decode(values: Tensor, W_dec: Tensor) -> Tensor:
        entries = latents(values)
        return sparse_decode(entries, W_dec, LatentOrder.of(entries))

    assert torch.autograd.gradcheck(decode, (values, W_dec))


@pytest.mark.parametrize("entries", [nothing(), latents(torch.zeros(4))], ids=["no entries", "zeros"])
def test_inactive_latents_decode_to_0(entries: SparseLatents) -> None:
    W_dec = random(4, 5).requires_grad_()
    out = sparse_decode(entries, W_dec, LatentOrder.of(entries))
    assert torch.equal(out, torch.zeros(3, 5))
    assert torch.equal(entries.dense(), torch.zeros(3, 4)) and not entries.active().any()
    out.sum().backward()
    assert W_dec.grad is not None and not W_dec.grad.any()
