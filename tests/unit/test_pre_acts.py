"""sae_core/sparse/pre_acts.py: a matrix and a list of the same pre-activations give the same sums and the same gradients."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sae_core.sparse.active import ActiveLatents
from sae_core.sparse.kernels.choice import using_kernels
from sae_core.sparse.pre_acts import (
    SPARSE_FRACTION,
    DensePreActs,
    PreActs,
    SparsePreActs,
    encoder_products,
    pre_acts_above,
    pre_acts_at,
    sparse_decode,
)

B, D_IN, D_SAE = 6, 5, 8


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# A token and a latent without active ones are among them: token 4, latent 7.
DENSE = randn(B, D_SAE).masked_fill(randn(B, D_SAE, seed=1) < 0.2, 0).index_fill(0, torch.tensor(4), 0).index_fill(1, torch.tensor(7), 0)
W_DEC, WEIGHTS = randn(D_SAE, D_IN, seed=2), randn(D_SAE, seed=3)


def active() -> ActiveLatents:
    offsets = torch.nn.functional.pad((DENSE != 0).sum(dim=1).cumsum(0), (1, 0))
    return ActiveLatents(DENSE.nonzero()[:, 1], offsets, D_SAE)


def as_dense(latents: Tensor) -> PreActs:
    return DensePreActs(latents)


def as_sparse(latents: Tensor) -> PreActs:
    return SparsePreActs(latents[active().tokens, active().indices], active())


BOTH = pytest.mark.parametrize("pre_acts_of", [as_dense, as_sparse])
FORMULAS: dict[str, tuple[Callable[[PreActs, Tensor, Tensor], Tensor], Callable[[Tensor, Tensor, Tensor], Tensor]]] = {
    "gather": (lambda e, w, W: e.per_token(e.values * e.gather(w)), lambda z, w, W: (z * w).sum(dim=1)),
    "decode": (lambda e, w, W: e.decode(e.values, W), lambda z, w, W: z @ W),
    "per_token": (lambda e, w, W: e.per_token(e.values**2), lambda z, w, W: (z**2).sum(dim=1)),
    "weighted_mean": (lambda e, w, W: e.weighted_mean(e.values, w), lambda z, w, W: (z * w).sum(dim=1).mean()),
}


def with_gradients(function: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor | None]:
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    out = function(*leaves)
    (out * randn(*out.shape, seed=9)).sum().backward()
    return [out.detach(), *(leaf.grad for leaf in leaves)]


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("formula", FORMULAS)
@BOTH
def test_sums_and_gradients_are_those_of_the_matrix(pre_acts_of: Callable[[Tensor], PreActs], formula: str) -> None:
    ours, dense = FORMULAS[formula]
    expected = with_gradients(dense, DENSE, WEIGHTS, W_DEC)
    found = with_gradients(lambda z, w, W: ours(pre_acts_of(z), w, W), DENSE, WEIGHTS, W_DEC)
    # Sparse ones have no gradient elsewhere, and need none.
    assert expected[1] is not None and found[1] is not None
    expected[1], found[1] = (gradient * (DENSE != 0) for gradient in (expected[1], found[1]))
    torch.testing.assert_close(found, expected)


@BOTH
def test_sparsity(pre_acts_of: Callable[[Tensor], PreActs]) -> None:
    acts = pre_acts_of(DENSE.clone().requires_grad_())
    latents = acts.values.relu()  # some are not active
    l0, active = acts.sparsity(latents)
    assert float(l0) == pytest.approx(int((DENSE > 0).sum()) / B) and not l0.requires_grad
    assert active.tolist() == (DENSE > 0).any(dim=0).tolist()
    negative = acts.sparsity(-latents)
    assert float(negative[0]) == float(l0) and torch.equal(negative[1], active)


def test_without_active_latents_sums_are_0() -> None:
    empty = ActiveLatents(torch.zeros(0, dtype=torch.int64), torch.zeros(B + 1, dtype=torch.int64), D_SAE)
    acts = SparsePreActs(torch.zeros(0, requires_grad=True), empty)
    assert not acts.decode(acts.values, W_DEC).any() and not acts.per_token(acts.values).any()
    assert float(acts.weighted_mean(acts.values, WEIGHTS).detach()) == 0
    l0, active = acts.sparsity(acts.values)
    assert float(l0) == 0 and not active.any()


def test_a_matrix_keeps_its_precision_and_sums_in_float32() -> None:
    acts = DensePreActs(torch.ones(2, 600, dtype=torch.bfloat16))
    assert acts.gather(torch.ones(600)).dtype == torch.bfloat16
    total, mean = acts.per_token(acts.values), acts.weighted_mean(acts.values, torch.ones(600))
    assert total.dtype == mean.dtype == torch.float32 and total.tolist() == [600, 600]
    assert DensePreActs(torch.ones(2, 3, dtype=torch.float64)).per_token(torch.ones(2, 3, dtype=torch.float64)).dtype == torch.float64


# Pre-activations (x - b_dec) @ W_enc + bias of the following, against bounds; a fifth of 10 x 8 is 16.
X, B_DEC, W_ENC, BIAS = randn(10, D_IN, seed=4), randn(D_IN, seed=5), randn(D_SAE, D_IN, seed=6).T, randn(D_SAE, seed=7)


def bound_for(n: int, bias: Tensor | None) -> Tensor:
    """A bound that n pre-activations are above; one more is exactly there."""
    pre_acts = encoder_products(X, B_DEC, W_ENC) + (0 if bias is None else bias)
    return pre_acts.flatten().sort(descending=True).values[n].expand(D_SAE).clone()


@pytest.mark.parametrize("bias", [BIAS, None], ids=["bias", "no bias"])
@pytest.mark.parametrize(
    ("n_above", "form"), [(0, SparsePreActs), (1, SparsePreActs), (16, SparsePreActs), (17, DensePreActs), (79, DensePreActs)]
)
def test_few_are_sparse_and_many_are_dense(n_above: int, form: type[PreActs], bias: Tensor | None) -> None:
    assert int(SPARSE_FRACTION * 80) == 16
    bound = bound_for(n_above, bias)
    acts = pre_acts_above(bound, X, B_DEC, W_ENC, bias)
    pre_acts = encoder_products(X, B_DEC, W_ENC) + (0 if bias is None else bias)
    assert isinstance(acts, form)
    if isinstance(acts, SparsePreActs):
        assert torch.equal(acts.active.mask(), pre_acts > bound)
        torch.testing.assert_close(acts.active.dense(acts.values), pre_acts * (pre_acts > bound))
    else:
        torch.testing.assert_close(acts.values, pre_acts)


def test_without_fast_kernels_all_are_dense() -> None:
    with using_kernels("reference"):
        assert isinstance(pre_acts_above(bound_for(3, BIAS), X, B_DEC, W_ENC, BIAS), DensePreActs)


def of_parameters(form: Callable[..., PreActs], bias: Tensor | None) -> list[Tensor | None]:
    """What is above a bound decoded, with the gradients of b_dec, W_enc, and the bias if there is one."""
    bound = bound_for(12, bias)

    def decoded(*parameters: Tensor) -> Tensor:
        acts = form(bound, X, *parameters, *([None] if bias is None else []))
        return acts.decode(acts.values * (acts.values > acts.gather(bound)), W_DEC)

    return with_gradients(decoded, B_DEC, W_ENC, *([] if bias is None else [bias]))


def as_matrix(bound: Tensor, x: Tensor, b_dec: Tensor, W_enc: Tensor, bias: Tensor | None) -> PreActs:
    return DensePreActs((x - b_dec) @ W_enc + (0 if bias is None else bias))


def as_list(bound: Tensor, x: Tensor, b_dec: Tensor, W_enc: Tensor, bias: Tensor | None) -> PreActs:
    pre_acts = as_matrix(bound, x, b_dec, W_enc, bias).values.detach()
    offsets = torch.nn.functional.pad((pre_acts > bound).sum(dim=1).cumsum(0), (1, 0))
    chosen = ActiveLatents((pre_acts > bound).nonzero()[:, 1], offsets, D_SAE)
    return SparsePreActs(pre_acts_at(chosen, pre_acts[pre_acts > bound], x, b_dec, W_enc, bias), chosen)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("bias", [BIAS, None], ids=["bias", "no bias"])
@pytest.mark.parametrize("form", [pre_acts_above, as_list])
def test_gradients_of_the_encoder_are_those_of_the_matrix(form: Callable[..., PreActs], bias: Tensor | None) -> None:
    torch.testing.assert_close(of_parameters(form, bias), of_parameters(as_matrix, bias))


def test_under_autocast_a_list_rounds_only_the_product() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        acts = pre_acts_above(bound_for(5, BIAS), X, B_DEC, W_ENC, BIAS)
        products = encoder_products(X, B_DEC, W_ENC)
    assert isinstance(acts, SparsePreActs) and products.dtype == torch.bfloat16
    assert torch.equal(acts.values, (products.float() + BIAS)[acts.active.tokens, acts.active.indices])


def test_under_autocast_a_matrix_stays_in_half_precision() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        acts = pre_acts_above(bound_for(40, BIAS), X, B_DEC, W_ENC, BIAS)
    assert isinstance(acts, DensePreActs) and acts.values.dtype == torch.bfloat16


def test_a_gradient_of_the_encoder_lies_in_memory_like_the_encoder() -> None:
    # Latent by latent; in another order every optimizer step would have to turn it around.
    W_enc = randn(D_SAE, D_IN).T.requires_grad_()
    pre_acts_at(active(), DENSE[DENSE != 0], randn(B, D_IN), randn(D_IN), W_enc, None).sum().backward()
    assert W_enc.grad is not None and W_enc.grad.stride() == W_enc.stride() == (1, D_IN)


def test_gradients_are_derivatives() -> None:
    # Finite differences need float64, which only the reference knows.
    values, W_dec = DENSE[DENSE != 0].double().requires_grad_(), W_DEC.double().requires_grad_()
    with using_kernels("reference"):
        assert torch.autograd.gradcheck(lambda v, W: sparse_decode(v, W, active()), (values, W_dec))
