"""Checks of the runs of one architecture: what each of them finds, and what it lets pass."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest
from fake_results import failed, metrics_at, pruned, record_of, target_record, write_sweep

from analysis.pareto import settings_with_front
from analysis.report.checks import (
    arithmetic,
    close_points,
    dead_latents,
    dead_zone,
    few_points,
    guessing,
    impossible_values,
    learning_rate,
    missed_target,
    sinks,
)
from analysis.report.findings import warning_lines
from analysis.table import load_table
from sae_core.records import RunRecord

Missing = Sequence[tuple[str, float, int]]


@pytest.fixture
def table_of(tmp_path: Path):
    """Records of one sweep as a table."""

    def load(*records: RunRecord, missing: Missing = ()) -> pd.DataFrame:
        return load_table(write_sweep(tmp_path / "demo", records, missing))

    return load


def standard(coefficient: float, l0: float, seed: int = 0) -> RunRecord:
    return record_of("standard", coefficient, metrics_at(l0, 1.6 / max(l0, 1), 0.1), seed)


def topk(k: float, lr: float, fvu: float, seed: int = 0) -> RunRecord:
    return target_record("topk", k, metrics_at(k, fvu, 0.1), seed, lr=lr)


def jumprelu(target: float, lr: float, fvu: float, l0: float | None = None) -> RunRecord:
    return target_record("jumprelu", target, metrics_at(l0 or target, fvu, 0.1), lr=lr)


def test_the_highest_rate_wins_most_levels(table_of) -> None:
    fvus = {16: (0.20, 0.16, 0.12), 32: (0.10, 0.08, 0.06), 64: (0.05, 0.03, 0.04)}
    (text,) = learning_rate(table_of(*(topk(k, lr, v) for k, vs in fvus.items() for lr, v in zip((1e-3, 2e-3, 4e-3), vs, strict=True))))
    # 1 - 0.12 / 0.16 = 25 % at 16, 1 - 0.06 / 0.08 = 25 % at 32
    assert text == (
        "FVU is lowest at the highest learning rate, 0.004, at 2 of 3 sparsity levels, on average 25.0 % below the next best rate "
        "(tried: 0.001, 0.002 and 0.004). Try 0.008 too."
    )


def test_the_lowest_rate_wins(table_of) -> None:
    (text,) = learning_rate(table_of(topk(16, 1e-3, 0.1), topk(16, 2e-3, 0.2)))
    assert "at the lowest learning rate, 0.001, at 1 of 1 sparsity level," in text
    assert text.endswith("Try 0.0005 too.")


@pytest.mark.parametrize("best", [(0.2, 0.1, 0.3), (0.1, 0.2, 0.3)])
def test_a_rate_that_is_best_inside_or_at_half_of_the_levels_is_fine(table_of, best: tuple[float, ...]) -> None:
    rates = (1e-3, 2e-3, 4e-3)
    runs = [topk(16, lr, fvu) for lr, fvu in zip(rates, best, strict=True)]
    runs += [topk(32, lr, fvu) for lr, fvu in zip(rates, (0.3, 0.1, 0.2), strict=True)]
    assert learning_rate(table_of(*runs)) == []


def test_one_rate_has_no_edge(table_of) -> None:
    assert learning_rate(table_of(topk(16, 1e-3, 0.1), topk(32, 1e-3, 0.05))) == []


def test_rates_are_compared_by_means_over_seeds(table_of) -> None:
    one_lucky_seed = [topk(16, 4e-3, 0.05, 0), topk(16, 4e-3, 0.35, 1)]
    runs = [topk(16, 1e-3, 0.1, seed) for seed in (0, 1)] + [topk(16, 2e-3, 0.09, seed) for seed in (0, 1)]
    assert learning_rate(table_of(*runs, *one_lucky_seed)) == []


def test_a_rate_that_missed_the_target_does_not_win_by_its_higher_l0(table_of) -> None:
    runs = [jumprelu(32, 1e-3, 0.02, l0=50), jumprelu(32, 2e-3, 0.05), jumprelu(32, 4e-3, 0.06)]
    (text,) = learning_rate(table_of(*runs[1:]))
    assert "lowest learning rate, 0.002" in text
    assert learning_rate(table_of(*runs)) == []  # 0.002 now lies inside


def test_a_rate_whose_rivals_all_missed_has_won_nothing(table_of) -> None:
    assert learning_rate(table_of(jumprelu(32, 1e-3, 0.02, l0=50), jumprelu(32, 2e-3, 0.05))) == []


def test_a_rate_that_failed_or_was_pruned_bounds_the_range(table_of) -> None:
    finished = [topk(16, 1e-3, 0.2), topk(16, 2e-3, 0.1)]
    assert learning_rate(table_of(*finished)) != []
    for lost in (failed("topk", 16), pruned("topk", 16)):
        lost.config["train"]["lr"], lost.config["sae"]["target_l0"] = 4e-3, 16.0
        assert learning_rate(table_of(*finished, lost)) == []


def test_a_rate_whose_rivals_were_pruned_has_won(table_of) -> None:
    lost = pruned("topk", 16)
    lost.config["train"]["lr"] = 1e-3
    (text,) = learning_rate(table_of(topk(16, 2e-3, 0.1), lost))
    assert "highest learning rate, 0.002, at 1 of 1 sparsity level (tried: 0.001 and 0.002)" in text


def test_levels_that_are_yet_to_finish_have_no_winner(table_of) -> None:
    trained = dataclasses.replace(topk(16, 4e-3, 0.0), status="trained", metrics={})
    assert learning_rate(table_of(topk(16, 1e-3, 0.2), topk(16, 2e-3, 0.1), trained)) == []


def test_rates_of_coefficients_are_compared_at_matched_l0(table_of) -> None:
    def run(lr: float, coefficient: float, l0: float, fvu: float) -> RunRecord:
        record = record_of("standard", coefficient, metrics_at(l0, fvu, 0.1), run_id=f"{lr}-{coefficient}")
        record.config["train"]["lr"] = lr
        return record

    # FVU is c / L0. The higher rate has the higher FVU at each coefficient, because it is sparser there, and the lower one at equal L0.
    runs = [run(1e-3, c, l0, 2.0 / l0) for c, l0 in ((1, 80), (2, 20))] + [run(2e-3, c, l0, 1.6 / l0) for c, l0 in ((1, 40), (2, 10))]
    (text,) = learning_rate(table_of(*runs))
    assert "highest learning rate, 0.002, at 5 of 5 sparsity levels, on average 20.0 % below" in text  # 1 - 1.6 / 2.0


def asked(table: pd.DataFrame, low: float, high: float, *, searched: bool) -> pd.DataFrame:
    """The table of a sweep whose definition asks for these learning rates."""
    table.attrs["learning_rates"] = {"demo": {"topk": {"low": low, "high": high, "searched": searched}}}
    return table


def test_a_search_is_at_the_edge_only_near_the_ends_of_its_range(table_of) -> None:
    # Rates that a search took; the best is the highest of them.
    table = table_of(topk(16, 1e-3, 0.3), topk(16, 2e-3, 0.2), topk(16, 8e-3, 0.1))
    assert learning_rate(asked(table, 1e-4, 0.1, searched=True)) == []  # far from 0.1
    (text,) = learning_rate(asked(table, 1e-4, 0.01, searched=True))  # 0.01 / 100 ** 0.1 = 0.0063
    assert text == (
        "FVU is lowest near the upper end of the learning rates requested, 0.0001 to 0.01, at 1 of 1 sparsity level, on average 50.0 % "
        "below the next best rate (tried: 0.001, 0.002 and 0.008). Try 0.02 too."
    )
    low = table_of(topk(16, 1.1e-3, 0.1), topk(16, 2e-3, 0.2))
    assert "near the lower end of the learning rates requested, 0.001 to 0.01," in learning_rate(asked(low, 1e-3, 1e-2, searched=True))[0]


def test_rates_that_another_launch_asked_for_bound_the_range(table_of) -> None:
    table = table_of(topk(16, 1e-3, 0.2), topk(16, 2e-3, 0.1))
    assert learning_rate(asked(table, 1e-3, 4e-3, searched=False)) == []
    assert "highest learning rate, 0.002," in learning_rate(asked(table, 1e-3, 2e-3, searched=False))[0]


def test_rates_are_compared_within_a_variant(table_of) -> None:
    def run(lr: float, batch_size: int, fvu: float) -> RunRecord:
        return target_record("topk", 16, metrics_at(16, fvu, 0.1), lr=lr, batch_size=batch_size)

    runs = [run(1e-3, 512, 0.1), run(2e-3, 512, 0.2), run(1e-3, 4096, 0.4), run(2e-3, 4096, 0.3), run(4e-3, 4096, 0.5)]
    (text,) = learning_rate(table_of(*runs))
    assert text.startswith("With batch_size=512, FVU is lowest at the lowest learning rate, 0.001")


def test_points_close_in_l0(table_of) -> None:
    (text,) = close_points(table_of(standard(1.0, 20), standard(1.05, 19.6), standard(0.5, 40)))
    assert text == "L0 is 19.6 at l1_coefficient=1.05 and 20.0 at l1_coefficient=1: less than 5 % apart."


def test_points_five_percent_apart_are_fine(table_of) -> None:
    assert close_points(table_of(standard(1.0, 20), standard(0.9, 21))) == []


def test_points_that_differ_in_more_than_sparsity_may_be_close(table_of) -> None:
    replayed = record_of("jumprelu", 0.2, metrics_at(16.1, 0.1, 0.1))  # the coefficient that was found for a target
    assert close_points(table_of(topk(16, 1e-3, 0.1), topk(16, 2e-3, 0.2))) == []
    assert close_points(table_of(jumprelu(16, 4e-3, 0.1), replayed)) == []


def test_seeds_of_a_setting_are_one_point(table_of) -> None:
    assert close_points(table_of(standard(1.0, 20, seed=0), standard(1.0, 20.2, seed=1))) == []


def test_a_target_missed(table_of) -> None:
    (text,) = missed_target(table_of(jumprelu(16, 4e-3, 0.1, l0=14.0), jumprelu(32, 4e-3, 0.1, l0=34), jumprelu(64, 4e-3, 0.1, l0=80)))
    assert text == "L0 is 14.0 (-12.5 %) at target L0 16 and 80.0 (+25.0 %) at target L0 64."


def test_seeds_do_not_make_up_for_each_other(table_of) -> None:
    runs = [target_record("gated", 32, metrics_at(l0, 0.1, 0.1), seed) for seed, l0 in enumerate((24, 40, 32, 36))]
    assert missed_target(table_of(*runs)) == ["L0 is 24.0 (-25.0 % at worst, 3 of 4 seeds) at target L0 32."]


def test_without_targets_none_is_missed(table_of) -> None:
    assert missed_target(table_of(standard(1.0, 20))) == []


def test_coefficients_that_l0_does_not_respond_to(table_of) -> None:
    table = table_of(standard(1, 26.6), standard(10, 26.4), standard(100, 26.0), standard(400, 8.0))
    (text,) = dead_zone(table)
    assert text == (
        "L0 is 26.6 at l1_coefficient=1, 26.4 at l1_coefficient=10 and 26.0 at l1_coefficient=100: "
        "it does not respond to the coefficient there."
    )
    assert close_points(table) == []  # told once


def test_dense_and_collapsed_coefficients(table_of) -> None:
    texts = dead_zone(table_of(standard(0.001, 500), standard(0.01, 490), standard(1, 30), standard(90, 0.5), standard(200, 0.0)))
    assert texts == [
        "L0 is 500.0 at l1_coefficient=0.001 and 490.0 at l1_coefficient=0.01, of 1024 latents: still dense.",
        "L0 is 0.5 at l1_coefficient=90 and 0.0 at l1_coefficient=200: fewer than one active latent per token. "
        "At 0 it is on no front and in no plot.",
    ]


def test_an_l0_that_was_asked_for_is_never_dead(table_of) -> None:
    assert dead_zone(table_of(topk(512, 4e-3, 0.01), topk(256, 4e-3, 0.01), record_of("topk", 300, metrics_at(300, 0.1, 0.1)))) == []


def test_few_points(table_of) -> None:
    runs = [standard(1, 20, 0), standard(1, 20.5, 1), standard(2, 10), standard(8, 0.0), failed("standard", 4)]
    assert few_points(table_of(*runs, missing=[("standard", 6.0, 0)])) == ["2 of 5 sparsity levels finished."]
    assert few_points(table_of(*runs, standard(0.5, 40))) == []


def test_learning_rates_do_not_make_a_front(table_of) -> None:
    assert few_points(table_of(*(topk(16, lr, 0.1) for lr in (1e-3, 2e-3, 4e-3, 8e-3)))) == ["1 of 1 sparsity level finished."]


def test_dead_latents_are_a_mean_over_seeds(table_of) -> None:
    def run(coefficient: float, dead: float, seed: int = 0, l0: float = 16) -> RunRecord:
        return record_of("standard", coefficient, metrics_at(l0, 0.1, 0.1) | {"dead_fraction": dead}, seed)

    runs = [run(1, 0.5, 0), run(1, 0.25, 1), run(2, 0.5, 0), run(2, 0.0, 1), run(3, 0.2), run(4, 1.0, l0=0)]
    assert dead_latents(table_of(*runs)) == ["The share of dead latents is 37.5 % at l1_coefficient=1 and 25.0 % at l1_coefficient=2."]


def test_of_many_settings_some_are_named_and_the_others_counted(table_of) -> None:
    runs = [record_of("standard", c, metrics_at(8 * c, 0.1, 0.1) | {"dead_fraction": 0.5}) for c in range(1, 10)]
    (text,) = dead_latents(table_of(*runs))
    assert text.count("50.0 %") == 5
    assert text.endswith("at l1_coefficient=5 and 4 more.")


def test_settings_are_named_with_their_rate_where_rates_differ(table_of) -> None:
    assert missed_target(table_of(jumprelu(16, 1e-3, 0.1, l0=20), jumprelu(16, 2e-3, 0.1))) == [
        "L0 is 20.0 (+25.0 %) at target L0 16 (lr=0.001)."
    ]


def activations(k: float, clean: float = 3.0, **facts: float | None) -> RunRecord:
    metrics = metrics_at(k, 1 / k, 0.1) | {"ce_loss_clean": clean}
    return record_of("topk", k, metrics, activation_facts={"d_vocab": 1000.0, **facts})


def test_a_language_model_that_guesses(tmp_path: Path) -> None:
    # ln(1000) = 6.9078
    assert guessing(load_table(write_sweep(tmp_path / "fine", [activations(8, 6.9)]))) == []
    table = load_table(write_sweep(tmp_path / "demo", [activations(8, 6.91), activations(16, 6.91)]))
    assert guessing(table) == [
        "The cross-entropy of the untouched model is 6.910 nats per token; guessing among its 1,000 tokens gives ln(1000) = 6.908."
    ]


def test_rows_that_carry_nearly_all_variance(tmp_path: Path) -> None:
    def told(name: str, rows: float, share: float) -> list[str]:
        return sinks(load_table(write_sweep(tmp_path / name, [activations(8, outlier_rows=rows, outlier_share=share)])))

    assert told("half", 1024, 0.5) == []
    assert told("many", 1024, 0.973) == [
        "1,024 rows of the training activations, at ten times the usual distance from their mean or more, carry 97.3 % of the variance."
    ]
    assert "1 row of the training activations" in told("one", 1, 0.9)[0]
    assert "mean or more, carries 90.0 %" in told("one more", 1, 0.9)[0]


def test_records_without_such_numbers_are_fine(tmp_path: Path) -> None:
    table = load_table(write_sweep(tmp_path / "demo", [record_of("topk", 8, metrics_at(8, 0.1, 0.1))]))
    bare = table.drop(columns=["d_vocab", "outlier_rows", "outlier_share"])
    for some in (table, bare):
        assert guessing(some) == sinks(some) == arithmetic(some) == []


def test_they_are_told_once_for_all_architectures(tmp_path: Path) -> None:
    runs = [activations(k, 7.0, outlier_rows=10, outlier_share=0.9) for k in (8, 16, 32)]
    lines = warning_lines(load_table(write_sweep(tmp_path / "demo", runs)))
    assert lines[0] == "Warnings: 2"
    assert lines[2].startswith("The language model is no better than chance.")
    assert sum(line.startswith("  - All runs: ") for line in lines) == 2


@pytest.mark.parametrize("column", ["d_vocab", "outlier_rows"])
def test_they_have_columns_of_whole_numbers(tmp_path: Path, column: str) -> None:
    table = load_table(write_sweep(tmp_path / "demo", [activations(8, outlier_rows=3.0)]))
    assert str(table[column].dtype) == "Int64"


def test_runs_whose_evaluation_arithmetic_differs(table_of) -> None:
    table = table_of(*(standard(c, 8 * c) for c in (1, 2, 3, 4)))
    kinds = ["device cpu, kernels reference", "device cuda, kernels triton", "device cpu, kernels reference", None]
    assert arithmetic(table.assign(eval_arithmetic=kinds)) == [
        "Evaluation arithmetic differs: 2 runs with device cpu, kernels reference; 1 run with device cuda, kernels triton."
    ]
    assert arithmetic(table.assign(eval_arithmetic=kinds[0])) == []


def test_a_value_that_cannot_be_is_reported_and_leads_no_front(table_of) -> None:
    table = table_of(standard(1, 64), standard(2, 32), record_of("standard", 4, metrics_at(16, 0.1, -0.02) | {"fvu": -0.01}))
    assert impossible_values(table) == ["`fvu` -0.0100 in run `standard-4-0` (l1_coefficient=4)."]
    wrong = table["run_id"] == "standard-4-0"
    assert table.loc[wrong, "fvu"].isna().all()
    assert table.loc[wrong, "delta_ce"].tolist() == [-0.02]  # the model may predict better with the SAE
    front = settings_with_front(table)
    assert front["on_front"].all()
    assert "standard-4-0" not in {run_id for run_ids in front["run_ids"] for run_id in run_ids}
    assert "`fvu` -0.0100" in " ".join(line.strip() for line in warning_lines(table))
