import dataclasses
import json
from pathlib import Path

import pytest
from stored_sweep import begin, record, sweep

from sae_core.errors import ConfigError
from sweeps.definition.sweep import Sweep
from sweeps.storage.lock import locked
from sweeps.storage.store import Store, may_recover


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "results" / "small")


def test_layout(store, tmp_path):
    root = tmp_path / "results" / "small"
    assert store.paths.run("a").record == root / "runs" / "a" / "record.json"
    assert store.paths.run("a").config == root / "runs" / "a" / "config.json"
    assert store.paths.run("a").history == root / "runs" / "a" / "history.jsonl"
    assert store.paths.run("a").sae == root / "runs" / "a" / "sae"
    assert store.paths.activations == tmp_path / "results" / ".activations"
    assert (store.paths.table_csv, store.paths.table_parquet, store.paths.report) == (
        root / "table.csv",
        root / "table.parquet",
        root / "report",
    )


def test_paths_are_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Store(Path("results/a")).directory == tmp_path / "results" / "a"


def test_begin_writes_the_definition_and_what_was_asked(store):
    runs = begin(store, sweep())
    assert [run.run_id for run in Sweep.from_yaml(store.paths.definition).runs()] == [run.run_id for run in runs]
    facts = json.loads(store.paths.facts.read_text())
    assert set(facts) == {"name", "runs", "stages", "launches", "hardware", "versions", "checksum"}
    assert facts["name"] == "small"
    assert [entry["run_id"] for entry in facts["runs"]] == [run.run_id for run in runs]
    assert facts["runs"][0]["config"] == runs[0].model_dump(mode="json")
    assert {key: facts["runs"][0][key] for key in ("architecture", "sparsity_parameter", "sparsity_value", "seed")} == {
        "architecture": "topk",
        "sparsity_parameter": "k",
        "sparsity_value": 4,
        "seed": 0,
    }


def test_stages_and_launches_add_up(store):
    begin(store, sweep())
    store.note_stage("harvest", 1.25)
    begin(store, sweep())
    store.note_stage("train", 2.0)
    store.end()
    facts = store.facts()
    assert facts["stages"] == [{"stage": "harvest", "seconds": 1.25, "launch": 0}, {"stage": "train", "seconds": 2.0, "launch": 1}]
    assert [launch["ended_at"] is None for launch in facts["launches"]] == [True, False]


def test_a_search_adds_runs_each_once(store):
    first, second = begin(store, sweep(architectures={"topk": {"k": 4}})), sweep().runs()
    store.add_runs(second)
    store.add_runs(second)
    assert [entry["run_id"] for entry in store.facts()["runs"]] == [first[0].run_id, second[1].run_id]


def test_history_of_a_run(store):
    assert store.read_history("a") == []
    store.paths.run("a").directory.mkdir(parents=True)
    store.paths.run("a").history.write_text('{"step": 1, "l0": 2.0}\n{"step": 2, "l0": null}\n')
    assert store.read_history("a") == [{"step": 1, "l0": 2.0}, {"step": 2, "l0": None}]


def test_status_tells_why(store):
    runs = begin(store, sweep(architectures={"topk": {"k": [1, 2, 4, 8, 16, 32]}}))
    store.write_record(record(runs[0]))
    store.write_record(record(runs[1], status="trained"))
    store.write_record(record(runs[2], status="failed", error={"type": "DivergedError", "message": "loss is nan\nat step 3"}))
    store.paths.run(runs[3].run_id).directory.mkdir(parents=True)
    stopped = {"type": "StoppedEarly", "message": "dominated at 10% of its tokens"}
    store.write_record(record(runs[5], status="pruned", error=stopped))
    assert [(status.run_id, status.state, status.reason) for status in store.status()] == [
        (runs[0].run_id, "finished", ""),
        (runs[1].run_id, "trained", "not evaluated yet"),
        (runs[2].run_id, "failed", "DivergedError: loss is nan at step 3"),
        (runs[3].run_id, "missing", "interrupted"),
        (runs[4].run_id, "missing", "not started"),
        (runs[5].run_id, "pruned", "StoppedEarly: dominated at 10% of its tokens"),
    ]
    assert [status.reason for status in store.status(is_running=True)][3:5] == ["begun", "not started"]


def test_a_longer_or_narrower_grid_keeps_what_there_is(store):
    runs = begin(store, sweep())
    for run in runs:
        store.write_record(record(run))
    longer = begin(store, sweep(architectures={"topk": {"k": [4, 8, 16]}}))
    assert [status.state for status in store.status()] == ["finished", "finished", "missing"]
    begin(store, sweep(architectures={"topk": {"k": 16}}))
    assert [(status.run_id, status.state) for status in store.status()] == [
        (longer[2].run_id, "missing"),
        *[(run_id, "finished") for run_id in sorted(run.run_id for run in runs)],
    ]
    assert set(store.records()) == {run.run_id for run in runs}


