"""The explorer of the report: its data, and what a browser makes of it."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from browser import CHROMIUM, act
from fake_results import config_of, failed, metrics_at, realistic_records, record_of, write_sweep

from analysis.report import write_report
from analysis.report.explorer import explorer_data, script
from analysis.statistics.matched import of_runs, settings_of
from analysis.table import load_table
from analysis.words import titles

pytestmark = pytest.mark.slow
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
EVIL = "</script><script>document.title='broken'</script><!--"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of six architectures with three seeds, a failed run, and an architecture whose name wants out of the page."""
    config = config_of(EVIL, 16, 0)
    records = [
        *realistic_records(seeds=(0, 1, 2)),
        failed("topk", 128),
        record_of(EVIL, 16, metrics_at(16, 0.3, 0.4), config=config, run_id="evil"),
    ]
    sweep = write_sweep(tmp_path_factory.mktemp("results") / "demo", records, n_documents=20)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("analysis.report.content.draw_plots", lambda *_, **__: [])
        return write_report(sweep, tmp_path_factory.mktemp("report"))


def data_of(sweep: Path) -> dict[str, Any]:
    table = load_table(sweep)
    return explorer_data(table, titles(table), {"l0": "L0", "fvu": "FVU", "kl": "KL"})


def column(data: dict[str, Any], name: str) -> list[Any]:
    """Values of a column, row by row."""
    stored = data["columns"][name]
    if "levels" not in stored:
        return stored["values"]
    return [None if index is None else stored["levels"][index] for index in stored["index"]]


def test_columns_are_those_of_the_table(tmp_path: Path) -> None:
    records = [*realistic_records(), failed("topk", 128)]
    sweep = write_sweep(tmp_path / "demo", records)
    table, data = load_table(sweep), data_of(sweep)
    assert column(data, "run_id") == table["run_id"].tolist()
    assert column(data, "architecture") == table["architecture"].tolist()
    for name in ("l0", "fvu", "kl", "delta_ce", "seed"):
        expected = [None if value != value else value for value in table[name].astype(float)]
        assert column(data, name) == pytest.approx(expected, rel=1e-5)
    assert data["columns"]["fvu"]["better"] == 1
    assert data["columns"]["explained_variance"]["better"] == -1
    assert [data["columns"][name]["better"] for name in ("train_flops", "seed")] == [1, 0]
    assert data["same"]["model"] == "demo"
    assert next(iter(data["facets"])) == "architecture"
    assert data["facets"]["status"] == ["finished", "failed"]
    assert not {"activations_hash", "error"} & {*data["columns"], *data["same"]}


def test_intervals_are_those_of_the_statistics(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "demo", [one for one in realistic_records(seeds=(0, 1)) if one.architecture == "topk"], n_documents=20)
    table, data = load_table(sweep), data_of(sweep)
    expected = settings_of(table, "fvu") | of_runs(table, "fvu")
    assert set(data["intervals"]["fvu"]) == set(expected)
    for key, (low, high, n_runs) in data["intervals"]["fvu"].items():
        assert (low, high) == pytest.approx((expected[key].low, expected[key].high), rel=1e-5)
        assert n_runs == (2 if key in set(table["setting_hash"]) else 1)
    band = data["bands"]["fvu"][""]["topk"]
    assert band["n_runs"] == 8
    assert len(band["l0"]) == len(band["low"]) == len(band["high"])
    assert "seeds and held-out documents" in data["covers"]["several"]


def test_results_without_sums_per_document_have_no_intervals(tmp_path: Path) -> None:
    data = data_of(write_sweep(tmp_path / "demo", realistic_records()[:8]))
    assert data["intervals"] == {"fvu": {}, "delta_ce": {}}
    assert data["bands"] == {"fvu": {"": {}}, "delta_ce": {"": {}}}


def test_the_block_cannot_be_left() -> None:
    written = script({"name": EVIL, "sign": "<!--"})
    assert "<" not in written
    assert json.loads(written) == {"name": EVIL, "sign": "<!--"}


def test_texts_stay_inside(page: Path) -> None:
    text = page.read_text()
    assert "document.title=" not in re.sub(r'<script type="application/json"[^>]*>[^<]*</script>|&lt;[^<]*', "", text)


