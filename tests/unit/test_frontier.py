"""The frontier plots' data."""

from pathlib import Path

import pytest
from fake_results import metrics_at, record_of, write_sweep

from analysis.plots.frontier import DeadFraction, L0CeLossRecovered, L0DeltaCe, L0Fvu, Point
from analysis.plots.ground_truth import GroundTruth
from analysis.table import load_table
from sae_core.records import RunRecord


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
    assert (info.y_label, info.log_y, info.not_drawn) == ("Fraction of variance unexplained", True, ())


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
    assert "The front of TopK goes on to a mean of 0 or less" in L0DeltaCe.note(delta_ce)
    assert "goes on" not in L0CeLossRecovered.note(recovered)
    assert recovered.not_drawn == ("gated-9-0",)  # this axis is linear in y


def test_a_front_without_a_logarithm_anywhere_has_no_band(tmp_path: Path) -> None:
    values = {"topk": (0.3, 0.2, 0.1), "gated": (-0.1, -0.2, -0.3)}
    records = [
        record_of(name, k, metrics_at(k, 0.4, delta + seed / 100), seed=seed)
        for name, deltas in values.items()
        for k, delta in zip((8, 16, 32), deltas, strict=True)
        for seed in (0, 1)
    ]
    info = L0DeltaCe.info(load_table(write_sweep(tmp_path / "demo", records)), {})
    assert info is not None
    assert info.series.keys() == {"topk"}
    assert info.bands.keys() == {"topk"}
    L0DeltaCe.figure(info)


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


def test_leaves_out_collapsed_runs(tmp_path: Path) -> None:
    records = [
        record_of("topk", 16, {**metrics_at(16, 0.1, 0.2), "dead_fraction": 0.25}),
        record_of("topk", 8, {**metrics_at(8, 0.2, 0.3), "dead_fraction": 0.5}),
        record_of("topk", 1, {**metrics_at(0, 1.0, 3.0), "dead_fraction": 1.0}),
    ]
    table = load_table(write_sweep(tmp_path / "demo", records))
    info = DeadFraction.info(table, {})
    assert info is not None and info.y_label == "Dead latents"
    assert [(point.x, point.y, point.on_front) for point in info.series["topk"]] == [(8.0, 0.5, True), (16.0, 0.25, True)]


def test_the_line_goes_through_the_front_alone(tmp_path: Path) -> None:
    records = [record_of("topk", k, {**metrics_at(k, fvu, fvu), "dead_fraction": 0.1}) for k, fvu in ((8, 0.2), (12, 0.3), (16, 0.1))]
    info = DeadFraction.info(load_table(write_sweep(tmp_path / "demo", records)), {})
    assert info is not None
    assert [point.on_front for point in info.series["topk"]] == [True, False, True]
    lines = DeadFraction.figure(info).axes[0].lines
    assert [line.get_xdata().tolist() for line in lines] == [[8.0, 16.0]]


def test_ground_truth_is_shown_on_the_front_by_reconstruction(tmp_path: Path) -> None:
    def known(k: float, seed: int, fvu: float, mcc: float) -> RunRecord:
        return record_of("topk", k, {**metrics_at(k, fvu, 0.3), "mcc": mcc, "true_l0": 12.0}, seed)

    runs = [known(8, 0, 0.125, 0.75), known(8, 1, 0.375, 0.25), known(16, 0, 0.5, 1.0)]  # the last is dominated, though it finds all
    info = GroundTruth.info(load_table(write_sweep(tmp_path / "demo", [*runs, record_of("topk", 32, metrics_at(32, 0.1, 0.1))])), {})
    assert info is not None
    assert [(point.x, point.y, point.on_front) for point in info.reconstruction.series["topk"]] == [(8.0, 0.25, True), (16.0, 0.5, False)]
    assert [(point.x, point.y, point.on_front) for point in info.recovery.series["topk"]] == [(8.0, 0.5, True), (16.0, 1.0, False)]
    assert (info.recovery.y_label, info.recovery.true_l0) == ("MCC of latents and true features", 12.0)
    assert GroundTruth.note(info) == "Dotted: how many features are active on a token, on average."
    left, right = GroundTruth.figure(info).axes
    assert [[line.get_linestyle() for line in axes.lines] for axes in (left, right)] == [["-", ":"]] * 2
    assert right.get_ylim()[1] == 1


def test_without_known_features_there_is_no_plot_of_them(tmp_path: Path) -> None:
    table = load_table(write_sweep(tmp_path / "demo", [record_of("topk", 8, metrics_at(8, 0.125, 0.3))]))
    assert GroundTruth.info(table, {}) is None


@pytest.mark.slow
def test_of_many_settings_behind_the_front_some_are_drawn_evenly(tmp_path: Path) -> None:
    behind = [record_of("topk", k, metrics_at(8 + k, 0.5, 0.5), run_id=f"topk-{k}") for k in range(1, 61)]
    info = L0Fvu.info(load_table(write_sweep(tmp_path / "demo", [record_of("topk", 99, metrics_at(8, 0.1, 0.1)), *behind])), {})
    assert info is not None
    points = info.series["topk"]
    assert (len(points), points[0].on_front, points[1].x, points[-1].x, info.n_left_out) == (41, True, 9.0, 68.0, 20)
    assert L0Fvu.note(info) == "20 more settings behind the fronts are not drawn; those that are were chosen evenly over L0."
