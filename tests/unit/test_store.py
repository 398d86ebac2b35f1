import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch

from sae_core.activations.files import save_tensors
from sae_core.errors import ConfigError
from sae_core.files import write_json, write_json_lines
from sae_core.records import RunRecord
from sweeps.definition import Sweep
from sweeps.store import Store, may_recover


def sweep(**changes):
    definition = {
        "name": "small",
        "activations": {"source": "synthetic", "train_tokens": 10_000, "eval_tokens": 1000},
        "sae": {"d_sae": 64},
        "architectures": {"topk": {"k": [4, 8]}},
    }
    return Sweep(**{**definition, **changes})


def record(run, **changes):
    fields = {
        "run_id": run.run_id,
        "status": "finished",
        "config": run.model_dump(mode="json"),
        "architecture": run.sae.architecture,
        "sparsity_parameter": run.sae.sparsity_parameter,
        "sparsity_value": run.sae.sparsity_value,
        "seed": run.seed,
        "activations_hash": "abc",
    }
    return RunRecord(**{**fields, **changes})


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "results" / "small")


def begin(store, a_sweep):
    runs = a_sweep.runs()
    store.begin(a_sweep, runs)
    return runs


def test_layout(store, tmp_path):
    root = tmp_path / "results" / "small"
    assert store.record_file("a") == root / "runs" / "a" / "record.json"
    assert store.config_file("a") == root / "runs" / "a" / "config.json"
    assert store.history_file("a") == root / "runs" / "a" / "history.jsonl"
    assert store.sae("a") == root / "runs" / "a" / "sae"
    assert store.activations == tmp_path / "results" / ".activations"
    assert (store.table_csv, store.table_parquet, store.report) == (root / "table.csv", root / "table.parquet", root / "report")


def test_paths_are_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Store(Path("results/a")).directory == tmp_path / "results" / "a"


def test_begin_writes_the_definition_and_what_was_asked(store):
    runs = begin(store, sweep())
    assert [run.run_id for run in Sweep.from_yaml(store.definition_file).runs()] == [run.run_id for run in runs]
    facts = json.loads(store.sweep_file.read_text())
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
    store.run("a").mkdir(parents=True)
    store.history_file("a").write_text('{"step": 1, "l0": 2.0}\n{"step": 2, "l0": null}\n')
    assert store.read_history("a") == [{"step": 1, "l0": 2.0}, {"step": 2, "l0": None}]


def test_status_tells_why(store):
    runs = begin(store, sweep(architectures={"topk": {"k": [1, 2, 4, 8, 16, 32]}}))
    store.write_record(record(runs[0]))
    store.write_record(record(runs[1], status="trained"))
    store.write_record(record(runs[2], status="failed", error={"type": "DivergedError", "message": "loss is nan\nat step 3"}))
    store.run(runs[3].run_id).mkdir(parents=True)
    stopped = {"type": "StoppedEarly", "message": "dominated at 10% of its tokens"}
    store.write_record(record(runs[5], status="pruned", error=stopped))
    assert [(status.run_id, status.state, status.reason) for status in store.status()] == [
        (runs[0].run_id, "finished", ""),
        (runs[1].run_id, "trained", "not evaluated yet"),
        (runs[2].run_id, "failed", "DivergedError: loss is nan"),
        (runs[3].run_id, "missing", "interrupted"),
        (runs[4].run_id, "missing", "not started"),
        (runs[5].run_id, "pruned", "StoppedEarly: dominated at 10% of its tokens"),
    ]


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
    with store.locked(), pytest.raises(ConfigError, match=r"once at a time, but another launch is writing to '.*small'"), store.locked():
        pass
    with store.locked():  # let go of
        begin(store, sweep())


def test_what_a_killed_launch_left_of_ray_is_removed(store):
    (store.directory / ".ray-x1" / "trials").mkdir(parents=True)
    begin(store, sweep())
    assert not list(store.directory.glob(".ray-*"))


def test_left_over_temporary_files_do_not_disturb(store):
    store.directory.mkdir(parents=True)
    (store.directory / ".definition.yaml.x1").write_text("name: sm")
    runs = begin(store, sweep())
    run = store.run(runs[0].run_id)
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
    store.definition_file.write_text(sweep().to_yaml())
    assert store.status() == []
    assert len(begin(store, sweep())) == 2