@needs_chromium
def test_a_reader_changes_axes_filters_pins_and_sorts(page: Path) -> None:
    seen = act(
        page,
        """
        const first = $("plot").getAttribute("aria-label");
        choose("y", "kl");
        choose("x", "seed");
        choose("x", "l0");
        choose("by", "run");
        const runs = $("plot").getAttribute("aria-label");
        const box = all("#filters .legend input")[0];
        box.click();
        const filtered = [$("plot").getAttribute("aria-label"), $("found").textContent];
        box.click();
        choose("by", "setting");
        for (const name of ["ArrowRight", "Enter", "ArrowDown", "Enter"]) key("plot", name);
        const pinned = all("#compare thead th").length, csv = $("save-csv").textContent, told = $("said").textContent;
        choose("y", "fvu");
        key("plot", "ArrowRight");
        const tip = $("tip").innerText;
        all("#compare button")[0].click();
        const left = all("#compare thead th").length;
        $("by-fvu").click();
        const places = all("#runs-head th").map((it) => it.innerText.replace(/ .*/, ""));
        const cells = all(`#runs-body tr td:nth-child(${places.indexOf("FVU") + 1})`).map((it) => it.innerText);
        const fvu = cells.filter((it) => it !== "–").map(Number);
        $("search").value = "gated 1";
        $("search").dispatchEvent(new Event("input"));
        const found = [$("found").textContent, all("#runs-body tr").length];
        $("log-y").click();
        await pause(0.2);
        const marks = all("#picture path").length;
        return { first, runs, filtered, pinned, csv, told, tip, left, fvu, found, marks, title: document.title };
        """,
    )
    assert seen["first"] == "Fraction of variance unexplained against L0 (active latents per token), 25 settings"
    assert seen["runs"].startswith("KL divergence from the clean model")
    assert seen["runs"].endswith("73 runs")
    assert seen["filtered"][0].endswith("61 runs")
    assert seen["filtered"][1] == "62 runs of 74 runs"
    assert (seen["pinned"], seen["csv"], seen["left"]) == (2, "CSV of 2 pins", 1)
    assert seen["told"].startswith("Gated")
    assert seen["told"].endswith("pinned")
    assert "3 seeds" in seen["tip"]
    assert "95 % interval: seeds and held-out documents" in seen["tip"]
    assert seen["fvu"] == sorted(seen["fvu"])
    assert seen["found"][1] > 0
    assert seen["title"] == "demo: sparse autoencoder sweep"
    assert seen["marks"] > 20


@needs_chromium
def test_search_finds_whole_numbers_and_sort_counts(page: Path) -> None:
    """A number is a setting's, not a digit of another one or of a run id; texts with numbers are in the order of the numbers."""
    seen = act(
        page,
        """
        const search = (it) => { $("search").value = it; $("search").dispatchEvent(new Event("input")); };
        const column = (name) => all("#runs-head th").findIndex((it) => it.innerText.startsWith(name)) + 1;
        const cells = (name) => all(`#runs-body tr td:nth-child(${column(name)})`).map((it) => it.innerText);
        const id = all("#runs-body input").map((it) => it.value).find((it) => it.length > 5);
        const found = ["topk 8", "topk k=8", "8", id].map((it) => { search(it); return [...new Set(cells("Setting"))]; });
        search("topk k=");
        $("by-setting").click();
        return { found, sorted: [...new Set(cells("Setting"))] };
        """,
    )
    topk8, named, number, by_id = seen["found"]
    assert topk8 == named == ["k=8"]
    assert number
    assert all(re.split(r"[ =]", setting)[-1] == "8" for setting in number)
    assert len(by_id) == 1
    ks = [int(setting.partition("=")[2]) for setting in seen["sorted"]]
    assert len(ks) > 3
    assert ks == sorted(ks)


@needs_chromium
def test_what_is_saved_is_whole(page: Path) -> None:
    seen = act(
        page,
        """
        const saved = {};
        const make = URL.createObjectURL;
        URL.createObjectURL = (blob) => { blob.text().then((text) => { saved[blob.type] = text; }); return make(blob); };
        for (const id of ["save-svg", "save-png", "save-csv"]) $(id).click();
        for (let waited = 0; waited < 40 && !saved["image/png"]; waited += 1) await pause(0.1);
        return { svg: saved["image/svg+xml"], csv: saved["text/csv"], png: saved["image/png"]?.length ?? 0 };
        """,
    )
    assert "var(" not in seen["svg"]
    assert "Matryoshka BatchTopK" in seen["svg"]
    assert seen["png"] > 10_000
    lines = seen["csv"].splitlines()
    assert len(lines) == 75
    assert {"run_id", "fvu", "model"} <= set(lines[0].split(","))


@needs_chromium
def test_many_runs_stay_few_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("analysis.report.content.draw_plots", lambda *_, **__: [])
    records = [record_of("topk", 8 + n / 100, metrics_at(8 + n / 100, 1 / (8 + n), 0.1)) for n in range(120)]
    page = write_report(write_sweep(tmp_path / "demo", records), tmp_path / "out")
    count = 'all("#runs-body tr").length'
    seen = act(page, f'const first = {count}; $("more").click(); return [first, {count}, $("found").textContent, $("more").hidden];')
    assert seen == [100, 120, "120 runs of 120 runs", True]


@needs_chromium
def test_without_finished_runs_there_is_no_explorer(tmp_path: Path) -> None:
    page = write_report(write_sweep(tmp_path / "demo", [failed("topk", 8)]), tmp_path / "out")
    assert act(page, 'return [$("explorer").hidden, $("runs").hidden]') == [True, True]


def test_the_script_is_short() -> None:
    lines = (Path(__file__).parents[2] / "analysis" / "report" / "templates" / "explorer.js").read_text().splitlines()
    assert len(lines) < 400
    assert max(map(len, lines)) <= 140
