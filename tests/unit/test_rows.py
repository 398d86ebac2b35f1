"""Rows of the table, and what sets runs apart."""

from pathlib import Path

import pytest
from fake_results import config_of, metrics_at, record_of, target_record, write_sweep

from analysis.report.findings import warning_lines
from analysis.table import load_table
from sae_core.records import RunRecord, reason


@pytest.mark.parametrize(
    ("kind", "message", "told"),
    [
        ("DivergedError", "loss must be finite.\n  step 3", "DivergedError: loss must be finite. step 3"),
        (
            "RayTaskError(OSError)",
            "ray::Trial.train() (pid=1)\n  File x\nOSError: [Errno 28] No space left",
            "OSError: [Errno 28] No space left",
        ),
        ("UnicodeError", "a\udcff", r"UnicodeError: a\udcff"),
    ],
)
def test_a_reason_is_the_cause_in_one_line(kind: str, message: str, told: str) -> None:
    assert reason({"type": kind, "message": message}) == told


def test_a_reason_that_was_not_recorded() -> None:
    assert reason({}) == "error: no message was recorded"
    assert len(reason({"type": "E", "message": "x" * 10_000})) == 500


def test_runs_are_told_apart_by_names(tmp_path: Path) -> None:
    config = config_of("topk", 8, 1, normalize_activations="none")
    config["activations"]["model"]["context_size"] = 64
    facts = {"d_vocab": 1000, "outlier_rows": 3, "outlier_share": 0.25}
    record = record_of("topk", 8, metrics_at(8, 0.1, 0.2), config=config, launch=2, eval_hardware="1 GPU", activation_facts=facts)
    (row,) = load_table(write_sweep(tmp_path / "demo", [record])).to_dict("records")
    assert {name: row[name] for name in ("model", "hook_point", "dataset", "context_size", "batch_size", "normalize_activations")} == {
        "model": "demo",
        "hook_point": "blocks.2.hook_resid_post",
        "dataset": "demo",
        "context_size": 64,
        "batch_size": 2048,
        "normalize_activations": "none",
    }
    assert (row["data_seed"], row["launch"], row["eval_hardware"]) == (0, 2, "1 GPU")
    assert (row["d_vocab"], row["outlier_rows"], row["outlier_share"]) == (1000, 3, 0.25)


def variant_of(tmp_path: Path, *records: RunRecord) -> dict[str, str]:
    table = load_table(write_sweep(tmp_path / "demo", records))
    return dict(zip(table["run_id"], table["variant"], strict=True))


def run(
    run_id: str, architecture: str = "topk", level: float = 16, seed: int = 0, *, sae: dict | None = None, **train: object
) -> RunRecord:
    config = config_of(architecture, level, seed, **train)
    config["sae"] |= sae or {}
    return record_of(architecture, level, metrics_at(16, 0.1, 0.2), seed, config, run_id=run_id)


def test_what_has_its_own_column_is_not_told_again(tmp_path: Path) -> None:
    runs = [run("a"), run("b", level=32), run("c", seed=1), run("d", lr=1e-3), run("e", "batchtopk", 8), run("f", sae={"target_l0": 16.0})]
    assert set(variant_of(tmp_path, *runs).values()) == {""}


def test_fields_that_differ_are_told_for_their_architecture_only(tmp_path: Path) -> None:
    runs = [
        run("a", batch_size=1024, sae={"bandwidth": 0.5, "loss": "step"}),
        run("b", batch_size=4096, sae={"bandwidth": 0.5, "loss": "tanh"}),
        run("c", "batchtopk", 8, batch_size=4096),
    ]
    assert variant_of(tmp_path, *runs) == {"a": "loss=step, batch_size=1024", "b": "loss=tanh, batch_size=4096", "c": ""}


def test_a_field_that_an_older_config_lacks_is_left_out_there(tmp_path: Path) -> None:
    runs = [run("old"), run("x", sae={"tanh_scale": 4.0}), run("y", sae={"tanh_scale": 2.5})]
    assert variant_of(tmp_path, *runs) == {"old": "", "x": "tanh_scale=4", "y": "tanh_scale=2.5"}


def test_a_field_that_configs_leave_out_at_its_default_is_told_where_it_varies(tmp_path: Path) -> None:
    runs = [run("a"), run("b", sae={"skip_connection": True})]
    assert variant_of(tmp_path, *runs) == {"a": "skip_connection=false", "b": "skip_connection=true"}


def test_the_start_of_a_search_for_a_target_is_told_only_where_it_varies_at_that_target(tmp_path: Path) -> None:
    records = [target_record("standard", target, metrics_at(target, 0.1, 0.2)) for target in (16, 32)]
    assert set(variant_of(tmp_path, *records).values()) == {""}  # starts differ, but each target has one
    other = target_record("standard", 16, metrics_at(16, 0.1, 0.2), seed=1)
    other.config["sae"]["l1_coefficient"] = 7.0
    assert variant_of(tmp_path, *records, other)["standard-target16-1"] == "l1_coefficient=7"


def test_a_start_that_another_field_decides_is_not_told(tmp_path: Path) -> None:
    step, quadratic = (target_record("jumprelu", 16, metrics_at(16, 0.1, 0.2), seed=seed) for seed in (0, 1))
    step.config["sae"] |= {"sparsity_loss": "step", "l0_coefficient": 0.2}
    quadratic.config["sae"] |= {"sparsity_loss": "quadratic", "l0_coefficient": 4.0}
    assert set(variant_of(tmp_path, step, quadratic).values()) == {"sparsity_loss=step", "sparsity_loss=quadratic"}


def test_lists_and_nothing_are_written_as_json(tmp_path: Path) -> None:
    runs = [run("a", sae={"widths": [64, 128]}), run("b", sae={"widths": None})]
    assert variant_of(tmp_path, *runs) == {"a": "widths=[64, 128]", "b": "widths=null"}


def test_arithmetic_has_columns_where_records_tell_it(tmp_path: Path) -> None:
    kinds = [{"kernels": "reference", "device": "cpu"}, {"kernels": "triton", "device": "cuda"}]
    records = [record_of("topk", k, metrics_at(k, 0.1, 0.2), eval_arithmetic=kind) for k, kind in zip((8, 16), kinds, strict=True)]
    table = load_table(write_sweep(tmp_path / "demo", records))
    assert list(table["eval_arithmetic"]) == ["device cpu, kernels reference", "device cuda, kernels triton"]
    assert list(table.columns[-2:]) == ["eval_hardware", "eval_arithmetic"]  # none says how it was trained
    assert "Evaluation arithmetic differs: 1 run with device cpu" in " ".join(warning_lines(table))
