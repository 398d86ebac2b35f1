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
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_inputs import DTYPES, entries, randn
from small_runs import random_sae, run_of, tokens
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import sae_core.sparse.kernels
from sae_core.config.run import ARCHITECTURES
from sae_core.sae.base import SparseAutoencoder
from sae_core.sae.loss import LossContext, LossTerms
from sae_core.sparse import pre_acts
from sae_core.sparse.kernels import choice as kernels
from sae_core.sparse.kernels import reference
from sae_core.sparse.kernels.choice import kernels_for, using_kernels
from sae_core.training.loop import Learner

pytest.importorskip("triton")
from sae_core.sparse.kernels import gpu

INTERPRETED = pytest.param("cpu", marks=pytest.mark.skipif(torch.cuda.is_available(), reason="programs run on the GPU there is"))
on_every_device = pytest.mark.parametrize("device", [INTERPRETED, pytest.param("cuda", marks=pytest.mark.gpu)])


@pytest.fixture(autouse=True)
def _hard_conditions() -> Iterator[None]:
    """Long rows are cut into chunks, and memory that nothing was written to holds nonsense."""
    empty = torch.empty

    def poisoned(*shape: Any, **options: Any) -> Tensor:
        made = empty(*shape, **options)
        return made.fill_(torch.nan if made.is_floating_point() else -(2**40))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu, "CHUNK", 4)
        patch.setattr(torch, "empty", poisoned)
        yield


@on_every_device
@settings(max_examples=60)
@given(entries(), st.integers(1, 40), DTYPES)
@pytest.mark.slow
def test_sums_and_inner_products(device: str, drawn: tuple[Tensor, Tensor, int, int], d: int, dtype: torch.dtype) -> None:
    offsets, indices, n_source, seed = drawn
    source, weights = randn(n_source, d, seed=seed).to(dtype), randn(len(indices), seed=seed + 1)
    rows = randn(len(offsets) - 1, d, seed=seed + 2)
    on_device = offsets.to(device), indices.to(device)
    sums = gpu.weighted_sums(*on_device, weights.to(device), source.to(device)).cpu()
    torch.testing.assert_close(sums, reference.weighted_sums(offsets, indices, weights, source.float()))
    products = gpu.dots(*on_device, rows.to(device), source.to(device)).cpu()
    torch.testing.assert_close(products, reference.dots(offsets, indices, rows, source.float()))


@on_every_device
@pytest.mark.slow
def test_a_row_of_very_many_entries_is_shared_out(device: str) -> None:
    # 1 entry, 1000, none, 3: chunks of 4 begin in the middle of the long row, which has whole ones and ends in the middle of another.
    offsets, indices = torch.tensor([0, 1, 1001, 1001, 1004]), torch.arange(1004) % 7
    weights, source = randn(1004), randn(7, 40)
    expected = reference.weighted_sums(offsets, indices, weights, source)
    found = gpu.weighted_sums(offsets.to(device), indices.to(device), weights.to(device), source.to(device)).cpu()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


@on_every_device
def test_what_has_gradients_and_lies_in_memory_in_any_order_is_taken(device: str) -> None:
    source = torch.tensor([[1.0, 2.0], [0.0, 5.0]], device=device).T.requires_grad_()  # rows (1, 0) and (2, 5)
    offsets, indices = torch.tensor([0, 1, 3], device=device), torch.tensor([1, 0, 1], device=device)
    assert gpu.weighted_sums(offsets, indices, offsets + 1.0, source).tolist() == [[2, 5], [10, 20]]
    rows = torch.tensor([[1.0, 0.0], [1.0, 1.0]], device=device).T  # rows (1, 1) and (0, 1)
    assert gpu.dots(offsets, indices, rows, source).tolist() == [7, 0, 5]


@pytest.fixture
def for_the_cpu_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `kernels_for` gives for tensors on the CPU, so that whole SAEs can be tested without a GPU."""
    monkeypatch.setattr(sae_core.sparse.kernels, "cpu", gpu, raising=False)
    monkeypatch.setattr(pre_acts, "sparse_is_faster", lambda x: False)


def step(sae: SparseAutoencoder, dead: Tensor | None) -> tuple[LossTerms, dict[str, Tensor]]:
    """Loss and gradients of a batch."""
    x = randn(10, sae.d_in, seed=1).to(sae.W_dec.device)
    loss = sae.loss(x, LossContext(0.7, dead))
    sae.zero_grad()
    loss.total.backward()
    return loss, {name: value.grad.clone() for name, value in sae.named_parameters() if value.grad is not None}


@pytest.mark.slow
@on_every_device
@pytest.mark.usefixtures("for_the_cpu_too")
@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("with_dead", [True, False], ids=["dead latents", "none dead"])
def test_losses_and_gradients_of_whole_saes(device: str, name: str, with_dead: bool) -> None:
    sae = random_sae(name, 20, 48).to(device)
    assert kernels_for(sae.W_dec) is gpu
    dead = (torch.arange(48) % 5 == 0).to(device) if with_dead else None
    loss, gradients = step(sae, dead)
    with using_kernels("reference"):
        expected, expected_gradients = step(sae, dead)
    assert loss.terms.keys() == expected.terms.keys() and gradients.keys() == expected_gradients.keys()
    torch.testing.assert_close(loss.terms, expected.terms, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-4, atol=1e-5)
    assert torch.equal(loss.active, expected.active)


@pytest.mark.slow
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


WAITS = {"batchtopk": 3, "matryoshka_batchtopk": 3}
"""How often a step waits for the device, where it does: twice for the scores above the hint, and once for those selected."""


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


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_step_would_wait_for_no_more_than_it_says(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "kernels_used", lambda device: "torch")  # as on a GPU
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


@pytest.mark.slow
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
    programs = {"sum_chunks", "sum_rows", "dots"}
    assert {capability: set(names) for capability, names in json.loads(done.stdout).items()} == {"80": programs, "90": programs}
