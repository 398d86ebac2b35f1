"""Fronts, hypervolume and matched L0, by hand."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fake_results import metrics_at, record_of, target_record, write_sweep

from analysis.pareto import (
    common_window,
    hypervolume,
    interpolate_at_l0,
    is_extrapolated,
    l0_spans,
    n_without_logarithm,
    pareto_front,
    settings_with_front,
)
from analysis.table import load_table
from sae_core.errors import ConfigError

DIRECTIONS = {"fvu": "min", "delta_ce": "min", "ce_loss_recovered": "max"}


def table_of(*points: tuple[float, float], y: str = "fvu", architecture: str = "topk", status: str = "finished") -> pd.DataFrame:
    """A table with an (L0, y) per run."""
    table = pd.DataFrame(points, columns=["l0", y], dtype=float).assign(architecture=architecture, status=status, seed=0)
    table.attrs["metrics"] = {name: {"name": name, "label": "", "unit": "", "direction": way} for name, way in DIRECTIONS.items()}
    return table


def test_front_leaves_out_what_another_beats() -> None:
    table = table_of((8, 0.20), (16, 0.10), (16, 0.12), (24, 0.11), (32, 0.05))
    assert list(pareto_front(table)) == [True, True, False, False, True]


def test_equal_points_are_all_on_the_front() -> None:
    assert list(pareto_front(table_of((8, 0.2), (8, 0.2), (8, 0.3)))) == [True, True, False]


def test_front_of_a_maximised_metric() -> None:
    table = table_of((8, 0.90), (16, 0.95), (24, 0.94), y="ce_loss_recovered")
    assert list(pareto_front(table, y="ce_loss_recovered")) == [True, True, False]


def test_unfinished_runs_are_on_no_front() -> None:
    finished, failed = table_of((8, 0.2), (16, math.nan)), table_of((4, 0.01), status="failed")
    assert list(pareto_front(pd.concat([finished, failed], ignore_index=True))) == [True, False, False]


def test_a_front_for_each_group() -> None:
    table = pd.concat([table_of((8, 0.2), (16, 0.1)), table_of((8, 0.3), (16, 0.4), architecture="gated")], ignore_index=True)
    assert list(pareto_front(table)) == [True, True, False, False]
    assert list(pareto_front(table, by="architecture")) == [True, True, True, False]


def test_a_table_from_csv_needs_a_direction() -> None:
    bare = pd.DataFrame({"l0": [8.0, 16.0], "fvu": [0.2, 0.3]})
    assert list(pareto_front(bare, direction="min")) == [True, False]
    with pytest.raises(ConfigError, match="but got None for column 'fvu'"):
        pareto_front(bare)


def test_hypervolume_of_a_staircase() -> None:
    # L0 16 at FVU 0.5 counts from log2 16 = 4 to log2 128 = 7, L0 64 at 0.25 adds from 6 to 7: 3 * 0.5 + 1 * 0.25.
    assert hypervolume(table_of((16, 0.5), (64, 0.25))) == pytest.approx(1.75)


def test_hypervolume_counts_sparser_points_from_the_edge_and_denser_ones_not_at_all() -> None:
    # L0 2 at FVU 0.5 counts from log2 8 = 3 on: 4 * 0.5.
    assert hypervolume(table_of((2, 0.5))) == pytest.approx(2.0)
    assert hypervolume(table_of((2, 0.5), (128, 0.1), (200, 0.0))) == pytest.approx(2.0)
    assert hypervolume(table_of((0, 0.5))) == pytest.approx(2.0)


def test_hypervolume_is_bounded_by_the_perfect_sae() -> None:
    assert hypervolume(table_of((8, 0.0))) == pytest.approx(4.0)  # (7 - 3) * 1
    assert hypervolume(table_of((8, 0.0), y="delta_ce"), y="delta_ce") == pytest.approx(8.0)  # (7 - 3) * 2
    assert hypervolume(table_of((8, 1.0), (16, 1.5))) == 0


def test_hypervolume_of_a_maximised_metric() -> None:
    # From reference 0 up to 0.9, between log2 16 = 4 and log2 32 = 5.
    table = table_of((16, 0.9), y="ce_loss_recovered")
    assert hypervolume(table, y="ce_loss_recovered", reference=0.0, window=(8, 32)) == pytest.approx(0.9)


def test_hypervolume_of_nothing_raises() -> None:
    with pytest.raises(ConfigError, match=r"at least one finished run .* but got 1 rows"):
        hypervolume(table_of((8, math.nan)))
    with pytest.raises(ConfigError, match=r"0 < low < high, but got \(8, 8\)"):
        hypervolume(table_of((8, 0.1)), window=(8, 8))
    with pytest.raises(ConfigError, match="but got 'kl'"):
        hypervolume(table_of((8, 0.1), y="kl"), y="kl")


def test_spans_and_their_common_window() -> None:
    table = pd.concat(
        [
            table_of((4, 0.4), (16, 0.2), (64, 0.1)),
            table_of((10, 0.5), (200, 0.1), (300, 0.2), architecture="gated"),  # 300 is dominated
            table_of((32, 0.2), architecture="jumprelu"),  # a single point spans nothing
        ],
        ignore_index=True,
    )
    assert l0_spans(table).to_dict("index") == {"gated": {"low": 10, "high": 200}, "topk": {"low": 4, "high": 64}}
    assert common_window(table) == (10.0, 64.0)


def test_fronts_that_do_not_overlap_have_no_common_window() -> None:
    table = pd.concat([table_of((8, 0.4), (16, 0.2)), table_of((32, 0.5), (64, 0.1), architecture="gated")], ignore_index=True)
    assert common_window(table) is None
    assert common_window(table_of((8, 0.4), (16, 0.2))) is None


def test_interpolation_is_straight_in_logarithms() -> None:
    # y = 1.6 / L0 is a straight line in (ln L0, ln y), so every point on it is met exactly.
    values = interpolate_at_l0(table_of((8, 0.2), (32, 0.05), (128, 0.0125)), [8, 16, 64, 128])
    assert values.index.tolist() == ["topk"]
    np.testing.assert_allclose(values.loc["topk"], [0.2, 0.1, 0.025, 0.0125])


def test_interpolation_follows_the_front_only() -> None:
    assert interpolate_at_l0(table_of((8, 0.2), (16, 0.9), (32, 0.05)), [16]).loc["topk", 16] == pytest.approx(0.1)


def test_a_front_is_read_up_to_ten_percent_beyond_its_ends() -> None:
    # y = 1.6 / L0 again, so that the continued line is right.
    values = interpolate_at_l0(table_of((17, 1.6 / 17), (32, 0.05), (60, 1.6 / 60)), [15, 16, 64, 67]).loc["topk"]
    assert values[16] == pytest.approx(0.1)
    assert values[64] == pytest.approx(0.025)
    assert values[[15.0, 67.0]].isna().all()  # 17 / 15 and 67 / 60 are more than 1.1


def test_values_beyond_the_ends_are_marked() -> None:
    beyond = is_extrapolated(table_of((17, 1.6 / 17), (32, 0.05), (60, 1.6 / 60)), [15, 16, 17, 40, 60, 64, 67]).loc["topk"]
    assert list(beyond.index[beyond]) == [16, 64]  # at 15 and 67 there is no value


def test_close_neighbours_do_not_decide_the_slope_beyond_the_ends() -> None:
    points = [(16, 0.1), (32, 0.05), (60, 1.6 / 60), (61, 1.5 / 60)]  # the last two alone: y falls by 6 % where L0 rises by 2 %
    assert interpolate_at_l0(table_of(*points), [64]).loc["topk", 64] == pytest.approx(1.5 / 60 * (64 / 61) ** -1.075, rel=1e-3)


def test_a_front_of_just_the_least_span_is_continued() -> None:
    # ln(32 sqrt 2) - ln 32 is ln(sqrt 2) only to the last digit, which may be either side of it.
    for low in (2.0, 3.0, 7.0, 32.0, 57.0):
        interpolate_at_l0(table_of((low, 0.2), (low * 2**0.5, 0.1)), [low * 0.95])


def test_a_short_front_is_not_read_beyond_its_ends() -> None:
    values = interpolate_at_l0(table_of((30, 0.06), (32, 0.05)), [29, 31, 32, 33]).loc["topk"]
    assert list(values.isna()) == [True, False, False, True]
    assert interpolate_at_l0(table_of((16, 0.1)), [16]).loc["topk", 16] == pytest.approx(0.1)


def test_points_without_a_logarithm_are_left_out() -> None:
    values = interpolate_at_l0(table_of((0, 1.0), (8, 0.2), (32, 0.05), (64, -0.01)), [16, 64]).loc["topk"]
    assert values[16] == pytest.approx(0.1)
    assert np.isnan(values[64])


def test_points_that_are_left_out_are_counted() -> None:
    points = table_of((0, -1.0), (8, 0.2), (32, -0.05), (64, 0.0), (128, math.nan), y="delta_ce")
    assert n_without_logarithm(points, "delta_ce") == 2
    assert n_without_logarithm(points.assign(status="failed"), "delta_ce") == 0


def test_interpolation_by_several_columns() -> None:
    table = pd.concat([table_of((8, 0.2), (32, 0.05)), table_of((8, 0.4), (32, 0.1)).assign(seed=1)], ignore_index=True)
    values = interpolate_at_l0(table, [16], by=["architecture", "seed"])
    assert values.loc[("topk", 0), 16] == pytest.approx(0.1)
    assert values.loc[("topk", 1), 16] == pytest.approx(0.2)


def test_interpolation_of_no_finished_run_is_empty() -> None:
    assert interpolate_at_l0(table_of((8, math.nan)), [16], by=["architecture", "seed"]).empty


def test_seeds_of_a_target_are_one_point_of_the_front(tmp_path: Path) -> None:
    # Seeds of a target end at slightly different L0s with coefficients of their own. One by one, none would dominate another.
    runs = [target_record("standard", 32, metrics_at(l0, fvu, 0.1), seed) for seed, (l0, fvu) in enumerate([(31, 0.06), (33, 0.04)])]
    runs += [target_record("standard", 16, metrics_at(l0, fvu, 0.2), seed) for seed, (l0, fvu) in enumerate([(15, 0.12), (17, 0.10)])]
    settings = settings_with_front(load_table(write_sweep(tmp_path / "demo", runs)))
    assert settings[["l0", "fvu", "n_seeds", "on_front"]].to_numpy().tolist() == [[16, pytest.approx(0.11), 2, True], [32, 0.05, 2, True]]


def test_means_are_over_the_seeds_that_have_the_metric(tmp_path: Path) -> None:
    without = {**metrics_at(10, 0.3, 0.0), "delta_ce": None}
    runs = [record_of("topk", 8, metrics_at(8, 0.1, 0.2), seed=0), record_of("topk", 8, without, seed=1)]
    (setting,) = settings_with_front(load_table(write_sweep(tmp_path / "demo", runs)), "delta_ce").to_dict("records")
    assert (setting["l0"], setting["delta_ce"], setting["run_ids"]) == (8, 0.2, ("topk-8-0",))


def test_a_metric_that_is_never_positive_is_read_nowhere() -> None:
    table = table_of((8, -0.1), (32, -0.2), y="delta_ce").assign(architecture=["topk", "standard"], seed=0)
    assert interpolate_at_l0(table, [8, 16], "delta_ce", by=["architecture", "seed"]).empty
