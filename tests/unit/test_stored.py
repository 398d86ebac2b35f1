"""Reading sweep directories."""

from pathlib import Path

import pytest
from fake_results import failed, metrics_at, record_of, write_run, write_sweep

from analysis.stored import read_history, read_sweeps
from sae_core.errors import ConfigError


def test_runs_come_from_records_and_from_sweep_json(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "demo", [record_of("topk", 16, metrics_at(16, 0.08, 0.1))], missing=[("topk", 8, 0)])
    write_run(sweep, failed("gated", 3))  # a run that sweep.json does not name
    (read,) = read_sweeps(sweep)
    assert {run.run_id: run.record and run.record.status for run in read.runs} == {
        "gated-3-0": "failed",
        "topk-16-0": "finished",
        "topk-8-0": None,
    }
    assert read.name == "demo"
    assert read.runs[2].config["sae"]["k"] == 8
    (definition,) = read.definitions
    assert (definition.file, definition.launches) == ("definition.yaml", ())
    assert definition.text.startswith("name: demo")


def test_sweep_json_is_optional(tmp_path: Path) -> None:
    write_run(tmp_path / "old", record_of("topk", 16, metrics_at(16, 0.08, 0.1)))
    (read,) = read_sweeps([tmp_path / "old"])
    assert (read.name, read.facts, read.definitions, len(read.runs)) == ("old", {}, (), 1)


def test_a_directory_that_is_no_sweep_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"must hold `runs/` or `sweep.json`, but got '.*nowhere'"):
        read_sweeps(tmp_path / "nowhere")


def test_no_directory_at_all() -> None:
    with pytest.raises(ConfigError, match=r"at least one results directory must be given, but got \[\]"):
        read_sweeps([])


def test_history_without_its_cut_off_last_line(tmp_path: Path) -> None:
    file = tmp_path / "history.jsonl"
    file.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": null}\n{"step": 3, "lo')
    assert read_history(file) == [{"step": 1, "loss": 2.0}, {"step": 2, "loss": None}]


def test_no_history(tmp_path: Path) -> None:
    assert read_history(tmp_path / "history.jsonl") == []
