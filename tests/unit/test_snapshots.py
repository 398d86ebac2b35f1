import copy
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from small_runs import D_IN, D_SAE, run_of, stream_of

from sae_core.activations.stream import ActivationStream
from sae_core.architectures.hierarchical_topk import HierarchicalTopK, HierarchicalTopKConfig
from sae_core.config.run import ARCHITECTURES, RunConfig
from sae_core.config.snapshots import Point, snapshot_steps
from sae_core.layout import RunPaths
from sae_core.records import RunRecord
from sae_core.sae.base import SparseAutoencoder
from sae_core.training.export import write_result
from sae_core.training.loop import Learner, train_group, train_run
from sae_core.training.snapshots import Snapshots

POINT: TypeAdapter[float | str] = TypeAdapter(Point)
FACTS = {"launch": 1}


@pytest.mark.parametrize(
    ("points", "steps"),
    [
        (["10%", 0.3], [10, 30]),
        (["30 steps", "1280 tokens"], [20, 30]),  # 64 tokens per step
        (["log 2"], [1, 10]),
        (["log 4"], [1, 3, 10, 32]),
        (["log 100"], sorted({round(100 ** (i / 100)) for i in range(100)})),
        (["0.001%"], [1]),
        ([], []),
    ],
)
def test_points_of_a_run(points, steps):
    found = snapshot_steps([POINT.validate_python(point) for point in points], 100, 64)
    assert found == steps


def test_log_points_are_a_constant_factor_apart():
    steps = snapshot_steps(["log 5"], 10**6, 64)
    assert steps[0] == 10**4
    assert [later / step for step, later in zip(steps, [*steps[1:], 10**6], strict=True)] == pytest.approx([10**0.4] * 5, rel=1e-4)


@pytest.mark.parametrize("point", [0, 0.0, 1, "100%", "0 steps", "log 0", "log 101", "log", "half", -0.1, True, None])
def test_what_is_no_point(point):
    with pytest.raises(ValidationError, match=re.escape(f"but got {point!r}")):
        POINT.validate_python(point)


def trained(directory: Path, runs: list[RunConfig], *points: float | str, **options: object) -> None:
    stream = stream_of(runs[0])
    train_group(runs, stream, directory=directory, after_step=taking(points, stream, directory), **options)


def taking(points: Sequence[float | str], stream: ActivationStream, directory: Path) -> Snapshots:
    return Snapshots([POINT.validate_python(point) for point in points], stream, directory, {}, FACTS)


def snapshots_of(directory: Path) -> dict[str, tuple[bytes, dict[str, object]]]:
    """Weights, and what of the record does not depend on the clock."""
    found = {}
    for file in sorted(directory.glob("*/variants/*/record.json")):
        record, paths = RunRecord.read(file), RunPaths(file.parent)
        facts = {name: getattr(record, name) for name in ("variant_of", "variant_kind", "train_tokens", "sparsity_value", "status")}
        found[record.run_id] = (paths.sae / "sae_weights.safetensors").read_bytes(), facts
    return found


@pytest.mark.slow
def test_a_snapshot_is_what_the_run_is_at_that_step(tmp_path):
    runs, kept = [run_of(name, n_steps=8, dead_after_tokens=128) for name in ARCHITECTURES], {}

    def keep(learners: list[Learner]) -> None:
        if learners[0].step == 6:
            kept.update({learner.run.run_id: copy.deepcopy(learner) for learner in learners})

    trained(tmp_path, runs, "6 steps", on_step=keep)
    assert len(snapshots_of(tmp_path)) == len(runs)
    for run in runs:
        learner, stream = kept[run.run_id], stream_of(run)
        learner.calibrate(stream.batches(0))
        expected = learner.result(stream.normalization).exported().state_dict()
        paths = RunPaths(tmp_path / run.run_id).variant("tokens-384")
        sae = SparseAutoencoder.from_pretrained(paths.sae)
        assert all(torch.equal(value, expected[name]) for name, value in sae.state_dict().items())
        record = RunRecord.read(paths.record)
        assert (record.run_id, record.train_tokens) == (f"{run.run_id}@tokens-384", 384)


