"""Numbers, settings, repeats and titles in words."""

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from fake_results import config_of, metrics_at, record_of, write_sweep

from analysis import words
from analysis.estimates import Estimate
from analysis.report.summary import frontier_lines, hypervolumes
from analysis.statistics.matched import at_matched_l0
from analysis.table import load_table, over_seeds
from analysis.words import counted_repeats, n_repeats, noun, titles
from sae_core.records import RunRecord


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.07401, "0.0740"), (0.0, "0.0000"), (1.0, "1.000"), (-0.5, "-0.5000"), (12.345, "12.35"), (1234.5, "1234"),
        (0.00001234, "1.23e-05"), (2.5e7, "2.5e+07"), (math.nan, "–"), (None, "–"),
    ],
)  # fmt: skip
def test_number(value: float | None, shown: str) -> None:
    assert words.number(value) == shown


def test_metric() -> None:
    assert words.metric("l0", 15.96) == "16.0"
    assert words.metric("l0_error", 0.0312) == "+3.1 %"
    assert words.metric("l0_error", -0.0312) == "-3.1 %"
    assert words.metric("dead_fraction", 0.0312) == "3.1 %"
    assert words.metric("fvu", 0.0312) == "0.0312"
    assert words.metric("l0", math.nan) == "–"


def test_settings_are_named_by_what_was_asked_for() -> None:
    row = {"target_l0": math.nan, "sparsity_parameter": "l1_coefficient", "sparsity_value": 0.5, "lr": 4e-3, "variant": ""}
    assert words.setting(row) == "l1_coefficient=0.5"
    assert words.setting(row | {"sparsity_parameter": "k", "sparsity_value": 16.0}) == "k=16"
    assert words.setting(row | {"target_l0": 32.0}) == "target L0 32"  # whatever coefficient that took
    assert words.setting(row | {"target_l0": 32.0, "variant": "bandwidth=0.1"}, with_lr=True) == "target L0 32 (lr=0.004, bandwidth=0.1)"


@pytest.mark.parametrize(("value", "shown"), [(0, "0"), (512, "512"), (999_424, "999 k"), (999_900, "1 M"), (2.5e9, "2.5 B")])
def test_count(value: float, shown: str) -> None:
    assert words.count(value) == shown


@pytest.mark.parametrize(("seconds", "shown"), [(12.34, "12.3 s"), (250, "4 min 10 s"), (12_000, "3 h 20 min")])
def test_duration(seconds: float, shown: str) -> None:
    assert words.duration(seconds) == shown


def run(k: float, seed: int, order: int, fvu: float) -> RunRecord:
    config = config_of("topk", k, seed) | {"data_seed": order}
    return record_of("topk", k, metrics_at(k, fvu, 2 * fvu), seed, config, run_id=f"{k}-{seed}-{order}")


@pytest.mark.slow
def test_orders_are_repeats_as_seeds_are(tmp_path: Path) -> None:
    # One lucky order of three, at each of two levels.
    runs = [run(k, 0, order, fvu / k) for k in (8, 32) for order, fvu in enumerate((1.6, 0.8, 2.4))]
    table = load_table(write_sweep(tmp_path / "demo", runs))
    settings = over_seeds(table)
    assert list(settings["n_seeds"]) == [3, 3]
    assert list(settings["fvu"]) == pytest.approx([0.2, 0.05])  # means of 1.6, 0.8 and 2.4 over 8 and over 32
    (value,) = at_matched_l0(table, "fvu", [16])["topk"]
    assert value is not None
    assert (value.value, value.n_seeds) == (pytest.approx((1.6 * 0.8 * 2.4) ** (1 / 3) / 16), 3)
    assert hypervolumes(table, "fvu").pooled.n_seeds == 3
    assert frontier_lines(table)[0] == "Pareto frontier of L0 against FVU: 2 of 2 settings, means over 3 orders of the tokens"
    assert set(table["variant"]) == {""}


@pytest.mark.parametrize(
    ("seeds", "orders", "told", "kind"),
    [
        ([0], [0], "1 seed", "seed"),
        ([0, 1], [0], "2 seeds", "seed"),
        ([0], [0, 1], "2 orders of the tokens", "order"),
        ([0, 1], [0, 1, 2], "6 repeats (2 seeds, 3 orders of the tokens)", "repeat"),
    ],
)
@pytest.mark.slow
def test_repeats_are_told(tmp_path: Path, seeds: list[int], orders: list[int], told: str, kind: str) -> None:
    table = load_table(write_sweep(tmp_path / "demo", [run(8, seed, order, 0.1) for seed in seeds for order in orders]))
    assert (counted_repeats(table), noun(table), n_repeats(table)) == (told, kind, len(seeds) * len(orders))


def test_tables_without_orders_have_seeds_alone(tmp_path: Path) -> None:
    table = load_table(write_sweep(tmp_path / "demo", [run(8, seed, 0, 0.1) for seed in (0, 1)])).drop(columns="data_seed")
    assert (counted_repeats(table), n_repeats(table)) == ("2 seeds", 2)


