"""sae_core/sparse/topk.py"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sae_core.sparse.latents import Pattern
from sae_core.sparse.topk import topk_batch, topk_rows

pytestmark = pytest.mark.usefixtures("kernels")
HINTS = (None, torch.tensor(0.0), torch.tensor(0.5))


def positions(pattern: Pattern) -> list[int]:
    """Places of the entries in the flattened matrix."""
    return (pattern.tokens * pattern.d_sae + pattern.indices).tolist()


def select(pre_acts: list[list[float]], n: int, hint: Tensor | None = None) -> tuple[list[int], list[float], float]:
    """`topk_batch` of pre-activations without bias, which are their own scores."""
    products = torch.tensor(pre_acts)
    neither = torch.zeros(products.shape[1])
    pattern, values, smallest = topk_batch(products, neither, neither + 1, n, hint)
    return positions(pattern), values.tolist(), float(smallest)


def test_rows_keep_their_largest_in_ascending_positions() -> None:
    pre_acts = torch.tensor([[5.0, 1.0, 7.0, 3.0], [-1.0, -4.0, -2.0, -3.0]])
    pattern, values = topk_rows(pre_acts, torch.zeros(4), torch.ones(4), 2)
    assert positions(pattern) == [0, 2, 4, 6] and values.tolist() == [5, 7, -1, -2]
    assert pattern.offsets.tolist() == [0, 2, 4]


def test_the_batch_keeps_its_largest_positive_ones() -> None:
    assert select([[5.0, 1.0, -7.0], [4.0, 0.0, 6.0]], 3) == ([0, 3, 5], [5, 4, 6], 4)


def test_scores_choose_and_pre_activations_are_kept() -> None:
    # Pre-activations [[1, 2, 3], [3, 0, 1]], scores [[1, 4, 0], [3, 0, 0]]: a factor of 0 leaves nothing that is positive.
    products, bias, factors = (
        torch.tensor([[0.0, 3.0, 3.0], [2.0, 1.0, 1.0]]),
        torch.tensor([1.0, -1.0, 0.0]),
        torch.tensor([1.0, 2.0, 0.0]),
    )
    pattern, values = topk_rows(products, bias, factors, 1)
    assert positions(pattern) == [1, 3] and values.tolist() == [2, 3]
    pattern, values, smallest = topk_batch(products, bias, factors, 2)
    assert positions(pattern) == [1, 3] and values.tolist() == [2, 3] and smallest == 3
    for hint in HINTS:
        pattern, values, smallest = topk_batch(products, bias, factors, 5, hint)
        assert positions(pattern) == [0, 1, 3] and values.tolist() == [1, 2, 3] and smallest == 1


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
def test_the_hint_changes_nothing(rows: list[list[int]], factors: list[float], n: int, hint: int) -> None:
    pre_acts, factor = torch.tensor(rows, dtype=torch.float32), torch.tensor(factors)
    without, with_hint = (topk_batch(pre_acts, torch.zeros(4), factor, n, each) for each in (None, torch.tensor(float(hint))))
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
    assert not topk_rows(products, bias, bias + 1, 1)[1].requires_grad
    assert not topk_batch(products, bias, bias + 1, 1)[1].requires_grad
