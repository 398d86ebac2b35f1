"""sae_core/sparse/kernels/cpu.py against reference.py, with the shapes, ties and numbers at which vectorised code breaks."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_inputs import DTYPES, KINDS, SEEDS, entries, largest, matrix, randn
from torch import Tensor

from sae_core.sparse.kernels import cpu, reference

SHAPES = st.tuples(st.integers(0, 6), st.one_of(st.integers(1, 70), st.sampled_from([96, 128, 130])))


def with_bias(kind: str, shape: tuple[int, int], seed: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Products and bias; no bias where ties are wanted."""
    bias = 0.3 * randn(shape[1], seed=seed + 2) if kind in ("normal", "negative", "wide range") else torch.zeros(shape[1])
    return matrix(kind, shape, seed).to(dtype), bias


def as_lists(found: tuple[Tensor, ...] | None) -> tuple[list[Any], ...] | None:
    return None if found is None else tuple(tensor.tolist() for tensor in found)


@settings(max_examples=80)
@given(SHAPES, DTYPES, KINDS, SEEDS, st.floats(0, 1))
@pytest.mark.slow
def test_entries_above(shape: tuple[int, int], dtype: torch.dtype, kind: str, seed: int, fraction: float) -> None:
    products, bias = with_bias(kind, shape, seed, dtype)
    # Bounds that are values themselves, so that some entries are exactly at their bound.
    bound = products[0].float() + bias if seed % 2 and len(products) else torch.zeros(shape[1])
    for most in (products.numel(), int(fraction * products.numel())):
        assert as_lists(cpu.values_above(products, bias, bound, most)) == as_lists(reference.values_above(products, bias, bound, most))


@settings(max_examples=200)
@given(SHAPES, DTYPES, KINDS, SEEDS, st.floats(0, 1))
@pytest.mark.slow
def test_topk_rows(shape: tuple[int, int], dtype: torch.dtype, kind: str, seed: int, fraction: float) -> None:
    products, bias = with_bias(kind, shape, seed, dtype)
    factors = torch.ones(shape[1]) if seed % 2 else randn(shape[1], seed=seed + 3).abs()
    for k in {1, 1 + int(fraction * (shape[1] - 1)), shape[1]}:
        assert as_lists(cpu.topk_rows(products, bias, factors, k)) == as_lists(largest(products, bias, factors, k))
        theirs = reference.topk_rows(products, bias, factors, k)
        scores = [(values * factors[columns]).sort().values for columns, values in (cpu.topk_rows(products, bias, factors, k), theirs)]
        assert torch.equal(*scores)


@settings(max_examples=200)
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=2, max_size=9), st.integers(1, 8))
@pytest.mark.slow
def test_topk_rows_of_any_numbers(row: list[float], k: int) -> None:
    products, k = torch.tensor([row, row[::-1]]), min(k, len(row))
    neither = torch.zeros(len(row))
    assert as_lists(cpu.topk_rows(products, neither, neither + 1, k)) == as_lists(largest(products, neither, neither + 1, k))


def test_wide_rows() -> None:
    products, neither = torch.cat([randn(3, 3000), randn(3, 3000, seed=1).round()]), torch.zeros(3000)
    for k in (1, 32, 600, 2999, 3000):
        assert as_lists(cpu.topk_rows(products, neither, neither + 1, k)) == as_lists(largest(products, neither, neither + 1, k))


def test_what_the_row_before_was_like_changes_nothing() -> None:
    # Rows share memory.
    products = torch.cat([scale * randn(2, 50, seed=seed) for seed, scale in enumerate([0, 1, 1e30, 1e-30, 1, 1e-40, 0, 1e5])])
    neither = torch.zeros(50)
    for k in (1, 7, 49):
        assert as_lists(cpu.topk_rows(products, neither, neither + 1, k)) == as_lists(largest(products, neither, neither + 1, k))