def test_one_shared_source_makes_it_the_same_sweep(store):
    def on(*widths):
        return sweep(activations={"source": "synthetic", "d_in": list(widths), "train_tokens": 10_000, "eval_tokens": 1000})

    for run in begin(store, on(16, 32)):
        store.write_record(record(run))
    begin(store, on(32))
    begin(store, on(16))  # known from records alone
    with pytest.raises(ConfigError, match="d_in is 16 there and 64 here"):
        begin(store, on(64))


def test_a_directory_of_another_sweep(store):
    begin(store, sweep())
    other = sweep(activations={"source": "synthetic", "train_tokens": 20_000, "eval_tokens": 1000})
    with pytest.raises(
        ConfigError, match=r"holds another: train_tokens is 10000 there and 20000 here\. Choose another .*`--set name=NAME`"
    ):
        begin(store, other)
    assert store.facts()["runs"][0]["config"]["activations"]["train_tokens"] == 10_000


def test_a_directory_of_something_else(store):
    store.directory.mkdir(parents=True)
    (store.directory / "thesis.tex").touch()
    with pytest.raises(ConfigError, match=r"must be empty or a sweep's, but '.*small' holds \['thesis\.tex'\]\. Choose another"):
        begin(store, sweep())


def test_a_directory_that_is_a_file(tmp_path):
    (tmp_path / "small").touch()
    with pytest.raises(ConfigError, match=r"a results directory must be writable, but got '.*small'"):
        begin(Store(tmp_path / "small"), sweep())


def test_only_one_launch_at_a_time(store):
    with locked(store.directory), pytest.raises(ConfigError, match=r"but process .* is writing to '.*small'"), locked(store.directory):
        pass
    with locked(store.directory):  # let go of
        begin(store, sweep())


def test_what_a_killed_launch_left_of_ray_is_removed(store):
    (store.directory / ".ray-x1" / "trials").mkdir(parents=True)
    begin(store, sweep())
    assert not list(store.directory.glob(".ray-*"))


def test_left_over_temporary_files_do_not_disturb(store):
    store.directory.mkdir(parents=True)
    (store.directory / ".definition.yaml.x1").write_text("name: sm")
    runs = begin(store, sweep())
    run = store.paths.run(runs[0].run_id).directory
    run.mkdir(parents=True)
    (run / ".record.json.x2").write_text("{")
    (run / "record.json").write_text('{"run_id": "to')
    (store.directory / "runs" / "notes").mkdir()
    assert store.read_record(runs[0].run_id) is None
    assert store.records() == {}
    assert [status.state for status in store.status()] == ["missing", "missing"]
    begin(store, sweep())


def test_killed_between_definition_and_sweep_json(store):
    store.directory.mkdir(parents=True)
    store.paths.definition.write_text(sweep().to_yaml())
    assert store.status() == []
    assert len(begin(store, sweep())) == 2


def test_a_record_of_a_newer_version(store):
    (run, _) = begin(store, sweep())
    store.write_record(dataclasses.replace(record(run), schema_version=99))
    with pytest.raises(ConfigError, match=r"schema_version must be <= 1, but .* has 99"):
        store.records()


@pytest.mark.parametrize(
    ("status", "error", "again"),
    [("failed", "OutOfMemoryError", True), ("failed", "DivergedError", False), ("finished", None, False), ("trained", None, False)],
)
def test_only_failures_by_accident_are_tried_again(status, error, again):
    (run, _) = sweep().runs()
    assert may_recover(record(run, status=status, error=error and {"type": error, "message": "", "traceback": ""})) is again


def test_results_of_changed_activations_are_not_reused(store):
    first, second = begin(store, sweep())
    store.write_record(record(first))
    store.write_record(record(second, status="failed", activations_hash="old"))
    store.check_hashes({first.run_id: "abc", second.run_id: "new"})
    with pytest.raises(ConfigError, match=f"{first.run_id} has activations_hash='abc' but now 'new'.*Start a new sweep"):
        store.check_hashes({first.run_id: "new", second.run_id: "new"})


def test_status_of_a_directory_that_is_no_sweep(tmp_path):
    with pytest.raises(ConfigError, match=f"a results directory must hold sweep.json, but got '{tmp_path}'"):
        Store(tmp_path).status()


def test_a_record_is_read_again_when_its_file_changes(store):
    (run, _) = begin(store, sweep())
    store.write_record(record(run, status="trained"))
    first = store.read_record(run.run_id)
    assert store.read_record(run.run_id) is first
    store.write_record(record(run))
    assert (first.status, store.read_record(run.run_id).status) == ("trained", "finished")
    store.paths.run(run.run_id).record.unlink()
    assert store.read_record(run.run_id) is None
