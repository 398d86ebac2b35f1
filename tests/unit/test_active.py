"""sae_core/sparse/active.py, against dense matrices and sorting, with the kernels of this device and with the reference ones."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sae_core.sparse.active import (
    ActiveLatents,
    active_above,
    active_latents,
    joined,
    topk_per_batch,
    topk_per_token,
    without_zeros,
)

pytestmark = pytest.mark.usefixtures("kernels")

# Three tokens, four latents; the second token has none, latent 3 is never active:
# [[1, 0, 2, 0],
#  [0, 0, 0, 0],
#  [0, -3, 4, 0]]
TOKENS, INDICES, OFFSETS = torch.tensor([0, 0, 2, 2]), torch.tensor([0, 2, 1, 2]), torch.tensor([0, 2, 2, 4])
VALUES = torch.tensor([1.0, 2.0, -3.0, 4.0])
DENSE = torch.tensor([[1.0, 0.0, 2.0, 0.0], [0.0, 0.0, 0.0, 0.0], [0.0, -3.0, 4.0, 0.0]])


def active() -> ActiveLatents:
    return ActiveLatents(INDICES, OFFSETS, 4)


def nothing() -> ActiveLatents:
    return ActiveLatents(torch.zeros(0, dtype=torch.int64), torch.zeros(4, dtype=torch.int64), 4)


def test_dense_is_the_same_matrix() -> None:
    assert torch.equal(active().dense(VALUES), DENSE)
    assert torch.equal(active().mask(), DENSE != 0)
    assert active().n_tokens == 3
    assert active().tokens.tolist() == TOKENS.tolist()


def test_groups_are_the_same_latents_width_by_width() -> None:
    rows = active().groups((1, 2, 4)).dense(VALUES).view(3, 3, 4)
    assert torch.equal(rows.sum(dim=1), DENSE)
    for row, (inner, outer) in zip(rows.unbind(1), [(0, 1), (1, 2), (2, 4)], strict=True):
        assert torch.equal(row[:, inner:outer], DENSE[:, inner:outer])


def test_no_active_latents_make_empty_groups() -> None:
    groups = nothing().groups((2, 4))
    assert groups.n_tokens == 3 * 2 and not groups.offsets.any()


def test_sum_by_latent_is_the_transposed_product() -> None:
    rows = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(active().sum_by_latent(VALUES, rows), DENSE.T @ rows)
    grouped = active().groups((1, 2, 4))
    torch.testing.assert_close(grouped.sum_by_latent(VALUES, rows.repeat_interleave(3, dim=0)), DENSE.T @ rows)


LATENTS = torch.tensor([[1.0, 0.0, -2.0], [0.0, 0.0, 0.0], [0.0, 3.0, 0.0]])


@pytest.mark.parametrize(
    "latents", [LATENTS, LATENTS.abs(), torch.zeros(0, 3), torch.zeros(2, 3)], ids=["signs", "positive", "no token", "zeros"]
)
def test_the_active_latents_are_those_that_are_not_0(latents: torch.Tensor) -> None:
    active, values = active_latents(latents)
    assert torch.equal(active.dense(values), latents)
    assert torch.equal(active.mask(), latents != 0)


def test_what_is_above_bounds() -> None:
    # Sums (2, 1, -1), (1, 1, 1) and (1, 4, 1).
    active, values = active_above(LATENTS, torch.ones(3), torch.tensor([1.0, 2.0, -2.0]))
    assert active.mask().tolist() == [[True, False, True], [False, False, True], [False, True, True]]
    assert values.tolist() == [2, -1, 1, 4, 1]


def test_latents_that_are_0_are_left_out() -> None:
    active = ActiveLatents(torch.tensor([0, 2, 1]), torch.tensor([0, 2, 3]), 3)
    assert without_zeros(active, torch.tensor([1.0, 2.0, 3.0]))[0] is active
    some, values = without_zeros(active, torch.tensor([1.0, 0.0, 3.0]))
    assert some.dense(values).tolist() == [[1, 0, 0], [0, 3, 0]] and values.tolist() == [1, 3]


def test_joined_parts_have_the_tokens_of_all_in_order() -> None:
    parts = [active_latents(rows)[0] for rows in LATENTS.split(2)]
    assert torch.equal(joined(parts).mask(), LATENTS != 0)
    assert torch.equal(joined(parts[:1]).mask(), LATENTS[:2] != 0)


HINTS = (None, torch.tensor(0.0), torch.tensor(0.5))


def positions(active: ActiveLatents) -> list[int]:
    """Places of the active latents in the flattened matrix."""
    return (active.tokens * active.d_sae + active.indices).tolist()


def select(pre_acts: list[list[float]], n: int, hint: Tensor | None = None) -> tuple[list[int], list[float], float]:
    """`topk_per_batch` of pre-activations without bias, which are their own scores."""
    products = torch.tensor(pre_acts)
    neither = torch.zeros(products.shape[1])
    active, values, smallest = topk_per_batch(products, neither, neither + 1, n, hint)
    return positions(active), values.tolist(), float(smallest)


def test_rows_keep_their_largest_in_ascending_positions() -> None:
    pre_acts = torch.tensor([[5.0, 1.0, 7.0, 3.0], [-1.0, -4.0, -2.0, -3.0]])
    active, values = topk_per_token(pre_acts, torch.zeros(4), torch.ones(4), 2)
    assert positions(active) == [0, 2, 4, 6] and values.tolist() == [5, 7, -1, -2]
    assert active.offsets.tolist() == [0, 2, 4]


def test_the_batch_keeps_its_largest_positive_ones() -> None:
    assert select([[5.0, 1.0, -7.0], [4.0, 0.0, 6.0]], 3) == ([0, 3, 5], [5, 4, 6], 4)


def test_scores_choose_and_pre_activations_are_kept() -> None:
    # Pre-activations [[1, 2, 3], [3, 0, 1]], scores [[1, 4, 0], [3, 0, 0]]: a factor of 0 leaves nothing that is positive.
    products, bias, factors = (
        torch.tensor([[0.0, 3.0, 3.0], [2.0, 1.0, 1.0]]),
        torch.tensor([1.0, -1.0, 0.0]),
        torch.tensor([1.0, 2.0, 0.0]),
    )
    active, values = topk_per_token(products, bias, factors, 1)
    assert positions(active) == [1, 3] and values.tolist() == [2, 3]
    active, values, smallest = topk_per_batch(products, bias, factors, 2)
    assert positions(active) == [1, 3] and values.tolist() == [2, 3] and smallest == 3
    for hint in HINTS:
        active, values, smallest = topk_per_batch(products, bias, factors, 5, hint)
        assert positions(active) == [0, 1, 3] and values.tolist() == [1, 2, 3] and smallest == 1


def test_fewer_positive_ones_than_asked_are_all() -> None:
    assert select([[5.0, -1.0], [0.0, 2.0]], 3) == ([0, 3], [5, 2], 2)


@pytest.mark.parametrize("hint", HINTS)
def test_nothing_positive_gives_nothing(hint: Tensor | None) -> None:
    assert select([[-5.0, 0.0]], 1, hint) == ([], [], 0)


def test_equal_scores_are_all_kept_or_all_left_out() -> None:
    assert select([[3.0, 2.0, 2.0], [2.0, 1.0, 1.0]], 2) == ([0, 1, 2, 3], [3, 2, 2, 2], 2)


@settings(max_examples=60)
@given(
    # Few different values, so that ties are common and the hint often equals one.
    st.lists(st.lists(st.integers(-2, 6), min_size=4, max_size=4), min_size=1, max_size=5),
    st.lists(st.sampled_from([0.0, 1.0, 2.0]), min_size=4, max_size=4),
    st.integers(1, 24),
    st.integers(0, 8),
)
@pytest.mark.slow
def test_the_hint_changes_nothing(rows: list[list[int]], factors: list[float], n: int, hint: int) -> None:
    pre_acts, factor = torch.tensor(rows, dtype=torch.float32), torch.tensor(factors)
    without, with_hint = (topk_per_batch(pre_acts, torch.zeros(4), factor, n, each) for each in (None, torch.tensor(float(hint))))
    assert positions(with_hint[0]) == positions(without[0]) and with_hint[2] == without[2]
    assert torch.equal(with_hint[1], without[1])
    # The reference: sort everything.
    scores: list[float] = (pre_acts * factor).flatten().tolist()
    ordered = sorted((score for score in scores if score > 0), reverse=True)
    cut = ordered[min(n, len(ordered)) - 1] if ordered else 0
    assert float(without[2]) == cut
    assert positions(without[0]) == [i for i, score in enumerate(scores) if score > 0 and score >= cut]
    assert torch.equal(without[1], pre_acts.flatten()[positions(without[0])])


def test_selection_takes_part_in_no_gradient() -> None:
    products, bias = torch.tensor([[5.0, 1.0]], requires_grad=True), torch.zeros(2, requires_grad=True)
    assert not topk_per_token(products, bias, bias + 1, 1)[1].requires_grad
    assert not topk_per_batch(products, bias, bias + 1, 1)[1].requires_grad
