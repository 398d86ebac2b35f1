"""sae_core/sparse/active.py"""

import pytest
import torch

from sae_core.sparse.active import active_entries, entries_where, joined, without_zeros
from sae_core.sparse.latents import Pattern

LATENTS = torch.tensor([[1.0, 0.0, -2.0], [0.0, 0.0, 0.0], [0.0, 3.0, 0.0]])

pytestmark = pytest.mark.usefixtures("kernels")


@pytest.mark.parametrize(
    "latents", [LATENTS, LATENTS.abs(), torch.zeros(0, 3), torch.zeros(2, 3)], ids=["signs", "positive", "no token", "zeros"]
)
def test_a_list_of_the_latents_that_are_not_0_has_them_all(latents: torch.Tensor) -> None:
    pattern, values = active_entries(latents)
    assert torch.equal(pattern.dense(values), latents)
    assert torch.equal(pattern.mask(), latents != 0)


def test_a_list_of_what_is_above_bounds() -> None:
    # Sums (2, 1, -1), (1, 1, 1) and (1, 4, 1).
    pattern, values = entries_where(LATENTS, torch.ones(3), torch.tensor([1.0, 2.0, -2.0]))
    assert pattern.mask().tolist() == [[True, False, True], [False, False, True], [False, True, True]]
    assert values.tolist() == [2, -1, 1, 4, 1]


def test_entries_that_are_0_are_left_out() -> None:
    pattern = Pattern(torch.tensor([0, 2, 1]), torch.tensor([0, 2, 3]), 3)
    assert without_zeros(pattern, torch.tensor([1.0, 2.0, 3.0]))[0] is pattern
    some, values = without_zeros(pattern, torch.tensor([1.0, 0.0, 3.0]))
    assert some.dense(values).tolist() == [[1, 0, 0], [0, 3, 0]] and values.tolist() == [1, 3]


def test_joined_patterns_have_the_tokens_of_all_in_order() -> None:
    parts = [active_entries(rows)[0] for rows in LATENTS.split(2)]
    assert torch.equal(joined(parts).mask(), LATENTS != 0)
    assert torch.equal(joined(parts[:1]).mask(), LATENTS[:2] != 0)
