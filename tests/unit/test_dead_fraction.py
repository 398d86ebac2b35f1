"""Dead latents against L0."""

from pathlib import Path

from fake_results import metrics_at, record_of, write_sweep

from analysis.plots.dead_fraction import DeadFraction
from analysis.table import load_table


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
