"""A sweep of crosscoders beside SAEs on a small model: one pass for both, interrupted and not, from the plan to the table."""

import json
from pathlib import Path

import pytest
from inline import launch
from small_sweep import results_of
from tiny_model import DEMO_MODEL, write_text

from analysis.table import load_table, metric_specs
from sae_core.errors import ConfigError
from sae_core.sae.base import SparseAutoencoder
from sweeps.definition.sweep import Sweep
from sweeps.planning.plan import plan

pytestmark = pytest.mark.slow

TOGETHER = "blocks.1.hook_mlp_out + blocks.2.hook_mlp_out"


HOOK_POINTS = [{"together": "blocks.[12].hook_mlp_out"}, "blocks.2.hook_mlp_out"]


def sweep(directory: Path, hook_points: object = HOOK_POINTS, **changes: object) -> Sweep:
    text = directory / "text.jsonl"
    if not text.exists():
        write_text(text, n_train=6, n_heldout=3)
    model = {"name": DEMO_MODEL, "hook_point": hook_points}
    data = {"dataset": str(text), "train_tokens": 1_000, "eval_tokens": 500}
    fields: dict[str, object] = {"architectures": {"topk": {}, "jumprelu": {}}, "train": {"batch_size": 128}, "target_l0": 8}
    return Sweep(name="cross", model=model, data=data, sae={"d_sae": 64}, **{**fields, **changes})  # type: ignore[arg-type]


def test_from_the_plan_to_the_table_and_resumed_is_uninterrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("analysis.report.write_report", lambda *_: None)
    whole = tmp_path / "whole"
    assert f"crosscoders {TOGETHER}" in plan(sweep(tmp_path), whole, n_slots=1).lines()
    assert launch(sweep(tmp_path), results=whole).finished == 4

    # Some runs first, on a cache that lost a shard; then all.
    interrupted = tmp_path / "interrupted"
    assert launch(sweep(tmp_path, architectures={"topk": {}}), results=interrupted).finished == 2
    next(interrupted.glob(".activations/*/train-00000.safetensors")).unlink()
    assert launch(sweep(tmp_path), results=interrupted).finished == 4
    assert results_of(interrupted / "cross") == results_of(whole / "cross")

    table = load_table(whole / "cross")
    crosscoders = table["hook_point"] == TOGETHER
    assert sorted(table["d_in"]) == [128, 128, 256, 256] and set(table.loc[crosscoders, "d_in"]) == {256}
    for name in TOGETHER.split(" + "):
        assert table.loc[crosscoders, f"fvu_at_{name}"].notna().all() and table.loc[~crosscoders, f"fvu_at_{name}"].isna().all()
        assert metric_specs(whole / "cross")[f"fvu_at_{name}"].direction == "min"
    assert table["delta_ce"].notna().all() and table["comparison_hash"].nunique() == 2
    for run_id in table.loc[crosscoders, "run_id"]:
        directory = whole / "cross" / "runs" / run_id / "sae"
        assert json.loads((directory / "cfg.json").read_text())["metadata"]["hook_name"] == TOGETHER
        assert SparseAutoencoder.from_pretrained(directory).parts == dict.fromkeys(TOGETHER.split(" + "), 128)


def test_what_needs_one_hook_point_is_refused_before_work(tmp_path: Path) -> None:
    train = {"batch_size": 128, "normalize_activations": "layer_norm"}
    with pytest.raises(ConfigError, match="every token in crosscoders, but got 'layer_norm'"):
        plan(sweep(tmp_path, train=train), tmp_path / "results", n_slots=1)
    with pytest.raises(ConfigError, match="every token in crosscoders, but got 'layer_norm'"):
        launch(sweep(tmp_path, train=train), results=tmp_path / "results")
    with pytest.raises(ConfigError, match=r"must be a hook point, or `\{together"):
        sweep(tmp_path, hook_points={"together": 3}).runs()
