"""sae_core/sparse/entries.py: a matrix and a list of the same pre-activations give the same sums and the same gradients."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sae_core.sparse.entries import LISTED_FRACTION, AllEntries, Entries, ListedEntries, encoder_products, entries_above
from sae_core.sparse.kernels.choice import using_kernels
from sae_core.sparse.latents import Pattern, pre_acts_at

B, D_IN, D_SAE = 6, 5, 8


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# A token and a latent without entries are among them: token 4, latent 7.
DENSE = randn(B, D_SAE).masked_fill(randn(B, D_SAE, seed=1) < 0.2, 0).index_fill(0, torch.tensor(4), 0).index_fill(1, torch.tensor(7), 0)
W_DEC, WEIGHTS = randn(D_SAE, D_IN, seed=2), randn(D_SAE, seed=3)


def pattern() -> Pattern:
    offsets = torch.nn.functional.pad((DENSE != 0).sum(dim=1).cumsum(0), (1, 0))
    return Pattern(DENSE.nonzero()[:, 1], offsets, D_SAE)


def all_entries(dense: Tensor) -> Entries:
    return AllEntries(dense)


def listed_entries(dense: Tensor) -> Entries:
    return ListedEntries(dense[pattern().tokens, pattern().indices], pattern())


BOTH = pytest.mark.parametrize("entries_of", [all_entries, listed_entries])
FORMULAS: dict[str, tuple[Callable[[Entries, Tensor, Tensor], Tensor], Callable[[Tensor, Tensor, Tensor], Tensor]]] = {
    "of_latent": (lambda e, w, W: e.per_token(e.pre_acts * e.of_latent(w)), lambda z, w, W: (z * w).sum(dim=1)),
    "decode": (lambda e, w, W: e.decode(e.pre_acts, W), lambda z, w, W: z @ W),
    "per_token": (lambda e, w, W: e.per_token(e.pre_acts**2), lambda z, w, W: (z**2).sum(dim=1)),
    "weighted_mean": (lambda e, w, W: e.weighted_mean(e.pre_acts, w), lambda z, w, W: (z * w).sum(dim=1).mean()),
}


def with_gradients(function: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor | None]:
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    out = function(*leaves)
    (out * randn(*out.shape, seed=9)).sum().backward()
    return [out.detach(), *(leaf.grad for leaf in leaves)]


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("formula", FORMULAS)
@BOTH
def test_sums_and_gradients_are_those_of_the_matrix(entries_of: Callable[[Tensor], Entries], formula: str) -> None:
    ours, dense = FORMULAS[formula]
    expected = with_gradients(dense, DENSE, WEIGHTS, W_DEC)
    found = with_gradients(lambda z, w, W: ours(entries_of(z), w, W), DENSE, WEIGHTS, W_DEC)
    # A list has no gradient where it has no entry, and needs none.
    assert expected[1] is not None and found[1] is not None
    expected[1], found[1] = (gradient * (DENSE != 0) for gradient in (expected[1], found[1]))
    torch.testing.assert_close(found, expected)


@BOTH
def test_sparsity(entries_of: Callable[[Tensor], Entries]) -> None:
    entries = entries_of(DENSE.clone().requires_grad_())
    latents = entries.pre_acts.relu()  # some entries are not active
    l0, active = entries.sparsity(latents)
    assert float(l0) == pytest.approx(int((DENSE > 0).sum()) / B) and not l0.requires_grad
    assert active.tolist() == (DENSE > 0).any(dim=0).tolist()
    negative = entries.sparsity(-latents)
    assert float(negative[0]) == float(l0) and torch.equal(negative[1], active)


def test_without_entries_sums_are_0() -> None:
    empty = Pattern(torch.zeros(0, dtype=torch.int64), torch.zeros(B + 1, dtype=torch.int64), D_SAE)
    entries = ListedEntries(torch.zeros(0, requires_grad=True), empty)
    assert not entries.decode(entries.pre_acts, W_DEC).any() and not entries.per_token(entries.pre_acts).any()
    assert float(entries.weighted_mean(entries.pre_acts, WEIGHTS).detach()) == 0
    l0, active = entries.sparsity(entries.pre_acts)
    assert float(l0) == 0 and not active.any()


def test_a_matrix_keeps_its_precision_and_sums_in_float32() -> None:
    entries = AllEntries(torch.ones(2, 600, dtype=torch.bfloat16))
    assert entries.of_latent(torch.ones(600)).dtype == torch.bfloat16
    total, mean = entries.per_token(entries.pre_acts), entries.weighted_mean(entries.pre_acts, torch.ones(600))
    assert total.dtype == mean.dtype == torch.float32 and total.tolist() == [600, 600]
    assert AllEntries(torch.ones(2, 3, dtype=torch.float64)).per_token(torch.ones(2, 3, dtype=torch.float64)).dtype == torch.float64


# Pre-activations (x - b_dec) @ W_enc + bias of the following, against bounds; a fifth of 10 x 8 entries is 16.
X, B_DEC, W_ENC, BIAS = randn(10, D_IN, seed=4), randn(D_IN, seed=5), randn(D_SAE, D_IN, seed=6).T, randn(D_SAE, seed=7)


def bound_for(n: int, bias: Tensor | None) -> Tensor:
    """A bound that n pre-activations are above; one more is exactly there."""
    pre_acts = encoder_products(X, B_DEC, W_ENC) + (0 if bias is None else bias)
    return pre_acts.flatten().sort(descending=True).values[n].expand(D_SAE).clone()


@pytest.mark.parametrize("bias", [BIAS, None], ids=["bias", "no bias"])
@pytest.mark.parametrize(
    ("n_above", "form"), [(0, ListedEntries), (1, ListedEntries), (16, ListedEntries), (17, AllEntries), (79, AllEntries)]
)
def test_few_entries_are_listed_and_many_are_not(n_above: int, form: type[Entries], bias: Tensor | None) -> None:
    assert int(LISTED_FRACTION * 80) == 16
    bound = bound_for(n_above, bias)
    entries = entries_above(bound, X, B_DEC, W_ENC, bias)
    pre_acts = encoder_products(X, B_DEC, W_ENC) + (0 if bias is None else bias)
    assert isinstance(entries, form)
    if isinstance(entries, ListedEntries):
        assert torch.equal(entries.pattern.mask(), pre_acts > bound)
        torch.testing.assert_close(entries.pattern.dense(entries.pre_acts), pre_acts * (pre_acts > bound))
    else:
        torch.testing.assert_close(entries.pre_acts, pre_acts)


def test_without_fast_kernels_nothing_is_listed() -> None:
    with using_kernels("reference"):
        assert isinstance(entries_above(bound_for(3, BIAS), X, B_DEC, W_ENC, BIAS), AllEntries)


def of_parameters(form: Callable[..., Entries], bias: Tensor | None) -> list[Tensor | None]:
    """What is above a bound decoded, with the gradients of b_dec, W_enc, and the bias if there is one."""
    bound = bound_for(12, bias)

    def decoded(*parameters: Tensor) -> Tensor:
        entries = form(bound, X, *parameters, *([None] if bias is None else []))
        return entries.decode(entries.pre_acts * (entries.pre_acts > entries.of_latent(bound)), W_DEC)

    return with_gradients(decoded, B_DEC, W_ENC, *([] if bias is None else [bias]))


def as_matrix(bound: Tensor, x: Tensor, b_dec: Tensor, W_enc: Tensor, bias: Tensor | None) -> Entries:
    return AllEntries((x - b_dec) @ W_enc + (0 if bias is None else bias))


def as_list(bound: Tensor, x: Tensor, b_dec: Tensor, W_enc: Tensor, bias: Tensor | None) -> Entries:
    pre_acts = as_matrix(bound, x, b_dec, W_enc, bias).pre_acts.detach()
    offsets = torch.nn.functional.pad((pre_acts > bound).sum(dim=1).cumsum(0), (1, 0))
    chosen = Pattern((pre_acts > bound).nonzero()[:, 1], offsets, D_SAE)
    return ListedEntries(pre_acts_at(chosen, pre_acts[pre_acts > bound], x, b_dec, W_enc, bias), chosen)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("bias", [BIAS, None], ids=["bias", "no bias"])
@pytest.mark.parametrize("form", [entries_above, as_list])
def test_gradients_of_the_encoder_are_those_of_the_matrix(form: Callable[..., Entries], bias: Tensor | None) -> None:
    torch.testing.assert_close(of_parameters(form, bias), of_parameters(as_matrix, bias))


def test_under_autocast_a_list_rounds_only_the_product() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        entries = entries_above(bound_for(5, BIAS), X, B_DEC, W_ENC, BIAS)
        products = encoder_products(X, B_DEC, W_ENC)
    assert isinstance(entries, ListedEntries) and products.dtype == torch.bfloat16
    assert torch.equal(entries.pre_acts, (products.float() + BIAS)[entries.pattern.tokens, entries.pattern.indices])


def test_under_autocast_a_matrix_stays_in_half_precision() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        entries = entries_above(bound_for(40, BIAS), X, B_DEC, W_ENC, BIAS)
    assert isinstance(entries, AllEntries) and entries.pre_acts.dtype == torch.bfloat16
