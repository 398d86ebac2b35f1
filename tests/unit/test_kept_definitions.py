"""Definitions that launches kept, and the learning rates that they ask for."""

from pathlib import Path

import pytest
from fake_results import metrics_at, record_of, write_sweep

from analysis.definitions import AskedRates, Definition, asked_rates, read_definitions
from analysis.report import write_report
from analysis.results import read_sweeps
from sae_core.files import checksum_of, write_text


def definition(text: str) -> Definition:
    return Definition("definition.yaml", text, ())


def test_every_launch_s_definition_is_read_once(tmp_path: Path) -> None:
    (tmp_path / "definitions").mkdir()
    for number in (1, 3):
        (tmp_path / "definitions" / f"{number}.yaml").write_text(f"name: {number}\n")
    (tmp_path / "definition.yaml").write_text("name: 3\n")
    launches = [{"definition": f"definitions/{number}.yaml"} for number in (1, 1, 3)]
    kept, damages = read_definitions(tmp_path, launches)
    assert kept == [Definition("definitions/1.yaml", "name: 1\n", (1, 2)), Definition("definitions/3.yaml", "name: 3\n", (3,))]
    assert damages == []


def test_earlier_results_have_one_definition(tmp_path: Path) -> None:
    (tmp_path / "definition.yaml").write_text("name: a\n")
    for launches in ([], [{"started_at": "2026"}], [{"definition": None}], [{"definition": "../../secret.yaml"}], [{"definition": ".."}]):
        assert read_definitions(tmp_path, launches) == ([Definition("definition.yaml", "name: a\n", ())], [])
    assert read_definitions(tmp_path / "nowhere", []) == ([], [])


@pytest.mark.parametrize(
    ("content", "reason"), [(b"name: \xff\n", "can't decode byte 0xff"), (b"a" * (2**22 + 1), "it has 4,194,305 bytes")]
)
def test_a_definition_that_is_none_is_left_out_and_named(tmp_path: Path, content: bytes, reason: str) -> None:
    sweep = write_sweep(tmp_path / "demo", [record_of("topk", 8, metrics_at(8, 0.1, 0.1))])
    (sweep / "definition.yaml").write_bytes(content)
    (read,) = read_sweeps(sweep)
    assert read.definitions == ()
    assert "definition.yaml' is damaged" in read.damages[0]
    assert reason in read.damages[0]


def test_rates_are_those_of_the_architecture_or_of_all() -> None:
    text = "train: {lr: [1e-3, 4e-3]}\narchitectures:\n  topk: {lr: {low: 1e-4, high: 0.1, log: true}}\n  gated: {lr: 0.016}\n  standard:\n"
    assert asked_rates([definition(text)]) == {
        "topk": AskedRates(1e-4, 0.1, searched=True),
        "gated": AskedRates(0.016, 0.016, searched=False),
        "standard": AskedRates(1e-3, 4e-3, searched=False),
    }


def test_rates_of_all_launches_are_joined() -> None:
    texts = ["train: {lr: 1e-3}\narchitectures: {topk: {}}\n", "train: {lr: [2e-3, 8e-3]}\narchitectures: {topk: {}}\n"]
    assert asked_rates(map(definition, texts)) == {"topk": AskedRates(1e-3, 8e-3, searched=False)}


@pytest.mark.parametrize(
    "text",
    [
        *("", "[", "- a", "architectures: 3", "architectures: {topk: {lr: fast}}", "architectures: {topk: {lr: []}}"),
        *("architectures: {topk: {lr: -1}}", "!!python/object:os.system {}", "train: 3\narchitectures: {topk: {}}", "[" * 5000),
        "architectures: {topk: {lr: {low: 1}}}",
    ],
)
def test_what_cannot_be_understood_asks_for_nothing(text: str) -> None:
    assert asked_rates([definition(text)]) == {}


def test_the_report_shows_each_definition_with_its_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("analysis.report.draw_plots", lambda *_: [])
    records = [record_of("topk", k, metrics_at(k, 1 / k, 0.1), launch=launch) for k, launch in ((8, 1), (16, 3), (32, 3))]
    launches = [{"definition": f"definitions/{number}.yaml"} for number in (1, 1, 3)]
    sweep = write_sweep(tmp_path / "demo", records, launches=launches)
    (sweep / "definitions").mkdir()
    for number in (1, 3):
        (sweep / "definitions" / f"{number}.yaml").write_text(f"# number {number}\n")
    text = write_report(sweep, tmp_path / "out").with_name("report.md").read_text()
    assert "## Definition of demo, launches 1, 2: made 1 run\n" in text
    assert "## Definition of demo, launch 3: made 2 runs\n" in text
    assert text.index("# number 1") < text.index("# number 3")


def test_a_changed_definition_is_damage(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "demo", [record_of("topk", 8, metrics_at(8, 0.1, 0.1))])
    kept = sweep / "definitions" / "1.yaml"
    write_text(kept, "name: demo\nsae: {d_sae: 1024}\n")
    launches = [{"definition": "definitions/1.yaml", "definition_checksum": checksum_of(kept.read_bytes())}]
    assert [one.text for one in read_definitions(sweep, launches)[0]] == ["name: demo\nsae: {d_sae: 1024}\n"]
    kept.write_text(kept.read_text().replace("1024", "1025"))
    shown, (damage,) = read_definitions(sweep, launches)
    assert all(one.file == "definition.yaml" for one in shown)
    assert "1.yaml' is damaged: ValueError: its checksum does not match its content" in damage
