"""Records -> table."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fake_results import config_of, failed, metrics_at, pruned, record_of, target_record, write_sweep

from analysis.columns import COLUMNS
from analysis.documents import read_documents
from analysis.table import by_comparison, load_table, metric_specs, orientation, over_seeds, specs_of, write_table
from sae_core.errors import ConfigError
from sae_core.records import MetricSpec


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Two finished runs, one failed, one missing."""
    records = [
        record_of("topk", 16, metrics_at(16, 0.08, 0.1)),
        record_of("topk", 8, metrics_at(8, 0.15, 0.2)),
        failed("gated", 3),
    ]
    return write_sweep(tmp_path / "demo", records, missing=[("batchtopk", 8, 0)])


def test_columns_in_the_promised_order(sweep: Path) -> None:
    columns = list(load_table(sweep).columns)
    assert tuple(columns[: len(COLUMNS)]) == COLUMNS
    assert columns[len(COLUMNS) :] == [
        *("activations_hash", "eval_hash", "version_commit", "version_python", "version_ray", "version_sae_sweep", "version_torch"),
        *("hardware", "finished_at", "error", "sweep", "variant", "setting_hash", "comparison_hash", "launch", "eval_hardware"),
    ]


def test_one_row_per_run_in_a_fixed_order(sweep: Path) -> None:
    table = load_table(sweep)
    assert list(table["run_id"]) == ["batchtopk-8-0", "gated-3-0", "topk-8-0", "topk-16-0"]
    assert list(table["status"]) == ["missing", "failed", "finished", "finished"]
    finished = table.iloc[3]
    assert (finished["fvu"], finished["lr"], finished["d_sae"], finished["d_in"], finished["sweep"]) == (0.08, 4e-3, 1024, 128, "demo")


def test_unfinished_runs_have_nan_metrics_and_a_reason(sweep: Path) -> None:
    table = load_table(sweep).set_index("run_id")
    assert np.isnan(table.loc["gated-3-0", "fvu"])
    assert np.isnan(table.loc["batchtopk-8-0", "l0"])
    assert table.loc["gated-3-0", "error"] == "DivergenceError: loss must be finite, but got loss=nan at step 212."
    assert table.loc["batchtopk-8-0", "lr"] == 4e-3  # from sweep.json
    assert table["error"].isna().sum() == 3


def test_further_metrics_get_columns(tmp_path: Path) -> None:
    record = record_of("jumprelu", 0.1, {**metrics_at(31, 0.05, 0.07), "absorption": 0.2})
    table = load_table(write_sweep(tmp_path / "demo", [record]))
    assert list(table.columns[len(COLUMNS) : len(COLUMNS) + 2]) == ["absorption", "activations_hash"]
    assert table["absorption"].item() == 0.2


def test_target_l0_its_error_and_the_coefficient_found(tmp_path: Path) -> None:
    records = [target_record("standard", 32, metrics_at(l0, 0.1, 0.2), seed) for seed, l0 in enumerate((36.0, 28.0))]
    given = record_of("standard", 0.5, metrics_at(30, 0.1, 0.2))
    table = load_table(write_sweep(tmp_path / "demo", [*records, given], missing=[("standard", 1.0, 0)])).set_index("run_id")
    runs = table.loc[["standard-target32-0", "standard-target32-1"]]
    assert list(runs["target_l0"]) == [32, 32]
    assert list(runs["l0_error"]) == [0.125, -0.125]  # 36 / 32 - 1, 28 / 32 - 1
    assert list(runs["sparsity_value"]) == pytest.approx([1.1, 1.11])  # found, not the 1.0 it started from
    assert table.loc[["standard-0.5-0", "standard-1-0"], ["target_l0", "l0_error"]].isna().all(axis=None)


def test_seeds_of_a_target_are_one_setting_and_stay_together(tmp_path: Path) -> None:
    records = [target_record("standard", target, metrics_at(target, 0.1, 0.2), seed) for seed in (0, 1) for target in (64, 16, 32)]
    table = load_table(write_sweep(tmp_path / "demo", records))
    assert list(zip(table["target_l0"], table["seed"], strict=True)) == [(16, 0), (16, 1), (32, 0), (32, 1), (64, 0), (64, 1)]
    settings = over_seeds(table)
    assert list(settings["target_l0"]) == [16, 32, 64]
    assert list(settings["n_seeds"]) == [2, 2, 2]
    assert settings["sparsity_value"].iloc[0] == pytest.approx((2.2 + 2.22) / 2)  # each seed's own


