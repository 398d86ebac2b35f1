"""sae_core/sparse/topk.py"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_core.sparse.topk import topk_batch, topk_rows


def test_rows_keep_their_largest_in_ascending_positions() -> None:
    scores = torch.tensor([[5.0, 1.0, 7.0, 3.0], [-1.0, -4.0, -2.0, -3.0]])
    assert topk_rows(scores, 2).tolist() == [[0, 2], [0, 2]]


def test_the_batch_keeps_its_largest_positive_ones() -> None:
    scores = torch.tensor([[5.0, 1.0, -7.0], [4.0, 0.0, 6.0]])
    positions, smallest = topk_batch(scores, 3)
    assert positions.tolist() == [0, 3, 5] and smallest == 4


def test_fewer_positive_ones_than_asked_are_all() -> None:
    positions, smallest = topk_batch(torch.tensor([[5.0, -1.0], [0.0, 2.0]]), 3)
    assert positions.tolist() == [0, 3] and smallest == 2


@pytest.mark.parametrize("hint", [0.0, 1.0])
def test_nothing_positive_gives_nothing(hint: float) -> None:
    positions, smallest = topk_batch(torch.tensor([[-5.0, 0.0]]), 1, hint)
    assert positions.tolist() == [] and smallest == 0


def test_equal_scores_are_all_kept_or_all_left_out() -> None:
    scores = torch.tensor([[3.0, 2.0, 2.0], [2.0, 1.0, 1.0]])
    positions, smallest = topk_batch(scores, 2)
    assert positions.tolist() == [0, 1, 2, 3] and smallest == 2


@settings(max_examples=60)
@given(
    # Few different values, so that ties are common and the hint often equals one.
    st.lists(st.lists(st.integers(-2, 6), min_size=4, max_size=4), min_size=1, max_size=5),
    st.integers(1, 24),
    st.integers(0, 8),
)
def test_the_hint_changes_nothing(rows: list[list[int]], n: int, hint: int) -> None:
    scores = torch.tensor(rows, dtype=torch.float32)
    expected, smallest = topk_batch(scores, n)
    positions, smallest_with_hint = topk_batch(scores, n, float(hint))
    assert positions.tolist() == expected.tolist() and smallest_with_hint == smallest
    # The reference: sort everything.
    ordered = sorted((value for row in rows for value in row if value > 0), reverse=True)
    cut = ordered[min(n, len(ordered)) - 1] if ordered else 0
    assert smallest == cut
    assert positions.tolist() == [i for i, value in enumerate(scores.flatten().tolist()) if value > 0 and value >= cut]


def test_selection_takes_part_in_no_gradient() -> None:
    scores = torch.tensor([[5.0, 1.0]], requires_grad=True)
    assert topk_batch(scores, 1)[1] == 5