@pytest.mark.slow
def test_snapshots_change_nothing(tmp_path):
    run = run_of("batchtopk")
    stream = stream_of(run)
    with_them = train_run(run, stream, after_step=taking(["log 5"], stream, tmp_path))
    without = train_run(run, stream_of(run))
    assert with_them.sae is not None and without.sae is not None
    assert all(torch.equal(value, without.sae.state_dict()[name]) for name, value in with_them.sae.state_dict().items())
    assert with_them.history == without.history


@pytest.mark.slow
@pytest.mark.parametrize("killed_at", [5, 6, 12])
def test_after_a_kill_each_snapshot_is_there_once_and_the_same(tmp_path, killed_at):
    runs = [run_of(name) for name in ("batchtopk", "jumprelu", "topk")]
    trained(tmp_path / "at once", runs, "6 steps", "60%")

    def kill(learners: list[Learner]) -> None:
        if learners[0].step == killed_at:
            raise KeyboardInterrupt

    def trained_in_parts(checkpoint_seconds: float) -> None:
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path / "killed", runs, "6 steps", "60%", on_step=kill, checkpoint_seconds=checkpoint_seconds)

    trained_in_parts(checkpoint_seconds=0 if killed_at % 2 else 1e9)  # from a checkpoint of that step, or from the start
    trained(tmp_path / "killed", runs[:1], "6 steps", "60%")  # and in other groups
    trained(tmp_path / "killed", runs[1:], "6 steps", "60%")
    found = snapshots_of(tmp_path / "killed")
    assert found == snapshots_of(tmp_path / "at once")
    assert len(found) == 6


def test_a_snapshot_of_weights_that_are_not_finite_is_left_out(tmp_path):
    trained(tmp_path, [run_of("topk", lr=1e30, lr_warm_up=0.0, max_grad_norm=None)], "12 steps")
    assert not snapshots_of(tmp_path)


def test_a_frontier_is_exported_beside_its_run_and_shares_its_weights(tmp_path):
    run = run_of(HierarchicalTopKConfig(d_sae=D_SAE, k=6))
    result = train_run(run, stream_of(run))
    paths = RunPaths(tmp_path / run.run_id)
    write_result(result, paths, metadata={}, facts=FACTS)
    variants = {variant.directory.name: variant for variant in paths.recorded_variants()}
    assert list(variants) == ["k-1", "k-2", "k-4"]
    x = stream_of(run).normalization(torch.randn(50, D_IN)) * 3
    own = SparseAutoencoder.from_pretrained(paths.sae)
    for name, variant in variants.items():
        sae, record = SparseAutoencoder.from_pretrained(variant.sae), RunRecord.read(variant.record)
        k = int(name.removeprefix("k-"))
        assert (record.variant_kind, record.sparsity_value, record.sparsity_parameter) == ("form", k, "k")
        kept = own.encode(x).topk(k, dim=1)
        assert torch.equal(sae.encode(x), torch.zeros(50, D_SAE).scatter(1, kept.indices, kept.values))
        assert (variant.sae / "sae_weights.safetensors").samefile(paths.sae / "sae_weights.safetensors")


@pytest.mark.parametrize(
    ("k", "inner_ks", "forms"),
    [
        (1, None, []),
        (6, None, [1, 2, 4]),
        (12, tuple(range(1, 12)), [1, 2, 4, 8]),
        (32, tuple(range(1, 32)), [1, 2, 4, 8, 16]),
        (12, (3, 9), [3, 9]),
        (12, (5,), [5]),
        (12, (), []),
    ],
)
def test_forms_of_a_hierarchical_sae(k, inner_ks, forms):
    sae = HierarchicalTopK(HierarchicalTopKConfig(d_sae=D_SAE, k=k, inner_ks=inner_ks), D_IN)
    assert list(sae.forms()) == [f"k-{level}" for level in forms]