def test_pruned_runs_are_not_finished_and_have_no_metrics(tmp_path: Path) -> None:
    table = load_table(write_sweep(tmp_path / "demo", [pruned("topk", 16), record_of("topk", 8, metrics_at(8, 0.1, 0.2))]))
    assert list(table["status"]) == ["finished", "pruned"]
    assert np.isnan(table.loc[1, "fvu"])
    assert list(over_seeds(table)["l0"]) == [8]
    assert table["comparison_hash"].nunique() == 1


def test_comparisons_are_told_narrow_before_wide(tmp_path: Path) -> None:
    wide = config_of("batchtopk", 16, 0)
    wide["sae"]["d_sae"] = 4096
    records = [record_of("topk", 16, metrics_at(16, 0.1, 0.2)), record_of("batchtopk", 16, metrics_at(16, 0.1, 0.2), config=wide)]
    table = load_table(write_sweep(tmp_path / "demo", records))
    assert list(table["d_sae"]) == [4096, 1024]
    assert [runs["d_sae"].item() for runs in by_comparison(table).values()] == [1024, 4096]


def test_a_run_of_two_sweeps_is_one_row_and_the_finished_one(tmp_path: Path) -> None:
    early = write_sweep(tmp_path / "early", [failed("topk", 16)])
    late = write_sweep(tmp_path / "late", [record_of("topk", 16, metrics_at(16, 0.08, 0.1)), record_of("topk", 8, metrics_at(8, 0.1, 0.2))])
    table = load_table([early, late])
    assert list(zip(table["run_id"], table["status"], table["sweep"], strict=True)) == [
        ("topk-8-0", "finished", "late"),
        ("topk-16-0", "finished", "late"),
    ]


def test_a_run_measured_on_two_texts_is_two_rows(tmp_path: Path) -> None:
    records = [record_of("topk", k, metrics_at(k, 0.1, 0.1)) for k in (8, 16)]
    elsewhere = dataclasses.replace(records[0], eval_hash="other", metrics=metrics_at(8, 0.2, 0.1))
    sweeps = [write_sweep(tmp_path / name, own, n_documents=12) for name, own in (("demo", records), ("again", [elsewhere]))]
    table = load_table(sweeps)
    told = {f"topk-8-0@{records[0].eval_hash}": 0.1, "topk-8-0@other": 0.2, "topk-16-0": 0.1}
    assert dict(zip(table["run_id"], table["fvu"], strict=True)) == told
    assert {Path(path).parent.parent.name for path in table.attrs["directories"].values()} == {"demo", "again"}
    assert table["comparison_hash"].nunique() == 2 and len(over_seeds(table)) == 3
    assert read_documents(table[table["eval_hash"] == "other"]) is not None
    assert load_table([sweeps[0], sweeps[0]])["run_id"].tolist() == ["topk-8-0", "topk-16-0"]


def test_comparison_and_setting_hashes(tmp_path: Path) -> None:
    wide = config_of("topk", 16, 0)
    wide["sae"]["d_sae"] = 4096
    records = [
        record_of("topk", 16, metrics_at(16, 0.08, 0.1), seed=0),
        record_of("topk", 16, metrics_at(16, 0.09, 0.1), seed=1),
        record_of("topk", 32, metrics_at(32, 0.05, 0.1), seed=0),
        record_of("topk", 16, metrics_at(16, 0.06, 0.1), run_id="wide", config=wide),
        failed("topk", 8),
    ]
    table = load_table(write_sweep(tmp_path / "demo", records)).set_index("run_id")
    setting, comparison = table["setting_hash"], table["comparison_hash"]
    assert setting["topk-16-0"] == setting["topk-16-1"]
    assert setting["topk-16-0"] != setting["topk-32-0"]
    assert setting["topk-16-0"] != setting["wide"]
    assert comparison["topk-16-0"] == comparison["topk-32-0"] == comparison["topk-8-0"]  # the failed run had the same text
    assert comparison["topk-16-0"] != comparison["wide"]


