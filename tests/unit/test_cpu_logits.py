"""sae_core/sparse/kernels/cpu_logits.py, against float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_core.sparse.kernels import cpu_logits

EPSILON = torch.finfo(torch.float32).eps


@settings(max_examples=40, deadline=None)
@given(
    n_rows=st.integers(0, 5),
    n_columns=st.integers(1, 3 * cpu_logits.BLOCK),
    spread=st.sampled_from([0.0, 1e-3, 1.0, 10.0, 1e3, 1e30]),
    offset=st.sampled_from([0.0, -50.0, 1e4]),
    seed=st.integers(0, 99),
)
def test_it_is_right_to_float32(n_rows: int, n_columns: int, spread: float, offset: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn(n_rows, n_columns, generator=generator) + offset
    expected = logits.double().logsumexp(dim=-1)
    allowed = EPSILON * (expected.abs() + logits.amax(dim=-1).abs() + 4)
    assert ((cpu_logits.logsumexp(logits) - expected).abs() <= allowed).all()


def test_exp_is_right_to_two_roundings_of_it_and_one_of_the_exponent() -> None:
    x = np.linspace(-87, 0, 1_000).astype(np.float32)
    values = np.array([cpu_logits._exp(one) for one in x])
    expected = np.exp(x.astype(np.float64))
    assert (np.abs(values - expected) <= expected * EPSILON * (2 + np.abs(x))).all()
    assert values[-1] == 1


def test_what_is_no_number_stays_none() -> None:
    inf, nan = float("inf"), float("nan")
    logits, expected = torch.tensor([[0.0, inf], [-inf, -inf], [nan, 0.0], [-inf, 1.0]]), torch.tensor([inf, -inf, nan, 1.0])
    # In a block alone, and in blocks before and after those of numbers that are far smaller.
    others = torch.full((4, cpu_logits.BLOCK), -1e4)
    others[1] = -inf
    for some in (logits, torch.cat([logits, others], dim=1), torch.cat([others, logits], dim=1)):
        torch.testing.assert_close(cpu_logits.logsumexp(some), expected, equal_nan=True, rtol=0, atol=0)


def test_memory_in_any_order() -> None:
    logits = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)).T
    assert pytest.approx(logits.logsumexp(-1).tolist(), rel=1e-6) == cpu_logits.logsumexp(logits).tolist()
