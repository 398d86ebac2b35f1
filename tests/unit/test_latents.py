"""sae_core/sparse/latents.py, against the dense reference, with the kernels of this device and with the reference ones."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sae_core.sparse.kernels.choice import using_kernels
from sae_core.sparse.latents import Pattern, pre_acts_at, sparse_decode

pytestmark = pytest.mark.usefixtures("kernels")

# Three tokens, four latents; the second token has none, latent 3 is never active:
# [[1, 0, 2, 0],
#  [0, 0, 0, 0],
#  [0, -3, 4, 0]]
TOKENS, INDICES, OFFSETS = torch.tensor([0, 0, 2, 2]), torch.tensor([0, 2, 1, 2]), torch.tensor([0, 2, 2, 4])
VALUES = torch.tensor([1.0, 2.0, -3.0, 4.0])
DENSE = torch.tensor([[1.0, 0.0, 2.0, 0.0], [0.0, 0.0, 0.0, 0.0], [0.0, -3.0, 4.0, 0.0]])


def pattern() -> Pattern:
    return Pattern(INDICES, OFFSETS, 4)


def nothing() -> Pattern:
    return Pattern(torch.zeros(0, dtype=torch.int64), torch.zeros(4, dtype=torch.int64), 4)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_dense_is_the_same_matrix() -> None:
    assert torch.equal(pattern().dense(VALUES), DENSE)
    assert torch.equal(pattern().mask(), DENSE != 0)
    assert pattern().n_tokens == 3
    assert pattern().tokens.tolist() == TOKENS.tolist()


def test_rings_are_the_same_entries_width_by_width() -> None:
    rows = pattern().rings((1, 2, 4)).dense(VALUES).view(3, 3, 4)
    assert torch.equal(rows.sum(dim=1), DENSE)
    for row, (inner, outer) in zip(rows.unbind(1), [(0, 1), (1, 2), (2, 4)], strict=True):
        assert torch.equal(row[:, inner:outer], DENSE[:, inner:outer])


def test_no_entries_make_empty_rings() -> None:
    rings = nothing().rings((2, 4))
    assert rings.n_tokens == 3 * 2 and not rings.offsets.any()


def test_rings_are_sorted_as_any_pattern_is() -> None:
    rings = pattern().rings((1, 2, 4))
    found, sorted_anew = rings.by_latent, Pattern(rings.indices, rings.offsets, rings.d_sae).by_latent
    for name in ("order", "tokens", "offsets"):
        assert getattr(found, name).tolist() == getattr(sorted_anew, name).tolist(), name


def test_by_latent_are_the_same_entries_sorted() -> None:
    by_latent = pattern().by_latent
    assert by_latent.order.tolist() == [0, 2, 1, 3]
    assert by_latent.tokens.tolist() == [0, 2, 0, 2]
    assert by_latent.offsets.tolist() == [0, 1, 2, 4, 4]


def test_sum_rows_is_the_transposed_product() -> None:
    rows = random(3, 5)
    torch.testing.assert_close(pattern().by_latent.sum_rows(VALUES, rows), DENSE.T @ rows)


def gradients(function: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    """The output, and gradients of an arbitrary functional of it for every input."""
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    out = function(*leaves)
    (out * random(*out.shape, seed=9)).sum().backward()
    return [out.detach(), *(leaf.grad if leaf.grad is not None else torch.zeros_like(leaf) for leaf in leaves)]


def to_dense(values: Tensor) -> Tensor:
    return torch.zeros(3, 4, dtype=values.dtype).index_put((TOKENS, INDICES), values)


def test_sparse_decode_is_the_dense_product_with_its_gradients() -> None:
    values, W_dec = random(4), random(4, 5)
    sparse = gradients(lambda v, W: sparse_decode(v, W, pattern()), values, W_dec)
    torch.testing.assert_close(sparse, gradients(lambda v, W: to_dense(v) @ W, values, W_dec))


@pytest.mark.parametrize("has_bias", [True, False])
def test_pre_acts_at_are_the_dense_ones_with_their_gradients(has_bias: bool) -> None:
    x, b_dec, W_enc, b_enc = random(3, 5), random(5, seed=1), random(5, 4, seed=2), random(4, seed=3)

    def dense(b_dec: Tensor, W_enc: Tensor, bias: Tensor | None = None) -> Tensor:
        products = (x - b_dec) @ W_enc
        return (products if bias is None else products + bias)[TOKENS, INDICES]

    def sparse(b_dec: Tensor, W_enc: Tensor, bias: Tensor | None = None) -> Tensor:
        return pre_acts_at(pattern(), dense(b_dec, W_enc, bias).detach(), x, b_dec, W_enc, bias)

    parameters = (b_dec, W_enc, b_enc) if has_bias else (b_dec, W_enc)
    torch.testing.assert_close(gradients(sparse, *parameters), gradients(dense, *parameters))


def test_a_gradient_of_the_encoder_lies_in_memory_like_the_encoder() -> None:
    # Latent by latent; in another order every optimizer step would have to turn it around.
    W_enc = random(4, 5).T.requires_grad_()
    pre_acts_at(pattern(), VALUES, random(3, 5), random(5), W_enc, None).sum().backward()
    assert W_enc.grad is not None and W_enc.grad.stride() == W_enc.stride() == (1, 5)


def test_gradients_are_derivatives() -> None:
    # Finite differences need float64, which only the reference knows.
    values, W_dec = random(4).double().requires_grad_(), random(4, 5).double().requires_grad_()
    with using_kernels("reference"):
        assert torch.autograd.gradcheck(lambda v, W: sparse_decode(v, W, pattern()), (values, W_dec))


@pytest.mark.parametrize(("entries", "values"), [(nothing(), torch.zeros(0)), (pattern(), torch.zeros(4))], ids=["no entries", "zeros"])
def test_what_is_not_active_decodes_to_0(entries: Pattern, values: Tensor) -> None:
    W_dec = random(4, 5).requires_grad_()
    out = sparse_decode(values, W_dec, entries)
    assert torch.equal(out, torch.zeros(3, 5)) and torch.equal(entries.dense(values), torch.zeros(3, 4))
    out.sum().backward()
    assert W_dec.grad is not None and not W_dec.grad.any()
