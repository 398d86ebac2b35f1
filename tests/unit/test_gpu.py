"""sae_core/sparse/kernels/gpu.py against reference.py: on a GPU where there is one, else on the CPU through Triton's interpreter.

The interpreter runs one program after another, so it finds no race. There is none to find as long as every element of a result is
written by one program, and no program reads what another writes.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from kernel_inputs import DTYPES, KINDS, SEEDS, entries, largest, matrix, randn
from small_runs import random_sae, run_of, tokens
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import sae_core.sparse
import sae_core.sparse.entries as entries_module
from sae_core.config.run import ARCHITECTURES
from sae_core.sae.base import LossContext, LossTerms, SparseAutoencoder
from sae_core.sparse.kernels import choice as kernels
from sae_core.sparse.kernels import reference
from sae_core.training.loop import Learner

pytest.importorskip("triton")
from sae_core.sparse.kernels import gpu

INTERPRETED = pytest.param("cpu", marks=pytest.mark.skipif(torch.cuda.is_available(), reason="programs run on the GPU there is"))
on_every_device = pytest.mark.parametrize("device", [INTERPRETED, pytest.param("cuda", marks=pytest.mark.gpu)])

SHAPES = st.tuples(st.integers(0, 3), st.integers(1, 70))


@pytest.fixture(autouse=True)
def _hard_conditions() -> Iterator[None]:
    """Small inputs are cut into several stretches, long rows into chunks, and memory that nothing was written to holds nonsense."""
    empty = torch.empty

    def poisoned(*shape: Any, **options: Any) -> Tensor:
        made = empty(*shape, **options)
        return made.fill_(torch.nan if made.is_floating_point() else -(2**40))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu, "WIDEST", 16)
        patch.setattr(gpu, "CHUNK", 4)
        patch.setattr(torch, "empty", poisoned)
        yield


def assert_same(found: Any, expected: Any) -> None:
    """Bit for bit."""
    torch.testing.assert_close([each.cpu() for each in found], list(expected), rtol=0, atol=0, equal_nan=True)


@on_every_device
@settings(max_examples=40)
@given(SHAPES, DTYPES, KINDS, SEEDS)
def test_entries_above(device: str, shape: tuple[int, int], dtype: torch.dtype, kind: str, seed: int) -> None:
    products, bias = matrix(kind, shape, seed).to(dtype), 0.3 * randn(shape[1], seed=seed + 2)
    # Bounds that are values themselves, so that some entries are exactly at their bound.
    bound = products[0].float() + bias if seed % 2 and len(products) else torch.zeros(shape[1])
    expected = reference.entries_above(products, bias, bound, products.numel())
    assert expected is not None
    given_ = products.to(device), bias.to(device), bound.to(device)
    assert_same(gpu.entries_above(*given_, len(expected[0])), expected)
    assert gpu.entries_above(*given_, len(expected[0]) - 1) is None


@on_every_device
def test_entries_above_of_a_row_wider_than_a_block(device: str) -> None:
    products, bias = randn(2, 2500), torch.zeros(2500)
    expected = reference.entries_above(products, bias, bias, 5000)
    assert_same(gpu.entries_above(products.to(device), bias.to(device), bias.to(device), 5000), expected)


@on_every_device
@settings(max_examples=40)
@given(SHAPES, DTYPES, KINDS, SEEDS, st.floats(0, 1))
def test_topk_rows(device: str, shape: tuple[int, int], dtype: torch.dtype, kind: str, seed: int, fraction: float) -> None:
    products, bias = matrix(kind, shape, seed).to(dtype), (seed % 3) * 0.3 * randn(shape[1], seed=seed + 2)
    factors = torch.ones(shape[1]) if seed % 2 else randn(shape[1], seed=seed + 3).abs()
    for k in {1, min(4, shape[1]), 1 + int(fraction * (shape[1] - 1)), shape[1]}:
        found = gpu.topk_rows(products.to(device), bias.to(device), factors.to(device), k)
        assert_same(found, largest(products, bias, factors, k))


@on_every_device
@settings(max_examples=40)
@given(st.lists(st.floats(width=32, allow_nan=False), min_size=2, max_size=40), st.integers(1, 40))
@example([-0.0, 0.0, -0.0, 0.0], 1)
@example([-1.0, -1.00000012, -1.00000024], 1)
def test_topk_rows_of_any_numbers(device: str, row: list[float], k: int) -> None:
    products, ones = torch.tensor([row, row[::-1]]), torch.ones(len(row))
    bias = -0.0 * ones  # with it -0.0 stays what it is
    found = gpu.topk_rows(products.to(device), bias.to(device), ones.to(device), min(k, len(row)))
    assert_same(found, largest(products, bias, ones, min(k, len(row))))


@on_every_device
@pytest.mark.parametrize(("n_columns", "k"), [(600, 590), (20_000, 32), (65_536, 1), (65_536, 3000)])
def test_topk_of_wide_rows(device: str, n_columns: int, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "WIDEST", 4096)
    products, bias = randn(1, n_columns).bfloat16(), torch.zeros(n_columns)
    found = gpu.topk_rows(products.to(device), bias.to(device), bias.to(device) + 1, k)
    assert_same(found, largest(products, bias, bias + 1, k))


@on_every_device
@pytest.mark.parametrize("everywhere", [True, False])
def test_rows_that_are_not_finite_neither_hang_nor_disturb_others(device: str, everywhere: bool) -> None:
    products, neither = randn(6, 50), torch.zeros(50)
    for row, broken in {0: torch.nan, 2: -torch.nan, 3: torch.inf, 5: -torch.inf}.items():
        products[row, : 50 if everywhere else 1] = broken
    for k in (4, 7):
        columns, values = gpu.topk_rows(products.to(device), neither.to(device), neither.to(device) + 1, k)
        assert all(len(set(row)) == k and row == sorted(row) and row[0] >= 0 and row[-1] < 50 for row in columns.tolist())
        assert_same((columns[[1, 4]], values[[1, 4]]), largest(products[[1, 4]], neither, neither + 1, k))
        torch.testing.assert_close(values.cpu(), products.gather(1, columns.cpu()), rtol=0, atol=0, equal_nan=True)


@on_every_device
@settings(max_examples=60)
@given(entries(), st.sampled_from([0, 2**15, 2**20]))
def test_sort_columns(device: str, drawn: tuple[Tensor, Tensor, int, int], more: int) -> None:
    offsets, which, n_source, _ = drawn
    found = gpu.sort_columns(which.to(device), offsets.to(device), n_source + more)
    assert_same(found, reference.sort_columns(which, offsets, n_source + more))


@on_every_device
@settings(max_examples=60)
@given(entries(), st.integers(1, 40), DTYPES)
def test_sums_and_inner_products(device: str, drawn: tuple[Tensor, Tensor, int, int], d: int, dtype: torch.dtype) -> None:
    offsets, which, n_source, seed = drawn
    source, weights = randn(n_source, d, seed=seed).to(dtype), randn(len(which), seed=seed + 1)
    rows = randn(len(offsets) - 1, d, seed=seed + 2)
    on_device = offsets.to(device), which.to(device)
    sums = gpu.weighted_sums(*on_device, weights.to(device), source.to(device)).cpu()
    torch.testing.assert_close(sums, reference.weighted_sums(offsets, which, weights, source.float()))
    products = gpu.dots(*on_device, rows.to(device), source.to(device)).cpu()
    torch.testing.assert_close(products, reference.dots(offsets, which, rows, source.float()))


@on_every_device
def test_a_row_of_very_many_entries_is_shared_out(device: str) -> None:
    # 1 entry, 1000, none, 3: chunks of 4 begin in the middle of the long row, which has whole ones and ends in the middle of another.
    offsets, which = torch.tensor([0, 1, 1001, 1001, 1004]), torch.arange(1004) % 7
    weights, source = randn(1004), randn(7, 40)
    expected = reference.weighted_sums(offsets, which, weights, source)
    found = gpu.weighted_sums(offsets.to(device), which.to(device), weights.to(device), source.to(device)).cpu()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


@on_every_device
def test_what_has_gradients_and_lies_in_memory_in_any_order_is_taken(device: str) -> None:
    products, bias = (
        torch.tensor([[1.0, 4.0], [3.0, 2.0]], device=device).T.requires_grad_(),
        torch.zeros(2, device=device).requires_grad_(),
    )
    columns, values = gpu.topk_rows(products, bias, bias + 1, 1)
    assert columns.tolist() == [[1], [0]] and values.tolist() == [[3], [4]] and not values.requires_grad
    source = torch.tensor([[1.0, 2.0], [0.0, 5.0]], device=device).T.requires_grad_()  # rows (1, 0) and (2, 5)
    offsets, which = torch.tensor([0, 1, 3], device=device), torch.tensor([1, 0, 1], device=device)
    assert gpu.weighted_sums(offsets, which, offsets + 1.0, source).tolist() == [[2, 5], [10, 20]]
    rows = torch.tensor([[1.0, 0.0], [1.0, 1.0]], device=device).T  # rows (1, 1) and (0, 1)
    assert gpu.dots(offsets, which, rows, source).tolist() == [7, 0, 5]


@pytest.fixture
def for_the_cpu_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `kernels_for` gives for tensors on the CPU, so that whole SAEs can be tested without a GPU."""
    monkeypatch.setattr(sae_core.sparse, "cpu", gpu, raising=False)


