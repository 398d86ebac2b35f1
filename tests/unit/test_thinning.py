"""What of a large sweep is drawn and listed."""

from pathlib import Path

import pandas as pd
import pytest
from fake_results import failed, metrics_at, record_of, write_sweep

from analysis.plots.l0_fvu import L0Fvu
from analysis.plots.training_curves import TrainingCurves
from analysis.report import write_report
from analysis.report_rows import run_rows, unfinished_rows
from analysis.table import load_table
from analysis.thinning import evenly, thinned


@pytest.mark.parametrize(("number", "most", "places"), [(0, 3, []), (2, 3, [0, 1]), (3, 3, [0, 1, 2]), (9, 3, [0, 4, 8]), (5, 1, [0])])
def test_evenly(number: int, most: int, places: list[int]) -> None:
    assert evenly(number, most).tolist() == places


def test_the_front_is_kept_and_the_others_evenly_of_each_architecture() -> None:
    settings = pd.DataFrame({"architecture": ["a"] * 7 + ["b"] * 2, "l0": range(9), "on_front": [False] * 3 + [True] + [False] * 5})
    assert thinned(settings, most=2)["l0"].tolist() == [0, 3, 6, 7, 8]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One point on the front, and 60 settings behind it."""
    behind = [record_of("topk", k, metrics_at(8 + k, 0.5, 0.5), run_id=f"topk-{k}") for k in range(1, 61)]
    lost = [failed("gated", coefficient) for coefficient in range(1, 6)]
    return write_sweep(tmp_path_factory.mktemp("results") / "demo", [record_of("topk", 99, metrics_at(8, 0.1, 0.1)), *behind, *lost])


def test_plots_say_what_they_leave_out(sweep: Path) -> None:
    table = load_table(sweep)
    info = L0Fvu.info(table, {})
    assert info is not None
    assert (len(info.series["topk"]), info.n_left_out) == (41, 20)
    assert L0Fvu.note(info) == "20 more settings behind the fronts are not drawn; those that are were chosen evenly over L0."
    assert info.not_drawn == ()
    curves = TrainingCurves.info(table, {run_id: sweep / "runs" / run_id / "history.jsonl" for run_id in table["run_id"]})
    assert curves is not None
    assert (len(curves.curves["topk"]), curves.n_left_out) == (24, 61 - 24)
    assert TrainingCurves.note(curves) == "At most 24 curves per architecture are drawn, chosen evenly over its settings; 37 are not."


def test_few_are_all_drawn_and_nothing_is_said(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "demo", [record_of("topk", k, metrics_at(k, 0.1, 0.1)) for k in (8, 16)])
    info = L0Fvu.info(load_table(sweep), {})
    assert L0Fvu.note(info) == ""


def test_damaged_histories_are_left_out_and_named(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "demo", [record_of("topk", k, metrics_at(k, 0.1, 0.1)) for k in (8, 16)])
    (sweep / "runs" / "topk-8-0" / "history.jsonl").write_text("[1]\n")
    table = load_table(sweep)
    info = TrainingCurves.info(table, {run_id: sweep / "runs" / run_id / "history.jsonl" for run_id in table["run_id"]})
    assert info is not None
    assert [curve.run_id for curve in info.curves["topk"]] == ["topk-16-0"]
    assert TrainingCurves.note(info) == "history.jsonl of topk-8-0 is damaged and its curve is left out."


def test_the_tables_of_the_report_are_bounded(sweep: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("analysis.report_rows.MOST_ROWS", 10)
    monkeypatch.setattr("analysis.report_rows.MOST_UNFINISHED", 3)
    table = load_table(sweep)
    rows, n_left_out = run_rows(table[table["status"] == "finished"], ["l0"], {"topk-3"})
    assert [row.run_id for row in rows["topk"]] == ["topk-99-0", "topk-3"]
    assert n_left_out == 59
    listed, n_more = unfinished_rows(table)
    assert (len(listed), n_more) == (3, 2)
    monkeypatch.setattr("analysis.report.draw_plots", lambda *_: [])
    page = write_report(sweep, tmp_path)
    for text in (page.read_text(), page.with_name("report.md").read_text()):
        assert "60 more are in the table." in text
        assert "2 more are in the table." in text
