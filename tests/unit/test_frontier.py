"""The frontier plots' data."""

from pathlib import Path

import pytest
from fake_results import metrics_at, record_of, write_sweep

from analysis.plots.frontier import Point
from analysis.plots.l0_ce_loss_recovered import L0CeLossRecovered
from analysis.plots.l0_delta_ce import L0DeltaCe
from analysis.plots.l0_fvu import L0Fvu
from analysis.table import load_table


def test_points_are_means_over_seeds_and_the_front_goes_through_them(tmp_path: Path) -> None:
    records = [
        record_of("topk", 8, metrics_at(8, 0.125, 0.3), seed=0),
        record_of("topk", 8, metrics_at(10, 0.375, 0.3), seed=1),
        record_of("topk", 16, metrics_at(16, 0.5, 0.4), seed=0),  # dominated by the mean (9, 0.25)
    ]
    info = L0Fvu.info(load_table(write_sweep(tmp_path / "demo", records)), {})
    assert info is not None
    assert info.series == {
        "topk": (
            Point(9.0, 0.25, (8.0, 10.0), (0.125, 0.375), on_front=True, run_ids=("topk-8-0", "topk-8-1")),
            Point(16.0, 0.5, (16.0, 16.0), (0.5, 0.5), on_front=False, run_ids=("topk-16-0",)),
        )
    }
    assert (info.y_label, info.log_y, info.n_seeds, info.not_drawn) == ("Fraction of variance unexplained", True, 2, ())


def test_fronts_are_per_architecture(tmp_path: Path) -> None:
    records = [record_of("topk", 8, metrics_at(8, 0.1, 0.2)), record_of("standard", 4, metrics_at(9, 0.3, 0.5))]
    info = L0Fvu.info(load_table(write_sweep(tmp_path / "demo", records)), {})
    assert info is not None
    assert [point.on_front for points in info.series.values() for point in points] == [True, True]


def test_points_without_a_logarithm_are_named(tmp_path: Path) -> None:
    records = [
        record_of("topk", 8, metrics_at(8, 0.1, 0.2)),
        record_of("topk", 64, metrics_at(64, 0.01, -0.01)),
        record_of("gated", 9, metrics_at(0, 1.0, 3.0)),
    ]
    table = load_table(write_sweep(tmp_path / "demo", records))
    delta_ce, recovered = L0DeltaCe.info(table, {}), L0CeLossRecovered.info(table, {})
    assert delta_ce is not None
    assert recovered is not None
    assert delta_ce.not_drawn == ("gated-9-0", "topk-64-0")
    assert recovered.not_drawn == ("gated-9-0",)  # this axis is linear in y


def test_recovered_is_maximised(tmp_path: Path) -> None:
    records = [record_of("topk", 8, metrics_at(8, 0.1, 0.2)), record_of("topk", 16, metrics_at(16, 0.05, 0.3))]
    info = L0CeLossRecovered.info(load_table(write_sweep(tmp_path / "demo", records)), {})
    assert info is not None
    assert [point.on_front for point in info.series["topk"]] == [True, False]
    assert info.series["topk"][0].y == pytest.approx(1 - 0.2 / 6.3)  # zero-ablated 10.477 - clean 4.177 = 6.3


def test_legend_names_architectures_for_readers(tmp_path: Path) -> None:
    records = [record_of("matryoshka_batchtopk", 8, metrics_at(8, 0.1, 0.2)), record_of("my_idea", 8, metrics_at(9, 0.1, 0.2))]
    figure = L0Fvu.figure(L0Fvu.info(load_table(write_sweep(tmp_path / "demo", records)), {}))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["Matryoshka BatchTopK", "My idea"]


def test_l0_axis_has_doublings_and_points_link_to_their_runs(tmp_path: Path) -> None:
    records = [record_of("topk", k, metrics_at(k, 1 / k, 2 / k)) for k in (8, 16, 32, 64, 128)]
    figure = L0Fvu.figure(L0Fvu.info(load_table(write_sweep(tmp_path / "demo", records)), {}))
    (axes,) = figure.axes
    assert list(axes.get_xticks()) == [8, 16, 32, 64, 128]
    assert axes.collections[-1].get_urls() == [f"#topk-{k}-0" for k in (8, 16, 32, 64, 128)]