def step(sae: SparseAutoencoder, dead: Tensor | None) -> tuple[LossTerms, dict[str, Tensor]]:
    """Loss and gradients of a batch."""
    x = randn(10, sae.d_in, seed=1).to(sae.W_dec.device)
    loss = sae.loss(x, LossContext(0.7, dead))
    sae.zero_grad()
    loss.total.backward()
    return loss, {name: value.grad.clone() for name, value in sae.named_parameters() if value.grad is not None}


@on_every_device
@pytest.mark.usefixtures("for_the_cpu_too")
@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("with_dead", [True, False], ids=["dead latents", "none dead"])
def test_losses_and_gradients_of_whole_saes(device: str, name: str, with_dead: bool) -> None:
    sae = random_sae(name, 20, 48).to(device)
    assert kernels.kernels_for(sae.W_dec) is gpu
    dead = (torch.arange(48) % 5 == 0).to(device) if with_dead else None
    loss, gradients = step(sae, dead)
    with kernels.using_kernels("reference"):
        expected, expected_gradients = step(sae, dead)
    assert loss.terms.keys() == expected.terms.keys() and gradients.keys() == expected_gradients.keys()
    torch.testing.assert_close(loss.terms, expected.terms, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-4, atol=1e-5)
    assert torch.equal(loss.active, expected.active)