def test_over_seeds_takes_means_of_finished_runs(tmp_path: Path) -> None:
    records = [
        record_of("topk", 16, metrics_at(16, 0.08, 0.1), seed=0),
        record_of("topk", 16, metrics_at(18, 0.10, 0.3), seed=1),
        failed("topk", 16, seed=2),
    ]
    (row,) = over_seeds(load_table(write_sweep(tmp_path / "demo", records))).to_dict("records")
    assert (row["l0"], row["n_seeds"], row["run_ids"]) == (17.0, 2, ("topk-16-0", "topk-16-1"))
    assert row["fvu"] == pytest.approx(0.09)  # (0.08 + 0.10) / 2


def test_over_seeds_of_no_finished_run_is_empty(tmp_path: Path) -> None:
    assert over_seeds(load_table(write_sweep(tmp_path / "demo", [failed("topk", 16)]))).empty


def test_specs_travel_with_the_table(sweep: Path) -> None:
    table = load_table(sweep)
    assert specs_of(table)["fvu"] == MetricSpec("fvu", "Fraction of variance unexplained", "", "min")
    assert specs_of(table[table["l0"] > 8]) == metric_specs(sweep)
    assert specs_of(pd.DataFrame({"fvu": [0.1]})) == {}


def test_orientation_flips_what_is_maximised(sweep: Path) -> None:
    table = load_table(sweep)
    assert orientation(table, "fvu") == 1
    assert orientation(table, "ce_loss_recovered") == -1
    assert orientation(pd.DataFrame(), "anything", "max") == -1


def test_orientation_is_never_guessed(sweep: Path) -> None:
    with pytest.raises(ConfigError, match=r"a metric to compare by must be one of \['ce_loss.*'fvu', .* but got 'reconstruction_bias'"):
        orientation(load_table(sweep), "reconstruction_bias")
    with pytest.raises(ConfigError, match=r"but got None for column 'fvu'"):
        orientation(pd.DataFrame({"fvu": [0.1]}), "fvu")


def test_records_that_disagree_about_a_direction(tmp_path: Path) -> None:
    one = record_of("topk", 8, metrics_at(8, 0.1, 0.2))
    flipped = [dataclasses.replace(spec, direction="max") if spec.name == "fvu" else spec for spec in one.metric_specs]
    two = dataclasses.replace(one, run_id="topk-other", metric_specs=flipped)
    with pytest.raises(ConfigError, match=r"but got 'min' and 'max' for 'fvu' \(run topk-other\)"):
        metric_specs(write_sweep(tmp_path / "demo", [one, two]))


def test_a_sweep_without_any_run(tmp_path: Path) -> None:
    (tmp_path / "demo" / "runs").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"at least one run, but got \['.*demo'\]"):
        load_table(tmp_path / "demo")


def test_written_tables_read_back(sweep: Path) -> None:
    table = load_table(sweep)
    write_table(table, sweep)
    parquet = pd.read_parquet(sweep / "table.parquet")
    pd.testing.assert_frame_equal(parquet, table)
    assert specs_of(parquet) == specs_of(table)
    lines = (sweep / "table.csv").read_text().splitlines()
    assert lines[0].startswith("run_id,architecture,status,sparsity_parameter,sparsity_value,seed,lr,d_in,d_sae,train_tokens,")
    assert lines[2].startswith("gated-3-0,gated,failed,l1_coefficient,3.0,0,0.004,128,1024,,,,,")  # missing is empty
    assert "nan" not in "".join(lines).lower().replace("loss=nan", "")
    assert sorted(file.name for file in sweep.glob("*table*")) == ["table.csv", "table.parquet"]  # no temporary file is left


def test_writing_twice_gives_the_same_bytes(sweep: Path) -> None:
    write_table(load_table(sweep), sweep)
    first = (sweep / "table.csv").read_bytes(), (sweep / "table.parquet").read_bytes()
    write_table(load_table(sweep), sweep)
    assert first == ((sweep / "table.csv").read_bytes(), (sweep / "table.parquet").read_bytes())
