"""What is measured beside a run is a row of its own that changes no number about runs."""

import dataclasses
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from fake_results import metrics_at, realistic_records, record_of, target_record, variant_record, write_sweep

from analysis import best, compare, hypervolume, interpolate_at_l0, load_table, pareto_front, words
from analysis.plots import PLOTS
from analysis.report import write_report
from analysis.report.findings import findings_of
from analysis.results import read_sweeps
from analysis.statistics.matched import bands, matched_l0s
from analysis.table import by_comparison, of_runs, over_seeds, variants_as_runs, write_table
from sae_core.records import RunRecord

RUNS = [record for record in realistic_records(seeds=(0, 1)) if record.architecture in ("standard", "topk")]
OWN_PLOTS = {"snapshots_fvu", "snapshots_delta_ce", "forms_fvu", "forms_delta_ce"}


def variants_of(record: RunRecord) -> list[RunRecord]:
    """Two snapshots, and a form that is better than anything else."""
    l0 = record.metrics["l0"]
    assert l0 is not None
    return [
        variant_record(record, "tokens-20480", 3 * l0, 0.9, train_tokens=20_480),
        variant_record(record, "tokens-204800", 2 * l0, 0.5, train_tokens=204_800),
        variant_record(record, "k-8", l0 / 2, 1e-4, sparsity_value=8.0),
    ]


@pytest.fixture(scope="module")
def without(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sweep(tmp_path_factory.mktemp("without") / "demo", RUNS, n_documents=20)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    records = [*RUNS, *(variant for record in RUNS for variant in variants_of(record))]
    return write_sweep(tmp_path_factory.mktemp("with") / "demo", records, n_documents=20)


@pytest.fixture(scope="module")
def table(sweep: Path) -> pd.DataFrame:
    return load_table(sweep)


@pytest.fixture(scope="module")
def runs(without: Path) -> pd.DataFrame:
    return load_table(without)


def test_a_row_each(table):
    assert table["status"].value_counts().to_dict() == {"finished": 16, "snapshot": 32, "form": 16}
    snapshot = table[table["run_id"] == "topk-16-1@tokens-20480"].iloc[0]
    assert (snapshot["variant_of"], snapshot["train_tokens"], snapshot["seed"]) == ("topk-16-1", 20_480, 1)
    (form,) = table[table["run_id"] == "topk-16-0@k-8"].to_dict("records")
    assert (form["sparsity_value"], form["sparsity_parameter"]) == (8, "k")
    of_run = table[(table["variant_of"] == "topk-16-0") & (table["status"] == "snapshot")]
    assert list(of_run["train_tokens"]) == [20_480, 204_800]


def test_a_form_has_the_sparsity_that_is_its_own(tmp_path):
    record = target_record("topk", 32, metrics_at(32, 0.1, 0.2))
    table = load_table(write_sweep(tmp_path / "demo", [record, variant_record(record, "k-8", 8.0, 0.3, sparsity_value=8.0)]))
    run, form = table.to_dict("records")
    assert (run["target_l0"], run["l0_error"], form["variant_of"]) == (32, 0, run["run_id"])
    assert pd.isna(form["target_l0"]) and pd.isna(form["l0_error"]) and words.setting(form) == "k=8"


def test_repeats_of_a_variant_have_one_setting(table):
    settings = table.groupby("setting_hash")
    assert set(settings["status"].nunique()) == {1}
    assert set(settings.size()) == {2}
    assert settings.ngroups == 4 * 8


def test_the_rows_of_runs_are_those_without_variants(table, runs):
    assert "variant_of" not in runs
    pd.testing.assert_frame_equal(of_runs(table).drop(columns="variant_of").reset_index(drop=True), runs)


@pytest.mark.slow
def test_no_number_about_runs_changes(table, runs):
    assert compare(table) == compare(runs)
    found, expected = (dataclasses.replace(best(rows, 16), directory=None, loading="") for rows in (table, runs))
    assert found == expected
    assert hypervolume(table) == hypervolume(runs)
    front = pareto_front(table)
    assert set(table.loc[front, "run_id"]) == set(runs.loc[pareto_front(runs), "run_id"])
    pd.testing.assert_frame_equal(interpolate_at_l0(table, [16, 32]), interpolate_at_l0(runs, [16, 32]))
    assert over_seeds(table)["run_ids"].tolist() == over_seeds(runs)["run_ids"].tolist()
    assert matched_l0s(table) == matched_l0s(runs)
    assert bands(table, "fvu") == bands(runs, "fvu")
    assert findings_of(table) == findings_of(runs)
    assert by_comparison(table).keys() == by_comparison(runs).keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(PLOTS) - OWN_PLOTS))