@on_every_device
@pytest.mark.usefixtures("for_the_cpu_too")
@pytest.mark.parametrize("name", ["topk", "batchtopk", "matryoshka_batchtopk"])
def test_the_auxiliary_loss_gives_the_encoder_a_gradient(device: str, name: str) -> None:
    sae, dead = random_sae(name, 20, 48, k=2).to(device), torch.arange(48, device=device) < 10
    with torch.no_grad():
        sae.b_enc[dead] -= 100  # never selected
    assert not step(sae, None)[1]["W_enc"][:, dead].any()
    gradient = step(sae, dead)[1]["W_enc"][:, dead]
    assert (gradient.norm(dim=0) > 0).all()


WAITS = {"batchtopk": 2, "matryoshka_batchtopk": 2}
"""How often a step waits for the device, where it does: for the number of entries above the hint, and of those selected."""


class Waits(TorchDispatchMode):
    """Counts, on the CPU, the operators that would wait for a GPU: those whose result is a number, or whose size depends on numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        by_mask = name == "index" and any(index is not None and index.dtype == torch.bool for index in args[1])
        if by_mask or name in ("_local_scalar_dense", "nonzero", "bincount", "masked_select", "_unique2", "equal"):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.usefixtures("for_the_cpu_too")
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_step_would_wait_for_no_more_than_it_says(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entries_module, "lists_are_faster", lambda x: False)  # as on a GPU
    run = run_of(name, n_steps=10_000, batch_size=8)  # so that no row of its history is due
    learner, x = Learner.start(run, 16, torch.device("cpu")), tokens(8)
    for _ in range(2):
        learner.train_step(x)
    with Waits() as waits:
        learner.train_step(x)
    assert len(waits.found) == WAITS.get(name, 0), waits.found


@pytest.mark.gpu
@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name not in WAITS])
def test_a_step_waits_for_nothing(name: str) -> None:
    learner, x = Learner.start(run_of(name, n_steps=10_000), 16, torch.device("cuda")), tokens(64).cuda()
    learner.train_step(x)  # compiles, and allocates the optimizer's state
    torch.cuda.set_sync_debug_mode("error")
    try:
        learner.train_step(x)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_every_program_compiles_for_gpus_that_are_not_there(tmp_path: Path) -> None:
    from triton import knobs

    try:
        assert knobs.nvidia.ptxas.path
    except RuntimeError:
        pytest.skip("needs a Triton that compiles for CUDA")
    script = Path(__file__).parents[1] / "compile_for_gpu.py"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, script, "80", "90"], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    programs = {"count_above", "list_above", "topk_columns", "values_at", "sum_chunks", "sum_rows", "dots"}
    assert {capability: set(names) for capability, names in json.loads(done.stdout).items()} == {"80": programs, "90": programs}