DAMAGE = {
    "cut": b'{"name"',
    "empty": b"",
    "a list": b"[]",
    "not UTF-8": b"\xff\xfe{}",
    "deep": b"[" * 100_000,
    "a huge number": b'{"runs": ' + b"9" * 10_000 + b"}",
    "runs of the wrong type": b'{"runs": {"a": 1}}',
    "a run that is text": b'{"runs": ["topk-1"]}',
    "a run elsewhere": json.dumps({"runs": [{"run_id": "../../x", "config": {"activations": {}}}]}).encode(),
    "stages of the wrong type": b'{"stages": [{"stage": 1, "seconds": 2}]}',
    "launches of the wrong type": b'{"launches": 3}',
    "a launch that is a number": b'{"launches": [3]}',
    "another checksum": b'{"name": "small", "runs": [], "checksum": "0"}',
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_sweep_json_costs_what_it_held(store, damage, caplog):
    (run, _) = begin(store, sweep())
    store.write_record(record(run, launch=1))
    store.sweep_file.write_bytes(DAMAGE[damage])
    again = Store(store.directory)
    assert [(status.run_id, status.state) for status in again.status()] == [(run.run_id, "finished")]
    assert again.facts() == {}
    (line,) = caplog.messages
    assert (
        line.startswith("what it said of launches and of runs without a record is lost; records stay: ")
        and "sweep.json' is damaged" in line
    )
    assert again.begin(sweep(), sweep().runs()) == 2
    assert [status.state for status in again.status()] == ["finished", "missing"]
    assert (store.directory / "sweep.json.damaged").read_bytes() == DAMAGE[damage]
    first, second = Store(store.directory).facts()["launches"]
    assert (first["started_at"], second["definition"]) == (None, "definitions/1.yaml")


def test_what_is_in_the_place_of_a_file_is_set_aside(store, caplog):
    runs = begin(store, sweep(architectures={"topk": {"k": [1, 2, 4, 8, 16]}}))
    store.sweep_file.unlink()
    store.sweep_file.mkdir()
    store.run("").mkdir()
    directory, record_file, loop, other, empty = (store.run(run.run_id) for run in runs)
    directory.write_text("a file")
    (record_file / "record.json").mkdir(parents=True)
    loop.symlink_to(loop)
    other.mkdir()
    (other / "record.json").write_text(json.dumps(dataclasses.asdict(record(runs[0]))))
    (empty / "history.jsonl").mkdir(parents=True)
    (empty / "record.json").touch()
    again = Store(store.directory)
    assert {status.state for status in again.status()} <= {"missing"}
    assert again.begin(sweep(), runs) == 2
    assert sorted(path.relative_to(store.directory).as_posix() for path in store.directory.rglob("*.damaged")) == sorted(
        [
            "sweep.json.damaged",
            *(f"runs/{directory.name}.damaged", f"runs/{loop.name}.damaged"),
            *(f"runs/{one.name}/record.json.damaged" for one in (record_file, other, empty)),
            f"runs/{empty.name}/history.jsonl.damaged",
        ]
    )
    assert f"it is the record of {runs[0].run_id!r}" in caplog.text
    for run in runs:
        again.write_record(record(run))
    assert {status.state for status in again.status()} == {"finished"}


def test_runs_that_is_a_file(store):
    begin(store, sweep())
    (store.directory / "runs").write_text("")
    with pytest.raises(ConfigError, match=r"`runs` must be a directory, but '.*small/runs' is not\. Move it away\."):
        begin(store, sweep())
    assert store.status()[0].state == "missing"


def test_a_history_that_is_not_the_one_of_the_record_is_left_out(store, caplog):
    (run, _) = begin(store, sweep())
    checksum = write_json_lines(store.history_file(run.run_id), [{"step": 1, "l0": 2.0}])
    store.write_record(record(run, history_checksum=checksum))
    assert store.read_history(run.run_id) == [{"step": 1, "l0": 2.0}]
    store.history_file(run.run_id).write_text('{"step": 1, "l0": 3.0}\n')
    assert [store.read_history(run.run_id) for _ in range(2)] == [[], []]
    assert [line.split(":")[0] for line in caplog.messages] == [f"the history of run {run.run_id} is left out"]


def test_every_definition_is_kept_and_named_by_its_launch(store):
    narrow, wide = sweep(architectures={"topk": {"k": 4}}), sweep()
    numbers = [store.begin(one, one.runs()) for one in (narrow, wide, narrow)]
    assert numbers == [1, 2, 3]
    kept = [launch["definition"] for launch in store.facts()["launches"]]
    assert kept == ["definitions/1.yaml", "definitions/2.yaml", "definitions/1.yaml"]
    assert [(store.directory / name).read_text() for name in kept] == [one.to_yaml() for one in (narrow, wide, narrow)]
    assert sorted(path.name for path in (store.directory / "definitions").iterdir()) == ["1.yaml", "2.yaml"]
    first, *rest = store.definition_file.read_text().splitlines()
    assert first == "# Definition of launch 3. Those of all launches are in definitions/."
    assert "\n".join(rest) + "\n" == narrow.to_yaml()
    assert Sweep.from_yaml(store.definition_file) == narrow


def test_the_definition_of_an_earlier_version_is_kept(store):
    begin(store, sweep())
    facts = store.facts()
    shutil.rmtree(store.directory / "definitions")
    store.definition_file.write_text(sweep(seeds=[7]).to_yaml())
    write_json(store.sweep_file, {**facts, "launches": [{"started_at": "then", "ended_at": None}] * 2})
    assert Store(store.directory).begin(sweep(), sweep().runs()) == 3
    launches = store.facts()["launches"]
    assert [launch.get("definition") for launch in launches] == [None, "definitions/2.yaml", "definitions/3.yaml"]
    assert Sweep.from_yaml(store.directory / "definitions" / "2.yaml").seeds == [7]


def test_a_damaged_definition_disturbs_nobody(store):
    begin(store, sweep())
    (store.directory / "definitions" / "1.yaml").write_bytes(b"\xff")
    store.definition_file.unlink()
    store.definition_file.mkdir()
    assert store.begin(sweep(), sweep().runs()) == 2
    assert store.facts()["launches"][1]["definition"] == "definitions/2.yaml"
    assert store.definition_file.is_file()


def test_a_number_of_a_launch_that_cannot_be_is_not_believed(store):
    (run, _) = begin(store, sweep())
    store.write_record(record(run, launch=10**30))
    assert store.begin(sweep(), sweep().runs()) == 2


def test_damaged_checkpoints_are_removed_and_named(store):
    runs = begin(store, sweep(architectures={"topk": {"k": [1, 2, 4, 8]}}))
    good, flipped, directory, _ = (store.checkpoint_file(run.run_id) for run in runs)
    for file in (good, flipped):
        save_tensors(file, {"x": torch.arange(100)})
    content = bytearray(flipped.read_bytes())
    content[-1] ^= 1
    flipped.write_bytes(content)
    directory.mkdir(parents=True)
    assert store.remove_damaged_checkpoints(runs) == [runs[1].run_id, runs[2].run_id]
    assert [file.exists() for file in (good, flipped, directory)] == [True, False, False]
    assert store.remove_damaged_checkpoints(runs) == []


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("~nosuchuser/results", "a results directory must be a path, but got '~nosuchuser/results': RuntimeError"),
        ("/tmp/" + "x" * 300, "a results directory must be (readable|writable), but got '/tmp/x+'"),
        ("/tmp/a\0b", r"a results directory must be (readable|writable), but got '/tmp/a\\x00b'"),
    ],
)
def test_names_that_cannot_be_a_directory(path, reason):
    with pytest.raises(ConfigError, match=reason):
        store = Store(path)
        store.check_ours(sweep().runs())
        with store.locked():
            pass


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
    with pytest.raises(ConfigError, match=f"{first.run_id} has activations_hash='abc' and they are now 'new'.*Start anew"):
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
    store.record_file(run.run_id).unlink()
    assert store.read_record(run.run_id) is None
