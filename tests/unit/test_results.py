"""Reading sweep directories."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from fake_results import failed, metrics_at, record_of, write_run, write_sweep

from analysis.results import Definition, read_sweeps, requested_rates
from analysis.table import load_table
from sae_core.errors import ConfigError, DamagedFileError
from sae_core.files import checksum_of, write_json_lines, write_text
from sae_core.records import read_history


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
    assert (definition.file, definition.launches) == (sweep / "definition.yaml", ())
    assert definition.text.startswith("name: demo")


def test_sweep_json_is_optional(tmp_path: Path) -> None:
    write_run(tmp_path / "old", record_of("topk", 16, metrics_at(16, 0.08, 0.1)))
    (read,) = read_sweeps([tmp_path / "old"])
    assert (read.name, read.facts, read.definitions, len(read.runs)) == ("old", {}, (), 1)


def test_a_directory_that_is_no_sweep_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^a results directory must hold `runs/` or `sweep.json`, but got '.*nowhere'"):
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


def test_a_damaged_record_costs_its_run_and_says_why(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sweep = write_sweep(tmp_path / "demo", [record_of("topk", k, metrics_at(k, 0.1, 0.1)) for k in (8, 16, 32)])
    file = sweep / "runs" / "topk-16-0" / "record.json"
    for content, reason in (
        (b"", "JSONDecodeError: Expecting value"),
        (file.read_bytes()[:300], "JSONDecodeError"),
        (file.read_bytes().replace(b'"fvu": 0.1', b'"fvu": 0.2'), "ValueError: its checksum does not match its content"),
        (b"[]", "ValueError: it holds list, not an object"),
        (b"\xff\xfe", "UnicodeDecodeError"),
    ):
        file.write_bytes(content)
        (read,) = read_sweeps(sweep)
        lost = {run.run_id: run for run in read.runs}["topk-16-0"]
        assert lost.record is None
        assert f"{str(file)!r} is damaged: {reason}" in lost.damage
        assert lost.config["sae"]["k"] == 16  # from sweep.json
        assert [run.run_id for run in read.runs if run.record] == ["topk-32-0", "topk-8-0"]
        assert read.damages == (lost.damage,)
        assert lost.damage in caplog.text
        row = load_table(sweep).set_index("run_id").loc["topk-16-0"]
        assert (row["status"], row["error"]) == ("missing", lost.damage)


@pytest.mark.parametrize("as_directory", [False, True])
def test_a_damaged_sweep_json_is_as_none(tmp_path: Path, as_directory: bool) -> None:
    sweep = write_sweep(tmp_path / "demo", [record_of("topk", 8, metrics_at(8, 0.1, 0.1))], missing=[("topk", 16, 0)])
    file = sweep / "sweep.json"
    if as_directory:
        file.unlink()
        file.mkdir()
    else:
        file.write_text(file.read_text().replace("topk", "tokp", 1))
    (read,) = read_sweeps(sweep)
    assert [run.run_id for run in read.runs] == ["topk-8-0"]
    assert read.facts == {}
    if not as_directory:
        assert "sweep.json' is damaged: ValueError: its checksum does not match its content." in read.damages[0]


@pytest.mark.parametrize(
    ("facts", "field"),
    [
        ({"runs": {"a": 1}}, "`runs`"),
        ({"runs": [3]}, "runs"),
        ({"runs": [{}]}, "run_id"),
        ({"runs": [{"run_id": "../other"}]}, "../other"),
        ({"runs": [{"run_id": "a" * 256}]}, "run_id"),
        ({"runs": [{"run_id": "a", "seed": "0"}]}, "seed"),
        ({"runs": [{"run_id": "a", "config": {"sae": {"d_sae": "wide"}}}]}, "'wide'"),
        ({"runs": [{"run_id": "a", "config": {"train": []}}]}, "train"),
        ({"name": 3}, "`name`"),
        ({"stages": [{"stage": "train", "seconds": "long"}]}, "'long'"),
        ({"launches": [{"definition": 1}]}, "definition"),
        ({"hardware": "\ud800"}, "surrogates not allowed"),
    ],
)
def test_sweep_json_of_the_wrong_types(tmp_path: Path, facts: dict, field: str) -> None:
    sweep = write_sweep(tmp_path / "demo", [record_of("topk", 8, metrics_at(8, 0.1, 0.1))])
    (sweep / "sweep.json").write_text(json.dumps(facts))
    (read,) = read_sweeps(sweep)
    assert [run.run_id for run in read.runs] == ["topk-8-0"]
    assert "sweep.json' is damaged: " in read.damages[0]
    assert field in read.damages[0]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"run_id": "topk-9-0"}, "it is the record of 'topk-9-0'"),
        ({"metrics": {"status": 1.0}}, "`metrics` holds 'status', which is no metric"),
        ({"metrics": {"fvu": 1e300}}, "1000000000000000"),
        ({"d_in": 10**30}, "10000000000000000000"),
        ({"config": {"train": {"lr": -1.0}}}, "lr"),
        ({"config": {"deep": json.loads("[" * 40 + "]" * 40)}}, "30"),
        ({"hardware": "a\udfff"}, "surrogates not allowed"),
    ],
)
@pytest.mark.slow
def test_a_record_that_no_table_can_hold(tmp_path: Path, changes: dict, reason: str) -> None:
    record = record_of("topk", 8, metrics_at(8, 0.1, 0.1))
    sweep = write_sweep(tmp_path / "demo", [record, record_of("topk", 16, metrics_at(16, 0.1, 0.1))])
    (sweep / "runs" / "topk-8-0" / "record.json").write_text(json.dumps(dataclasses.asdict(record) | changes))
    (read,) = read_sweeps(sweep)
    assert [run.run_id for run in read.runs if run.record] == ["topk-16-0"]
    assert reason in read.damages[0]
    load_table(sweep)


def test_a_record_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    record = record_of("topk", 8, metrics_at(8, 0.1, 0.1), schema_version=99)
    with pytest.raises(ConfigError, match=r"record schema_version must be <= 1, but '.*record.json' has 99"):
        read_sweeps(write_sweep(tmp_path / "demo", [record]))


@pytest.mark.parametrize("make", [Path.touch, lambda path: path.symlink_to(path)])
def test_files_and_loops_in_place_of_a_directory(tmp_path: Path, make) -> None:
    make(tmp_path / "demo")
    with pytest.raises(ConfigError, match=r"a results directory must .*, but got '.*demo'"):
        read_sweeps(tmp_path / "demo")


def test_odd_paths(tmp_path: Path) -> None:
    for path in ("~nosuchuser/demo", "a" * 300, "a\0b"):
        with pytest.raises(ConfigError, match=r"a results directory must .*, but got"):
            read_sweeps(path)
    with pytest.raises(ConfigError, match="results must be one path or several, but got 3"):
        read_sweeps(3)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"results must be one path or several, but got \[None\]"):
        read_sweeps([None])  # type: ignore[list-item]


def test_runs_that_is_no_directory(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "demo", [record_of("topk", 8, metrics_at(8, 0.1, 0.1))])
    shutil.rmtree(sweep / "runs")
    (sweep / "runs").touch()
    (read,) = read_sweeps(sweep)
    assert [(run.run_id, run.record) for run in read.runs] == [("topk-8-0", None)]


def test_a_sweep_given_twice_counts_once(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "demo", [record_of("topk", 8, metrics_at(8, 0.1, 0.1))])
    assert len(read_sweeps([sweep, sweep])) == 1


def test_a_history_is_the_one_of_its_record(tmp_path: Path) -> None:
    rows = [{"step": 1, "loss": 2.0}]
    checksum = write_json_lines(tmp_path / "history.jsonl", rows)
    record_of("topk", 8, {}, history_checksum=checksum).write(tmp_path / "record.json")
    assert read_history(tmp_path / "history.jsonl") == rows
    (tmp_path / "history.jsonl").write_text('{"step": 1, "loss": 3.0}\n')
    with pytest.raises(DamagedFileError, match=r"history.jsonl' is damaged: ValueError: its checksum does not match"):
        read_history(tmp_path / "history.jsonl")


def definition(text: str) -> Definition:
    return Definition(Path("definition.yaml"), text, ())


def test_every_launch_s_definition_is_read_once(tmp_path: Path) -> None:
    launches = [{"definition": f"definitions/{number}.yaml"} for number in (1, 1, 3)]
    sweep = write_sweep(tmp_path / "demo", [], launches=launches)
    for number in (1, 3):
        write_text(sweep / "definitions" / f"{number}.yaml", f"name: {number}\nplugins: [common, ./{number}.py]\n")
    (read,) = read_sweeps(sweep)
    assert [(kept.file.name, kept.content["name"], kept.launches) for kept in read.definitions] == [
        ("1.yaml", 1, (1, 2)),
        ("3.yaml", 3, (3,)),
    ]
    assert read.plugins == ["common", "./1.py", "./3.py"]
    assert read.damages == ()


def test_earlier_results_have_one_definition(tmp_path: Path) -> None:
    for number, launches in enumerate(([], [{"started_at": "2026"}], [{"definition": None}], [{"definition": "../../secret.yaml"}])):
        (read,) = read_sweeps(write_sweep(tmp_path / str(number), [], launches=launches))
        assert [(kept.file.name, kept.launches) for kept in read.definitions] == [("definition.yaml", ())]
        assert (read.plugins, read.damages) == ([], ())


def test_a_definition_that_is_none_is_left_out_and_named(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "demo", [record_of("topk", 8, metrics_at(8, 0.1, 0.1))])
    (sweep / "definition.yaml").write_bytes(b"name: \xff\n")
    (read,) = read_sweeps(sweep)
    assert read.definitions == ()
    assert "definition.yaml' is damaged" in read.damages[0]
    assert "can't decode byte 0xff" in read.damages[0]


def test_a_changed_definition_is_damage(tmp_path: Path) -> None:
    checksum = checksum_of(b"name: demo\n")
    sweep = write_sweep(tmp_path / "demo", [], launches=[{"definition": "definitions/1.yaml", "definition_checksum": checksum}])
    for text, file, n_damages in (("name: demo\n", "1.yaml", 0), ("name: Demo\n", "definition.yaml", 1)):
        write_text(sweep / "definitions" / "1.yaml", text)
        (read,) = read_sweeps(sweep)
        assert ([kept.file.name for kept in read.definitions], len(read.damages)) == ([file], n_damages)
    assert "1.yaml' is damaged: ValueError: its checksum does not match its content" in read.damages[0]


def test_rates_are_those_of_the_architecture_or_of_all() -> None:
    text = "train: {lr: [1e-3, 4e-3]}\narchitectures:\n  topk: {lr: {low: 1e-4, high: 0.1, log: true}}\n  gated: {lr: 0.016}\n  standard:\n"
    assert requested_rates([definition(text)]) == {
        "topk": {"low": 1e-4, "high": 0.1, "searched": True},
        "gated": {"low": 0.016, "high": 0.016, "searched": False},
        "standard": {"low": 1e-3, "high": 4e-3, "searched": False},
    }


def test_rates_of_all_launches_are_joined() -> None:
    texts = ["train: {lr: 1e-3}\narchitectures: {topk: {}}\n", "train: {lr: [2e-3, 8e-3]}\narchitectures: {topk: {}}\n"]
    assert requested_rates(map(definition, texts)) == {"topk": {"low": 1e-3, "high": 8e-3, "searched": False}}


@pytest.mark.parametrize(
    "text",
    [
        "!!timestamp {}",
        *("", "[", "- a", "architectures: 3", "architectures: {topk: {lr: fast}}", "architectures: {topk: {lr: []}}"),
        *("architectures: {topk: {lr: -1}}", "!!python/object:os.system {}", "train: 3\narchitectures: {topk: {}}", "[" * 5000),
        "architectures: {topk: {lr: {low: 1}}}",
    ],
)
def test_what_cannot_be_understood_asks_for_nothing(text: str) -> None:
    assert requested_rates([definition(text)]) == {}
