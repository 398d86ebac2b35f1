"""Comparisons of fronts: by hand, against loops, and where nothing may be compared."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fake_results import documents_of, realistic_records, write_run, write_sweep
from scipy import stats
from scipy.interpolate import PchipInterpolator
from simulated_sweeps import Truth, draw

from analysis import compare
from analysis.estimates import Pair
from analysis.report.answer import answer
from analysis.statistics.comparison import Comparison
from analysis.statistics.matched import bands, of_runs, settings_of
from analysis.statistics.samples import draws
from analysis.table import load_table
from sae_core.errors import ConfigError

AB = Truth({"a": 0.08, "b": 0.07})


def only(comparison: Comparison) -> Pair:
    (pair,) = comparison.pairs
    return pair


def simulated(truth: Truth, seed: int = 0, **changes: object) -> Comparison:
    table, documents = draw(dataclasses.replace(truth, **changes), np.random.default_rng(seed))
    return compare(table, documents=documents)


def test_two_seeds_of_two_levels_by_hand() -> None:
    # Straight fronts; every run off by what is written, so that deviations are +-d of the level's mean.
    rows = [
        ("a", 8, 0, 0.00), ("a", 8, 1, 0.02), ("a", 32, 0, 0.01), ("a", 32, 1, -0.01), ("b", 8, 0, 0.1), ("b", 8, 1, 0.1),
        ("b", 32, 0, 0.1), ("b", 32, 1, 0.1),
    ]  # fmt: skip
    table = pd.DataFrame(
        [
            {"architecture": arm, "l0": float(l0), "sparsity_value": l0, "seed": seed, "fvu": np.exp(off - 0.5 * np.log(l0))}
            for arm, l0, seed, off in rows
        ]
    )
    table.attrs["metrics"] = {"fvu": {"name": "fvu", "label": "", "unit": "", "direction": "min"}}
    compared = compare(table, l0s=[16])
    pair = only(compared)
    assert (pair.a, pair.b, pair.window) == ("a", "b", pytest.approx((8, 32)))
    assert pair.gap is not None and pair.gap.value == pytest.approx(np.exp(0.005 - 0.1) - 1)
    # b does not vary, a's levels have deviations (-0.01, 0.01) and (0.01, -0.01): seeds' means do not differ at all.
    assert pair.gap.se == pytest.approx(0, abs=1e-4)
    (a, _) = compared.arms
    assert a.at[16] is not None
    assert a.at[16].value == pytest.approx(np.exp(0.005) / 4)
    assert a.spread == pytest.approx(np.sqrt(2e-4))


def test_a_paired_t_test_of_two_arms() -> None:
    table, _ = draw(dataclasses.replace(AB, n_documents=0, n_seeds=5), np.random.default_rng(3))
    pair = only(compare(table))
    per_seed = {}
    for (arm, seed), runs in table.groupby(["architecture", "seed"]):
        ln_l0 = np.log(runs["l0"].to_numpy())
        middles = np.log(8) + np.log(8) * (np.arange(24) + 0.5) / 24
        per_seed[arm, seed] = PchipInterpolator(ln_l0, np.log(runs["fvu"].to_numpy()))(middles).mean()
    differences = np.array([per_seed["b", seed] - per_seed["a", seed] for seed in range(5)])
    assert pair.gap is not None and (pair.a, pair.b) == ("b", "a")
    assert pair.gap.value == pytest.approx(np.expm1(differences.mean()))
    # Nearly the paired t test, with 4 degrees of freedom; the places of the window do not weigh the levels quite evenly.
    assert pair.gap.se == pytest.approx(stats.sem(differences), rel=0.4)
    assert pair.gap.df is not None and 4 <= pair.gap.df < 6


def test_the_documents_part_is_that_of_a_loop() -> None:
    table, documents = draw(dataclasses.replace(AB, n_seeds=1, level_noise=0.0), np.random.default_rng(0))
    assert documents is not None
    pair = only(compare(table, l0s=[32], documents=documents))
    error, variance = documents.sums["error"], documents.sums["variance"]
    ln, runs = [], {name: int(np.flatnonzero((table["architecture"] == name) & (table["sparsity_value"] == 32))[0]) for name in "ab"}
    for counts in np.concatenate(list(draws(50))):
        fvu = {name: (counts * error[run]).sum() / (counts * variance[run]).sum() for name, run in runs.items()}
        ln.append(np.log(fvu["b"] / fvu["a"]))
    w = variance[0] / variance[0].sum()
    correction = 1 / (1 - 2 * (w**3).sum() / (w**2).sum() + (w**2).sum())
    at = pair.at[32]
    assert at is not None and at.se == pytest.approx(np.std(ln, ddof=1) * np.sqrt(correction))
    assert at.df == pytest.approx(1 / (w**2).sum() - 1)
    assert at.value == pytest.approx(float(table["fvu"][runs["b"]] / table["fvu"][runs["a"]] - 1))


def test_what_is_known_decides_what_is_said() -> None:
    both = only(simulated(AB))
    assert both.gap is not None and both.gap.covers == "seeds and held-out documents"
    assert (both.verdict, both.better) == ("better", "b")
    assert both.probability is not None and both.probability > 0.99
    one_seed = only(simulated(AB, n_seeds=1))
    assert one_seed.gap is not None and one_seed.gap.covers.startswith("held-out documents only")
    assert (one_seed.verdict, one_seed.better) == ("better on this text", "b")
    seeds = only(simulated(AB, n_documents=0))
    assert seeds.gap is not None and seeds.gap.covers == "seeds only, not held-out documents"
    neither = only(simulated(AB, n_seeds=1, n_documents=0))
    assert neither.gap is not None and neither.gap.low is None
    assert (neither.verdict, neither.p) == ("not separable", None)
    assert neither.reason == "One seed, and documents cannot be drawn: the table comes without files of runs."


def test_the_better_arm_is_first_whatever_the_direction() -> None:
    table, _ = draw(dataclasses.replace(AB, n_documents=0), np.random.default_rng(0))
    table = table.assign(explained_variance=1 - table["fvu"])
    table.attrs["metrics"]["explained_variance"] = {"name": "explained_variance", "label": "EV", "unit": "", "direction": "max"}
    pair = only(compare(table, metric="explained_variance"))
    assert (pair.a, pair.better) == ("b", "b")
    assert pair.gap is not None and pair.gap.value > 0
    assert pair.l0_ratio is not None and pair.l0_ratio.value < 0  # fewer latents for the same value
    assert pair.probability is not None and pair.probability > 0.9


def test_the_horizontal_gap_of_parallel_fronts() -> None:
    table, _ = draw(dataclasses.replace(AB, n_documents=0, level_noise=1e-6), np.random.default_rng(0))
    ratio = only(compare(table)).l0_ratio
    assert ratio is not None and ratio.value == pytest.approx((7 / 8) ** (1 / 0.6) - 1, abs=1e-4)


def test_values_of_0_or_less_are_compared_on_their_own_scale() -> None:
    table, _ = draw(dataclasses.replace(AB, n_documents=0), np.random.default_rng(0))
    table["fvu"] -= 0.05
    compared = compare(table)
    pair = only(compared)
    assert pair.gap is not None and pair.gap.raw and not pair.gap.relative
    assert pair.gap.value == pytest.approx(-0.01, abs=0.005)
    assert any("0 or less" in note for note in compared.notes)


def test_rows_on_another_text_or_model_are_kept_apart() -> None:
    table, _ = draw(dataclasses.replace(AB, n_documents=0), np.random.default_rng(0))
    table["ce_loss_clean"] = np.where(table["architecture"] == "a", 3.0, 3.01)
    compared = compare(table)
    assert compared.pairs == ()
    assert compared.notes[0].startswith("Runs that differ in the cross-entropy of the clean language model are not compared")
    table["ce_loss_clean"] = np.where(table["architecture"] == "a", 3.0, 3.0005)  # rounding
    assert len(compare(table).pairs) == 1
    table["hook_point"] = np.where(table["architecture"] == "a", "blocks.1", "blocks.2")
    assert "hook point" in compare(table).notes[0]


def test_fronts_without_a_common_l0_are_not_tested() -> None:
    table, _ = draw(dataclasses.replace(AB, n_documents=0), np.random.default_rng(0))
    table.loc[table["architecture"] == "b", "l0"] *= 100
    pair = only(compare(table))
    assert (pair.gap, pair.window, pair.reason) == (None, None, "No range of L0 is spanned by both fronts in every repeat.")


def test_repeats_need_settings_in_common() -> None:
    table, _ = draw(dataclasses.replace(AB, n_documents=0), np.random.default_rng(0))
    bare = table.drop(columns=["setting_hash", "sparsity_value", "sparsity_parameter"])
    bare.attrs = table.attrs
    assert only(compare(bare)).verdict == "better"  # settings are matched by their rank in L0
    with pytest.raises(ConfigError, match=r"repeats must have the same settings .* but those of 'a' have different numbers"):
        compare(bare.iloc[1:])


def test_arms_may_be_any_columns_and_pairs_some_of_them() -> None:
    table, _ = draw(Truth({"a": 0.08, "b": 0.07, "c": 0.06}, n_documents=0), np.random.default_rng(0))
    table["half"] = np.where(table["seed"] < 2, "x", "y")
    assert [arm.name for arm in compare(table, by=["architecture", "half"]).arms] == ["a, x", "a, y", "b, x", "b, y", "c, x", "c, y"]
    assert [{pair.a, pair.b} for pair in compare(table, pairs=[("a", "c")]).pairs] == [{"a", "c"}]
    with pytest.raises(ConfigError, match=r"`by` must name at least one column, but got \[\]"):
        compare(table, by=[])
    with pytest.raises(ConfigError, match=r"a metric to compare by must be one of \['fvu'\], but got 'fuv'\. Did you mean 'fvu'"):
        compare(table, metric="fuv")
    with pytest.raises(ConfigError, match=r"L0s must be finite numbers above 0, but got \[0\]"):
        compare(table, l0s=[0])


@pytest.mark.slow
def test_from_the_files_of_a_sweep(tmp_path: Path) -> None:
    table = load_table(write_sweep(tmp_path / "demo", realistic_records((0, 1, 2)), n_documents=40))
    compared = compare(table)
    assert len(compared.pairs) == 15
    assert all(pair.gap is not None and pair.gap.n_documents == 40 for pair in compared.pairs)
    assert compare(table) == compared  # the same, every time
    verdicts = {frozenset((pair.a, pair.b)): pair.better for pair in compared.pairs}
    assert verdicts[frozenset(("standard", "batchtopk"))] == "batchtopk"
    band = bands(table, "fvu")["topk"]
    assert len(band.l0) == len(band.low)
    assert all(low is not None and low < value for low, value in zip(band.low, band.value, strict=True))
    runs, settings = of_runs(table, "fvu"), settings_of(table, "fvu")
    assert set(runs) == set(table["run_id"]) and set(settings) == set(table["setting_hash"])
    one = settings[table["setting_hash"].iloc[0]]
    assert one.n_seeds == 3 and one.low is not None and one.low < one.value


def test_repeats_may_lack_runs_or_all_of_them() -> None:
    table, documents = draw(dataclasses.replace(AB, n_seeds=3), np.random.default_rng(0))
    lacking = table[~((table["architecture"] == "a") & (table["seed"] == 2) & (table["sparsity_value"] != 8))]
    lacking.attrs = table.attrs
    pair = only(compare(lacking, documents=documents))  # seed 2 of a has one point: its front spans nothing
    assert pair.window is None and pair.reason
    fewer = table[~((table["architecture"] == "a") & (table["seed"] == 2))]
    fewer.attrs = table.attrs
    pair = only(compare(fewer, documents=documents))
    assert pair.gap is not None and pair.gap.n_seeds == 2 and pair.paired  # the documents are the same
    assert not only(compare(fewer)).paired


@pytest.mark.slow
def test_documents_that_differ_are_named(tmp_path: Path) -> None:
    records = [record for record in realistic_records((0, 1)) if record.architecture in ("topk", "batchtopk")]
    sweep = write_sweep(tmp_path / "demo", records, n_documents=12)
    write_run(sweep, records[-1], documents=documents_of(records[-1], 13))
    (note,) = compare(load_table(sweep)).notes
    assert re.fullmatch(r"Intervals cover seeds only, .*: \S+ and \S+ have sums of different documents\.", note)
    assert records[-1].run_id in note


@pytest.mark.slow
def test_groups_are_named_by_what_they_differ_in() -> None:
    table = pd.concat([draw(Truth({"a": 0.08, "b": 0.07}, n_documents=0), np.random.default_rng(seed))[0] for seed in (0, 1)])
    half = len(table) // 2
    table["comparison_hash"], table["d_sae"] = np.repeat(["3f", "a7"], half), np.repeat([512, 1024], half)
    assert compare(table).titles == {"3f": "d_sae 512", "a7": "d_sae 1024"}
    table["train_tokens"] = np.repeat([1_000_000, 4_000_000], half)
    assert compare(table).titles["a7"] == "d_sae 1024 · 4 M training tokens"
    assert compare(table[table["comparison_hash"] == "3f"]).titles == {"3f": ""}


def test_corrected_for_the_pairs_that_were_tested() -> None:
    """Not for those without a common window, and for all groups together, in words too."""
    table = pd.concat([draw(Truth({"a": 0.08, "b": 0.07}, n_documents=0), np.random.default_rng(seed))[0] for seed in (0, 1)])
    table["comparison_hash"] = np.repeat(["narrow", "wide"], len(table) // 2)
    found = compare(table)
    assert found.n_tests == found.of("wide").n_tests == 2
    assert "corrected for 2 comparisons" in answer(found.of("wide"))[-1]
    apart = draw(Truth({"c": 0.07}, l0s=(256.0, 512.0), n_documents=0), np.random.default_rng(2))[0]
    assert compare(pd.concat([table[table["comparison_hash"] == "narrow"], apart.assign(comparison_hash="narrow")])).n_tests == 1


@pytest.mark.parametrize(("lacking", "verdict"), [(0.080, "equivalent"), (0.097, "better")])
def test_metrics_with_their_best_value_at_1_are_equivalent_by_what_is_missing(lacking: float, verdict: str) -> None:
    """Explained variances of 0.92 and 0.903 are within 2 % of each other, and 20 % apart in what they lack."""
    quiet = Truth({"a": 0.08, "b": lacking}, level_noise=0.001, n_documents=0)
    table = draw(quiet, np.random.default_rng(0))[0].assign(score=lambda rows: 1 - rows["fvu"])
    table.attrs["metrics"] = {"score": {"name": "score", "label": "Score (1 is best)", "unit": "", "direction": "max"}}
    found = compare(table, metric="score")
    assert (only(found).verdict, found.label, found.margin_of) == (verdict, "score", "what is missing to 1")
    assert verdict != "equivalent" or "less than 5 % of what is missing to 1" in answer(found)[0]


def test_where_the_best_value_is_not_known_nothing_is_equivalent() -> None:
    quiet = Truth({"a": 0.08, "b": 0.08}, level_noise=0.0001, n_documents=0)
    table = draw(quiet, np.random.default_rng(0))[0].assign(ce_loss_spliced=lambda rows: 4 + rows["fvu"])
    spec = {"name": "ce_loss_spliced", "label": "", "unit": "nats per token", "direction": "min"}
    table.attrs["metrics"] = {"ce_loss_spliced": spec}
    assert only(compare(table, metric="ce_loss_spliced")).verdict == "not separable"
    above = compare(table.assign(ce_loss_clean=4.0), metric="ce_loss_spliced")
    assert (only(above).verdict, above.margin_of) == ("equivalent", "what is above the untouched model's")


def test_l0_is_what_is_matched_and_must_be_reached() -> None:
    table = draw(Truth({"a": 0.08, "b": 0.07}, n_documents=0), np.random.default_rng(0))[0]
    with pytest.raises(ConfigError, match="but got 'l0' itself"):
        compare(table, metric="l0")
    assert "No front reaches L0 4000." in compare(table, l0s=[16, 4000]).notes
