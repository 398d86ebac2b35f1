"""Rows of the table."""

from pathlib import Path

import pytest
from fake_results import config_of, metrics_at, record_of, write_sweep

from analysis.rows import reason
from analysis.table import load_table


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
