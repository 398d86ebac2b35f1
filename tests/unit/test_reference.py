"""sae_core/sparse/kernels/reference.py: what each kernel computes, by hand. `test_cpu.py` compares the compiled kernels with these."""

import pytest
import torch

from sae_core.sparse.kernels import reference

# Values [[3, 0, 5], [-1, 2, 0]]: products plus the bias of the column.
PRODUCTS, BIAS = torch.tensor([[2.0, 1.0, 5.0], [-2.0, 3.0, 0.0]]), torch.tensor([1.0, -1.0, 0.0])
# Row 0 has entries 0 and 1, row 1 none, row 2 entry 2; they point at rows 1, 0 and 1 of a source.
OFFSETS, WHICH, WEIGHTS = torch.tensor([0, 2, 2, 3]), torch.tensor([1, 0, 1]), torch.tensor([2.0, -1.0, 3.0])
SOURCE = torch.tensor([[1.0, 2.0], [10.0, 20.0]])


def test_entries_above_their_columns_bound() -> None:
    # 3 is at its bound, not above it; -1 is above a negative one.
    found = reference.values_above(PRODUCTS, BIAS, torch.tensor([3.0, 1.0, -0.5]), 6)
    assert found is not None
    columns, values, offsets = found
    assert columns.tolist() == [2, 1, 2] and values.tolist() == [5, 2, 0] and offsets.tolist() == [0, 1, 3]


@pytest.mark.parametrize(("most", "listed"), [(2, False), (3, True)])
def test_more_entries_than_wanted_are_not_listed(most: int, listed: bool) -> None:
    assert (reference.values_above(PRODUCTS, BIAS, torch.zeros(3), most) is not None) == listed


def test_topk_rows_keeps_the_largest_scores_and_gives_values() -> None:
    # Scores [[3, 0, -5], [-1, 8, 0]].
    columns, values = reference.topk_rows(PRODUCTS, BIAS, torch.tensor([1.0, 4.0, -1.0]), 2)
    assert columns.tolist() == [[0, 1], [1, 2]] and values.tolist() == [[3, 0], [2, 0]]


def test_bfloat16_products_are_added_up_in_float32() -> None:
    products, bias = torch.tensor([[256.0]], dtype=torch.bfloat16), torch.tensor([0.25])  # 256.25 is no bfloat16
    assert reference.topk_rows(products, bias, torch.ones(1), 1)[1].tolist() == [[256.25]]
    found = reference.values_above(products, bias, torch.tensor([256.0]), 1)
    assert found is not None and found[1].tolist() == [256.25]


def test_sort_columns() -> None:
    order, rows, starts = reference.sort_columns(WHICH, OFFSETS, 4)
    assert order.tolist() == [1, 0, 2] and rows.tolist() == [0, 0, 2] and starts.tolist() == [0, 1, 3, 3, 3]


def test_weighted_sums() -> None:
    # 2 (10, 20) - (1, 2); nothing; 3 (10, 20)
    assert reference.weighted_sums(OFFSETS, WHICH, WEIGHTS, SOURCE).tolist() == [[19, 38], [0, 0], [30, 60]]


def test_dots() -> None:
    rows = torch.tensor([[1.0, 1.0], [7.0, 7.0], [0.0, 1.0]])
    assert reference.dots(OFFSETS, WHICH, rows, SOURCE).tolist() == [30, 3, 20]
