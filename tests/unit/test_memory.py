"""The planned memory against what PyTorch's profiler sees allocated, on the CPU, with the operators that run on GPUs."""

import json

import pytest
import torch
from small_runs import run_of
from torch.profiler import ProfilerActivity, profile

from sae_core import provenance
from sae_core.config.run import ARCHITECTURES
from sae_core.sae.base import SparseAutoencoder
from sae_core.sparse.kernels.choice import using_kernels
from sae_core.training.loop import Learner
from sweeps.planning.memory import group_bytes, kept_bytes, local_slot_bytes, step_bytes, weights_bytes

FIELDS = {
    "topk": {"k": 32},
    "abstopk": {"k": 32},
    "hierarchical_topk": {"k": 32},
    "batchtopk": {"k": 32},
    "matryoshka_batchtopk": {"k": 32},
    "matching_pursuit": {"k": 32},
}
SIZES = {"off": (64, 1024, 256), "bfloat16": (256, 512, 128)}
"""d_in, d_sae, batch size: in the first, what has the shape of the batch's latents is largest; in the second, the weights are."""


def allocated(work, tmp_path):
    """Most bytes that were allocated at once during `work`, and bytes that are left, beside those before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    file = tmp_path / "trace.json"
    profiler.export_chrome_trace(str(file))
    events = sorted(
        (event for event in json.loads(file.read_text())["traceEvents"] if event.get("name") == "[memory]"), key=lambda event: event["ts"]
    )
    total = most = 0
    for event in events:
        total += event["args"]["Bytes"]
        most = max(most, total)
    return most, total


def measured(run, d_in, tmp_path):
    """Bytes that a run keeps, and the most that a step takes: the first one, or one with most latents dead."""
    made = []
    _, kept = allocated(lambda: made.append(Learner.start(run, d_in, torch.device("cpu"))), tmp_path)
    learner, x = made[0], torch.randn(run.train.batch_size, d_in)
    first, _ = allocated(lambda: learner.train_step(x), tmp_path)
    learner.tokens_since_active[run.sae.d_sae // 8 :], learner.none_dead_before = 10**9, 0
    return kept, max(first, allocated(lambda: learner.train_step(x), tmp_path)[0])


@pytest.mark.parametrize("autocast", list(SIZES))
@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_what_is_planned_is_what_is_allocated_and_not_much_more(architecture, autocast, tmp_path):
    d_in, d_sae, batch_size = SIZES[autocast]
    sae = ARCHITECTURES[architecture].Config(d_sae=d_sae, **FIELDS.get(architecture, {}))
    run = run_of(sae, batch_size=batch_size, autocast=autocast)
    with using_kernels("reference"):
        kept, step = measured(run, d_in, tmp_path)
    assert 0.97 * kept <= kept_bytes(run, d_in) <= kept
    assert step <= step_bytes(run, d_in)
    assert kept + step <= kept_bytes(run, d_in) + step_bytes(run, d_in) <= 1.6 * (kept + step)


def test_an_architecture_that_says_nothing_is_planned_with_more_than_any_here():
    default, run = SparseAutoencoder.step_memory(run_of("gated").sae, 32), run_of("gated")
    assert default.latents > ARCHITECTURES["gated"].step_memory(run.sae, 32).latents


def test_a_group_keeps_every_run_and_steps_one():
    small, large = run_of("topk"), run_of("topk", batch_size=128)
    together, alone = group_bytes([small, large], lambda _: 32), group_bytes([large], lambda _: 32)
    assert together - alone == kept_bytes(small, 32) == 3 * weights_bytes(small, 32)


def test_a_sample_that_initial_values_need_is_counted():
    plain = run_of("standard")
    with_sample = plain.model_copy(update={"sae": plain.sae.model_copy(update={"b_dec_init": "geometric_median"})})
    assert step_bytes(with_sample, 4096) > step_bytes(plain, 4096) + 32_768 * 4096 * 4


def test_slots_share_the_memory():
    assert 0 < (local_slot_bytes(4, 0) or 0) * 4 < provenance.memory_bytes()