def test_no_other_plot_changes(name, table, runs, sweep):
    histories = {run.run_id: run.paths.history for run in read_sweeps(sweep)[0].runs}
    assert PLOTS[name].info(table, histories) == PLOTS[name].info(runs, histories)


@pytest.mark.slow
def test_the_report_differs_in_its_own_plots_alone(sweep, without, tmp_path):
    def markdown(results: Path) -> str:
        return (write_report(results, tmp_path / results.parent.name).parent / "report.md").read_text()

    has, lacks = markdown(sweep).splitlines(), markdown(without).splitlines()
    assert set(lacks) <= set(has)
    further = "\n".join(line for line in has if line not in lacks)
    assert all(PLOTS[name].title in further for name in OWN_PLOTS)
    assert "tokens-" not in further and "| " not in further


def test_a_written_table_has_them(table, tmp_path):
    write_table(table, tmp_path)
    read = pd.read_csv(tmp_path / "table.csv")
    assert read["status"].value_counts().to_dict() == table["status"].value_counts().to_dict()
    assert read["variant_of"].notna().sum() == 48


@pytest.mark.slow
def test_forms_can_be_compared_as_separate_saes(table):
    rows = variants_as_runs(table, "form")
    assert len(rows) == 32 and set(rows["status"]) == {"finished"}
    assert min(rows["fvu"]) == 1e-4
    compared = compare(rows)
    assert compared.pairs


def test_paths(table):
    info = PLOTS["snapshots_fvu"].info(table, {})
    assert len(info.paths) == 8 and info.n_left_out == 0
    path = next(path for path in info.paths if (path.architecture, path.setting) == ("topk", "k=16"))
    assert [stop.tokens for stop in path.stops] == [20_480, 204_800, 999_424]
    assert [stop.y for stop in path.stops[:2]] == [0.9, 0.5]
    assert [stop.run_id for stop in path.stops] == ["", "", "topk-16-0"]
    ends = table[table["run_id"].isin(["topk-16-0", "topk-16-1"])]["fvu"]
    assert path.stops[-1].y == pytest.approx(ends.mean()) and path.stops[-1].y_range == (ends.min(), ends.max())


def test_many_paths_are_thinned(tmp_path):
    records: list[RunRecord] = []
    for k in range(1, 31):
        run = record_of("topk", k, {"l0": float(k), "fvu": 1 / (k + 2)})
        records += [run, variant_record(run, "tokens-2048", k, 0.9)]
    info = PLOTS["snapshots_fvu"].info(load_table(write_sweep(tmp_path / "many", records)), {})
    assert len(info.paths) == 6 and "24 more settings" in PLOTS["snapshots_fvu"].note(info)


def test_forms_of_an_sae_beside_fronts_of_separate_ones(tmp_path):
    hierarchical = record_of("hierarchical_topk", 32, {"l0": 32.0, "fvu": 0.05})
    records = [
        hierarchical,
        *(variant_record(hierarchical, f"k-{k}", k, 1 / k) for k in (4, 8, 16)),
        *(record_of("topk", k, {"l0": float(k), "fvu": 0.9 / k}) for k in (8, 32)),
    ]
    info = PLOTS["forms_fvu"].info(load_table(write_sweep(tmp_path / "forms", records)), {})
    (path,) = info.paths
    assert [stop.x for stop in path.stops] == [4, 8, 16, 32]
    assert list(info.fronts.series) == ["topk"]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [({"variant_kind": None}, "its `variant_kind` is None"), ({"run_id": "topk-16-0"}, "it is the record of 'topk-16-0'")],
)
def test_what_is_no_record_of_a_variant_is_reported(tmp_path, changes: dict[str, Any], problem):
    run = record_of("topk", 16, {"l0": 16.0, "fvu": 0.1})
    sweep = write_sweep(tmp_path / "demo", [run])
    file = sweep / "runs" / run.run_id / "variants" / "k-8" / "record.json"
    dataclasses.replace(variant_record(run, "k-8", 8, 0.2), **changes).write(file)
    (read,) = read_sweeps(sweep)
    assert problem in read.damages[0]
    assert list(load_table(sweep)["run_id"]) == [run.run_id]


def test_on_two_texts_a_variant_stays_with_its_run(tmp_path):
    run = record_of("topk", 16, {"l0": 16.0, "fvu": 0.1})
    directories = []
    for text in ("aaaaaaaaaaaa", "bbbbbbbbbbbb"):
        own = dataclasses.replace(run, eval_hash=text)
        directories.append(write_sweep(tmp_path / text, [own, variant_record(own, "k-8", 8, 0.2)]))
    table = load_table(directories)
    variants = table[table["status"] == "form"]
    assert set(variants["run_id"]) == {f"{run.run_id}@k-8@{text}" for text in ("aaaaaaaaaaaa", "bbbbbbbbbbbb")}
    assert set(variants["variant_of"]) <= set(table["run_id"])