@pytest.mark.slow
def test_the_usual_order_leaves_the_hash_of_a_setting_as_it_was(tmp_path: Path) -> None:
    reference = Path(__file__).parents[2] / "results" / "reference" / "synthetic"
    table = load_table(reference).set_index("run_id")
    committed = pd.read_csv(reference / "table.csv").set_index("run_id")
    assert dict(table["setting_hash"]) == dict(committed["setting_hash"])
    # Of a run that earlier versions made, too.
    assert table.loc["batchtopk-98245e4b5436", "setting_hash"] == "957031968e8b"


def titled(name: str, eval_hash: str = "e", **changes: Any) -> RunRecord:
    config = config_of("topk", 8, 0)
    for path, value in changes.items():
        section, _, field = path.partition("__")
        (config["activations"] if section in ("model", "data") else config)[section][field] = value
    return record_of("topk", 8, metrics_at(8, 0.1, 0.2), config=config, run_id=name, eval_hash=eval_hash)


def names(tmp_path: Path, *records: RunRecord) -> list[tuple[str, str, str]]:
    table = load_table(write_sweep(tmp_path / "demo", records))
    return sorted((title.full, title.common, title.short) for title in titles(table).values())


def test_one_comparison_is_named_by_what_its_runs_have_in_common(tmp_path: Path) -> None:
    assert names(tmp_path, titled("a")) == [("demo · blocks.2.hook_resid_post · d_sae 1024 · 1 M training tokens", "", "")]


def test_comparisons_are_told_apart_by_what_differs(tmp_path: Path) -> None:
    told = names(tmp_path, titled("a", "e1", model__hook_point="blocks.1.hook_mlp_out"), titled("b", "e2"))
    assert [(common, short) for _, common, short in told] == [
        ("demo · d_sae 1024 · 1 M training tokens", "blocks.1.hook_mlp_out"),
        ("demo · d_sae 1024 · 1 M training tokens", "blocks.2.hook_resid_post"),
    ]


def test_fields_that_no_title_names_are_told_where_they_differ(tmp_path: Path) -> None:
    runs = [titled("a", "e1", model__context_size=64, data__dataset="books"), titled("b", "e2", model__context_size=128)]
    assert [short for *_, short in names(tmp_path, *runs)] == ["context_size 128 · dataset demo", "context_size 64 · dataset books"]


@pytest.mark.slow
def test_the_terminal_says_it_too(tmp_path: Path) -> None:
    table = load_table(write_sweep(tmp_path / "demo", [titled("a", "e1", sae__d_sae=512), titled("b", "e2")]))
    lines = frontier_lines(table)
    assert lines[0] == "All runs: demo · blocks.2.hook_resid_post · 1 M training tokens"
    assert [line for line in lines if line.startswith("Comparison")] == ["Comparison 1 of 2: d_sae 512", "Comparison 2 of 2: d_sae 1024"]


def test_a_table_that_lost_its_configs_still_has_names(tmp_path: Path) -> None:
    table = load_table(write_sweep(tmp_path / "demo", [titled("a", "e1", sae__d_sae=512), titled("b", "e2")]))
    table.attrs.pop("comparisons")
    model = "demo · blocks.2.hook_resid_post"
    assert [title.full for title in titles(table).values()] == [f"{model} · d_sae {n} · 999 k training tokens" for n in (512, 1024)]
    bare = table.drop(columns=["model", "hook_point"]).assign(d_sae=pd.NA, train_tokens=pd.NA)
    assert [title.full for title in titles(bare).values()] == [f"comparison {name}" for name in titles(table)]


def test_intervals_in_words() -> None:
    assert words.interval(None) == "–"
    assert words.interval(Estimate(0.08)) == "0.0800"
    assert words.interval(Estimate(0.08, 0.076, 0.0842, extrapolated=True)) == "0.0800* [0.0760, 0.0842]"
    assert words.interval(Estimate(-0.09, -0.1213, -0.058, relative=True)) == "-9.0 % [-12.1, -5.8]"


@pytest.mark.parametrize(
    ("name", "label"), [("topk", "TopK"), ("my_own", "My own"), ("JumpReLU", "JumpReLU"), ("PAnneal", "PAnneal"), ("Gated", "Gated")]
)
def test_names_of_others_keep_their_capitals(name: str, label: str) -> None:
    assert words.label(name) == label


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.62, "62 %"), (0.9949, "99 %"), (0.9951, "99.5 %"), (0.99995, "> 99.9 %"), (1.0, "> 99.9 %"), (0.004, "0.4 %"), (1e-6, "< 0.1 %")],
)
def test_nothing_is_certain(share: float, text: str) -> None:
    assert words.percent(share) == text


def test_hashes_are_shortened_and_names_are_not() -> None:
    assert words.shortened(64 * "a") == 12 * "a"
    assert words.shortened("openwebtext, validation") == "openwebtext, validation"
