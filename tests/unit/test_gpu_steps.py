"""benchmarks/gpu_steps.py and gpu_work.py, without a GPU: what is timed runs, and what is made of the times is right."""

import subprocess
import sys
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import gpu_steps
import pytest
from gpu_work import FLOOR, STEPS, Inputs, Sizes, floor, floor_parts, seconds_per_call, summary
from measuring import Spread
from rich.console import Console
from torch.autograd import DeviceType

from sae_core.config.run import ARCHITECTURES

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "gpu_steps.py"
ROUNDS = {
    "encoder product": [1.0, 2.0],
    "Adam": [2.0, 4.0],
    "pre-activations": [1.0, 2.0],
    "PyTorch": [6.0, 10.0],
    "Triton": [12.0, 30.0],
}


def test_the_floor_is_the_sum_of_its_parts_in_each_round() -> None:
    assert floor(ROUNDS) == [4.0, 8.0]
    with pytest.raises(ValueError, match="shorter"):
        floor(ROUNDS | {"Adam": [2.0]})


def test_ratios_are_those_of_paired_rounds() -> None:
    assert gpu_steps.ratios(ROUNDS) == {"PyTorch / floor": Spread(1.375, 1.25, 1.5), "Triton / PyTorch": Spread(2.5, 2.0, 3.0)}


def test_the_table_has_a_row_for_everything_and_the_floor() -> None:
    screen = Console(width=120, file=StringIO())
    screen.print(gpu_steps.step_table(ROUNDS, "a GPU"))
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in screen.file.getvalue().splitlines() if "│" in line]
    assert [row[0] for row in rows] == [*FLOOR, "floor", "PyTorch", "Triton"]
    assert rows[3] == ["floor", "6000.000 (4000.000–8000.000)", "1.00 (1.00–1.00)"]
    assert rows[4][2] == "1.38 (1.25–1.50)"


def test_the_first_round_does_not_count() -> None:
    seconds = iter([100.0, 7.0, 1.0, 2.0, 3.0, 4.0])
    rounds = gpu_steps.in_rounds({"one": lambda: next(seconds), "other": lambda: next(seconds)}, 2)
    assert rounds == {"one": [1.0, 3.0], "other": [2.0, 4.0]}


def event(name: str, start: float, end: float, device: DeviceType = DeviceType.CPU) -> SimpleNamespace:
    """Of a profile; microseconds."""
    return SimpleNamespace(name=name, time_range=SimpleNamespace(start=start, end=end, elapsed_us=lambda: end - start), device_type=device)


def test_a_profile_counts_waits_within_the_steps_and_adds_up_the_work() -> None:
    events = [
        event(STEPS, 10, 5000),
        event(STEPS, 12, 5200, DeviceType.CUDA),  # the same, as the device sees it
        event("cudaStreamSynchronize", 5, 6),  # before
        event("cudaStreamSynchronize", 20, 30),
        event("cudaMemcpyAsync", 20, 21),
        event("Memcpy DtoH (Device -> Pageable)", 22, 1022, DeviceType.CUDA),
        event("gemm", 100, 2100, DeviceType.CUDA),
        event("gemm", 5000, 6000, DeviceType.CUDA),  # launched within, done later
        event("cudaDeviceSynchronize", 5001, 7000),  # leaving the profile
    ]
    found = summary(events, 2)
    assert found["waits"] == {"Memcpy DtoH (Device -> Pageable)": 0.5, "cudaStreamSynchronize": 0.5}
    assert found["busy_ms"] == pytest.approx(2.0)
    assert found["longest_ms"] == pytest.approx({"gemm": 1.5, "Memcpy DtoH (Device -> Pageable)": 0.5})


def test_the_parts_of_the_floor_have_the_sizes_of_a_step() -> None:
    calls = floor_parts(Sizes(8, 32, 16), "cpu")
    assert tuple(calls) == FLOOR and all(seconds_per_call(call, 2) > 0 for call in calls.values())
    parameters = calls["Adam"].__self__.param_groups[0]["params"]
    learner = Inputs(Sizes(8, 32, 16), 4, 1, "cpu").learner("topk", 4)
    assert sum(p.numel() for p in parameters) == sum(p.numel() for p in learner.sae.parameters())


@pytest.mark.slow
def test_everything_that_is_timed_runs() -> None:
    inputs = Inputs(Sizes(16, 64, 32), 4, 2, "cpu")
    step = gpu_steps.step_rounds(inputs, 4, {"SAELens float32": lambda: 1.0}, 2, 1)
    assert list(step["seconds"]) == [*FLOOR, "PyTorch", "Triton", "SAELens float32"]
    assert list(step["ratios"]) == ["PyTorch / floor", "Triton / PyTorch", "SAELens float32 / PyTorch"]
    group = gpu_steps.group_rounds(inputs, (4, 8), 1, 1)
    n_saes = 2 * len(ARCHITECTURES)
    assert group["n_saes"] == n_saes and group["waits"].keys() == set(ARCHITECTURES)
    text = gpu_steps.told(step, group)
    assert f"{n_saes} mixed SAEs on one stream / {n_saes} times one:" in text and "waits for the device in a step of topk: none" in text


def test_without_saelens_only_our_side_is_timed() -> None:
    with gpu_steps.saelens(None, Inputs(Sizes(8, 32, 16), 4, 1, "cpu"), 4, 1, 1) as (theirs, versions):
        assert theirs == {} and versions is None


@pytest.mark.slow
def test_without_a_gpu_it_says_so_and_fails() -> None:
    done = subprocess.run(
        [sys.executable, BENCHMARK], capture_output=True, text=True, env={"CUDA_VISIBLE_DEVICES": ""}, timeout=120, check=False
    )
    assert done.returncode == 1
    assert "must run on a GPU, but got torch.cuda.is_available()=False" in done.stderr and not done.stdout
