"""sweep.json and definitions; and what damaged files of a results directory cost."""

import dataclasses
import json
import shutil

import pytest
import torch
from stored_sweep import begin, record, sweep

from sae_core.activations.files import save_tensors
from sae_core.errors import ConfigError
from sae_core.files import write_json, write_json_lines
from sweeps.definition.sweep import Sweep
from sweeps.storage.lock import locked
from sweeps.storage.store import Store


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "results" / "small")


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
@pytest.mark.slow
def test_a_damaged_sweep_json_costs_what_it_held(store, damage, caplog):
    (run, _) = begin(store, sweep())
    store.write_record(record(run, launch=1))
    store.paths.facts.write_bytes(DAMAGE[damage])
    again = Store(store.directory)
    assert [(status.run_id, status.state) for status in again.status()] == [(run.run_id, "finished")]
    assert again.facts() == {}
    (line,) = caplog.messages
    assert (
        line.startswith("its facts about launches and runs without a record are lost; records are kept: ")
        and "sweep.json' is damaged" in line
    )
    assert again.begin(sweep(), sweep().runs()) == 2
    assert [status.state for status in again.status()] == ["finished", "missing"]
    assert (store.directory / "sweep.json.damaged").read_bytes() == DAMAGE[damage]
    first, second = Store(store.directory).facts()["launches"]
    assert (first["started_at"], second["definition"]) == (None, "definitions/1.yaml")


def test_what_is_in_the_place_of_a_file_is_set_aside(store, caplog):
    runs = begin(store, sweep(architectures={"topk": {"k": [1, 2, 4, 8, 16]}}))
    store.paths.facts.unlink()
    store.paths.facts.mkdir()
    store.paths.run("").directory.mkdir()
    directory, record_file, loop, other, empty = (store.paths.run(run.run_id).directory for run in runs)
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
    checksum = write_json_lines(store.paths.run(run.run_id).history, [{"step": 1, "l0": 2.0}])
    store.write_record(record(run, history_checksum=checksum))
    assert store.read_history(run.run_id) == [{"step": 1, "l0": 2.0}]
    store.paths.run(run.run_id).history.write_text('{"step": 1, "l0": 3.0}\n')
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
    first, *rest = store.paths.definition.read_text().splitlines()
    assert first == "# Definition of launch 3. Those of all launches are in definitions/."
    assert "\n".join(rest) + "\n" == narrow.to_yaml()
    assert Sweep.from_yaml(store.paths.definition) == narrow


def test_the_definition_of_an_earlier_version_is_kept(store):
    begin(store, sweep())
    facts = store.facts()
    shutil.rmtree(store.directory / "definitions")
    store.paths.definition.write_text(sweep(seeds=[7]).to_yaml())
    write_json(store.paths.facts, {**facts, "launches": [{"started_at": "then", "ended_at": None}] * 2})
    assert Store(store.directory).begin(sweep(), sweep().runs()) == 3
    launches = store.facts()["launches"]
    assert [launch.get("definition") for launch in launches] == [None, "definitions/2.yaml", "definitions/3.yaml"]
    assert Sweep.from_yaml(store.directory / "definitions" / "2.yaml").seeds == [7]


def test_a_damaged_definition_disturbs_nobody(store):
    begin(store, sweep())
    (store.directory / "definitions" / "1.yaml").write_bytes(b"\xff")
    store.paths.definition.unlink()
    store.paths.definition.mkdir()
    assert store.begin(sweep(), sweep().runs()) == 2
    assert store.facts()["launches"][1]["definition"] == "definitions/2.yaml"
    assert store.paths.definition.is_file()


def test_a_number_of_a_launch_that_cannot_be_is_not_believed(store):
    (run, _) = begin(store, sweep())
    store.write_record(record(run, launch=10**30))
    assert store.begin(sweep(), sweep().runs()) == 2


def test_damaged_checkpoints_are_set_aside_and_named(store, caplog):
    changes = {"architectures": {"topk": {"k": [1, 2, 4, 8]}}}
    runs = begin(store, sweep(**changes))
    good, flipped, directory, _ = (store.paths.run(run.run_id).checkpoint for run in runs)
    for file in (good, flipped):
        save_tensors(file, {"x": torch.arange(100)})
    content = bytearray(flipped.read_bytes())
    content[-1] ^= 1
    flipped.write_bytes(content)
    directory.mkdir(parents=True)
    for _ in range(2):
        begin(store, sweep(**changes))
        assert [file.exists() for file in (good, flipped, directory)] == [True, False, False]
    assert [f"{runs[1].run_id} starts again from its first step" in line for line in caplog.messages] == [True, False]


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
        with locked(store.directory):
            pass