@pytest.mark.parametrize("broken", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("everywhere", [True, False])
def test_rows_that_are_not_finite_neither_hang_nor_disturb_others(broken: float, everywhere: bool) -> None:
    products, neither = randn(9, 50), torch.zeros(50)
    products[[0, 4, 5], : 50 if everywhere else 1] = broken
    columns, values = cpu.topk_rows(products, neither, neither + 1, 7)
    assert all(len(set(row)) == 7 and row == sorted(row) and row[0] >= 0 and row[-1] < 50 for row in columns.tolist())
    finite = [1, 2, 3, 6, 7, 8]
    assert (columns[finite].tolist(), values[finite].tolist()) == as_lists(largest(products[finite], neither, neither + 1, 7))
    torch.testing.assert_close(values, products.gather(1, columns), rtol=0, atol=0, equal_nan=True)
    assert as_lists(cpu.values_above(products, neither, neither, 450)) == as_lists(reference.values_above(products, neither, neither, 450))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_precisions_are_refused(dtype: torch.dtype) -> None:
    # Read as float32 they would give numbers without meaning.
    with pytest.raises(AssertionError, match=str(dtype)):
        cpu.topk_rows(torch.ones(2, 4, dtype=dtype), torch.zeros(4), torch.ones(4), 1)


@settings(max_examples=60)
@given(entries())
def test_sort_columns(drawn: tuple[Tensor, Tensor, int, int]) -> None:
    offsets, indices, n_source, _ = drawn
    assert as_lists(cpu.sort_columns(indices, offsets, n_source)) == as_lists(reference.sort_columns(indices, offsets, n_source))


@settings(max_examples=80)
@given(entries(), st.one_of(st.integers(1, 40), st.sampled_from([64, 79, 128, 131])))
@pytest.mark.slow
def test_sums_and_inner_products(drawn: tuple[Tensor, Tensor, int, int], d: int) -> None:
    offsets, indices, n_source, seed = drawn
    source, weights, rows = randn(n_source, d, seed=seed), randn(len(indices), seed=seed + 1), randn(len(offsets) - 1, d, seed=seed + 2)
    torch.testing.assert_close(
        cpu.weighted_sums(offsets, indices, weights, source), reference.weighted_sums(offsets, indices, weights, source)
    )
    torch.testing.assert_close(cpu.dots(offsets, indices, rows, source), reference.dots(offsets, indices, rows, source))


def on_threads(n: int, kernel: Callable[..., Any], *arguments: Any) -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        return as_lists(kernel(*arguments))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("n_rows", [2 * cpu.ROWS_PER_THREAD, 3 * cpu.ROWS_PER_THREAD + 7])
def test_the_number_of_threads_changes_nothing(n_rows: int) -> None:
    products, bias, factors = randn(n_rows, 40).round(decimals=1), randn(40, seed=1), randn(40, seed=2).abs()
    source = randn(40, 10, seed=4)
    columns, values = cpu.topk_rows(products, bias, factors, 5)
    offsets, indices, weights = torch.arange(0, 5 * n_rows + 1, 5), columns.flatten(), values.flatten()
    calls: list[tuple[Any, ...]] = [
        (cpu.values_above, products, bias, bias, products.numel()),
        (cpu.topk_rows, products, bias, factors, 5),
        (lambda *given: (cpu.weighted_sums(*given),), offsets, indices, weights, source),
        (lambda *given: (cpu.dots(*given),), offsets, indices, randn(n_rows, 10, seed=5), source),
    ]
    for call in calls:
        alone = on_threads(1, *call)
        assert on_threads(2, *call) == alone and on_threads(3, *call) == alone


def test_an_error_in_a_thread_is_raised() -> None:
    def fail_at_the_end(first: int, last: int) -> None:
        if last == 2 * cpu.ROWS_PER_THREAD:
            raise ValueError(f"row {last}")

    torch.set_num_threads(2)
    try:
        with pytest.raises(ValueError, match=f"row {2 * cpu.ROWS_PER_THREAD}"):
            cpu.over_rows(fail_at_the_end, 2 * cpu.ROWS_PER_THREAD)
    finally:
        torch.set_num_threads(1)
