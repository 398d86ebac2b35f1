"""A sweep of transcoders on a small model: one pass for all layers, interrupted and not, from the plan to the table and the page."""

import json
from pathlib import Path

import pytest
from inline import launch
from small_sweep import results_of
from tiny_model import DEMO_MODEL, write_text

from analysis.table import load_table
from sae_core.activations.language_model import loading
from sae_core.errors import ConfigError
from sae_core.sae.base import SparseAutoencoder
from sweeps.definition.sweep import Sweep
from sweeps.planning.plan import plan

pytestmark = pytest.mark.slow

FOUR = {"standard": {}, "topk": {}, "batchtopk": {"skip_connection": True}, "jumprelu": {}}


def sweep(directory: Path, layers: str = "[12]", **changes: object) -> Sweep:
    text = directory / "text.jsonl"
    if not text.exists():
        write_text(text, n_train=6, n_heldout=3)
    model = {"name": DEMO_MODEL, "hook_in": f"blocks.{layers}.mlp.hook_in", "hook_out": f"blocks.{layers}.hook_mlp_out"}
    data = {"dataset": str(text), "train_tokens": 1_000, "eval_tokens": 500}
    fields: dict[str, object] = {"architectures": FOUR, "train": {"batch_size": 128}, "target_l0": 8}
    return Sweep(name="trans", model=model, data=data, sae={"d_sae": 64}, **{**fields, **changes})  # type: ignore[arg-type]


def test_two_layers_from_one_pass_and_resumed_is_uninterrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("analysis.report.write_report", lambda *_: None)
    passes: list[int] = []
    load = loading.load_model

    def counted(*args: object, **options: object) -> object:
        model = load(*args, **options)  # type: ignore[arg-type]
        model.transformer.h[0].mlp.register_forward_hook(lambda block, inputs, output: passes.append(output.shape[0] * output.shape[1]))
        return model

    monkeypatch.setattr(loading, "load_model", counted)
    together = tmp_path / "together"
    assert launch(sweep(tmp_path), results=together).finished == 8
    n_tokens = sum(passes)
    passes.clear()
    assert launch(sweep(tmp_path, "1", architectures={"topk": {}}), results=tmp_path / "alone").finished == 1
    assert n_tokens < 1.5 * sum(passes)
    both = results_of(together / "trans")
    assert all(both[run_id] == result for run_id, result in results_of(tmp_path / "alone" / "trans").items())

    # Half of the runs first, on a cache that lost a shard; then all.
    interrupted = tmp_path / "interrupted"
    assert launch(sweep(tmp_path, architectures={name: FOUR[name] for name in ("topk", "jumprelu")}), results=interrupted).finished == 4
    next(interrupted.glob(".activations/*/train-00000.safetensors")).unlink()
    assert launch(sweep(tmp_path), results=interrupted).finished == 8
    assert results_of(interrupted / "trans") == both

    table = load_table(together / "trans")
    assert sorted(set(zip(table["hook_point"], table["hook_out"], strict=True))) == [
        (f"blocks.{layer}.mlp.hook_in", f"blocks.{layer}.hook_mlp_out") for layer in (1, 2)
    ]
    assert set(table["d_out"]) == {128} and table["fvu_without_latents"].notna().sum() == 2
    assert table["comparison_hash"].nunique() == 2
    for run in (together / "trans" / "runs").iterdir():
        metadata = json.loads((run / "sae" / "cfg.json").read_text())["metadata"]
        assert metadata["hook_name_out"] == metadata["hook_name"].replace("mlp.hook_in", "hook_mlp_out")
        assert SparseAutoencoder.from_pretrained(run / "sae").d_out == 128


def test_the_plan_says_where_transcoders_read_and_write_and_counts_both(tmp_path: Path) -> None:
    found = plan(sweep(tmp_path), tmp_path / "results", n_slots=1)
    line = next(line for line in found.lines() if line.startswith("transcoders"))
    assert "blocks.1.mlp.hook_in to blocks.1.hook_mlp_out" in line and "blocks.2.mlp.hook_in to blocks.2.hook_mlp_out" in line
    assert found.activations_bytes == 2 * 1_000 * (128 + 128) * 2  # two layers, float16
    standard = next(run for run in found.runs if run.setting.startswith("standard"))
    assert standard.flops == 12 * 128 * 64 * 7 * 128


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": {"gated": {}}}, "`architecture` of a transcoder must be one of .*, but got 'gated'"),
        ({"train": {"batch_size": 128, "normalize_activations": "layer_norm"}}, "must be the same map for every token in transcoders"),
        (
            {"train": {"batch_size": 128, "resample_every_steps": 2, "dead_after_tokens": 128, "resample_until": 0.9}},
            "`resample_every_steps` must be left out of transcoders",
        ),
    ],
)
def test_what_is_for_saes_alone_is_refused_before_work(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    for check in (lambda it: plan(it, tmp_path / "results", n_slots=1), lambda it: launch(it, results=tmp_path / "results")):
        with pytest.raises(ConfigError, match=message):
            check(sweep(tmp_path, **changes))
    assert not list(tmp_path.glob("results/**/train-*.safetensors"))
