"""The training curves' data."""

import math
from pathlib import Path

import pytest
from fake_results import metrics_at, record_of, write_sweep

from analysis.plots.training_curves import MAX_POINTS, Curve, TrainingCurves
from analysis.table import load_table
from sae_core.files import write_text


def sweep_of(tmp_path: Path) -> Path:
    return write_sweep(tmp_path / "demo", [record_of("topk", k, metrics_at(k, 0.1, 0.2)) for k in (16, 8)])


def histories_of(sweep: Path) -> dict[str, Path]:
    return {directory.name: directory / "history.jsonl" for directory in (sweep / "runs").iterdir()}


def test_curves_are_sorted_by_sparsity_and_nan_where_not_finite(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path)
    histories = {name: sweep / "runs" / name / "history.jsonl" for name in ("topk-8-0", "topk-16-0")}
    write_text(
        histories["topk-8-0"], '{"tokens": 2048, "loss": 3.0, "mse_loss": 2.0, "l0": 8.0}\n{"tokens": 4096, "loss": 1.0, "l0": null}\n'
    )
    info = TrainingCurves.info(load_table(sweep), histories)
    assert info is not None
    first, second = info.curves["topk"]
    assert (first.run_id, first.tokens, first.mse) == ("topk-8-0", (2048.0, 4096.0), (2.0, 1.0))  # the loss where there is no mse_loss
    assert first.l0[0] == 8.0
    assert math.isnan(first.l0[1])
    assert second.run_id == "topk-16-0"


def test_long_histories_are_thinned_and_keep_both_ends(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path)
    history = sweep / "runs" / "topk-8-0" / "history.jsonl"
    write_text(history, "".join(f'{{"tokens": {i}, "loss": 1.0, "mse_loss": 1.0, "l0": 8.0}}\n' for i in range(1000)))
    info = TrainingCurves.info(load_table(sweep), {"topk-8-0": history})
    assert info is not None
    (curve,) = info.curves["topk"]
    assert isinstance(curve, Curve)
    assert len(curve.tokens) <= MAX_POINTS
    assert (curve.tokens[0], curve.tokens[-1]) == (0, 999)


def test_more_than_three_architectures_wrap(tmp_path: Path) -> None:
    records = [record_of(name, 8, metrics_at(8, 0.1, 0.2)) for name in ("topk", "gated", "standard", "batchtopk")]
    sweep = write_sweep(tmp_path / "demo", records)
    table = load_table(sweep)
    figure = TrainingCurves.figure(TrainingCurves.info(table, histories_of(sweep)))
    assert len([axes for axes in figure.axes if axes.get_visible()]) == 8  # two panels for each of the four


@pytest.mark.slow
def test_of_many_curves_some_are_drawn_evenly(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "demo", [record_of("topk", k, metrics_at(k, 0.5, 0.5)) for k in range(1, 62)])
    info = TrainingCurves.info(load_table(sweep), histories_of(sweep))
    assert info is not None
    assert (len(info.curves["topk"]), info.n_left_out) == (24, 61 - 24)
    assert TrainingCurves.note(info) == "At most 24 curves per architecture are drawn, chosen evenly over its settings; 37 are not."


def test_damaged_histories_are_left_out_and_named(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "demo", [record_of("topk", k, metrics_at(k, 0.1, 0.1)) for k in (8, 16)])
    (sweep / "runs" / "topk-8-0" / "history.jsonl").write_text("[1]\n")
    table = load_table(sweep)
    info = TrainingCurves.info(table, histories_of(sweep))
    assert info is not None
    assert [curve.run_id for curve in info.curves["topk"]] == ["topk-16-0"]
    assert TrainingCurves.note(info) == "history.jsonl of topk-8-0 is damaged and its curve is left out."
