from pathlib import Path

import matplotlib
import pytest
from fake_results import failed, metrics_at, record_of, write_sweep

from analysis import style
from analysis.plots.frontier import Point
from analysis.plots.ground_truth import GroundTruth
from analysis.table import load_table
from sae_core.records import RunRecord


def known(
    architecture: str, level: float, metrics: dict[str, float | None], *, mcc: float, true_l0: float = 12.0, seed: int = 0
) -> RunRecord:
    """A run on activations whose features are known."""
    return record_of(architecture, level, {**metrics, "mcc": mcc, "true_l0": true_l0}, seed)


def test_both_panels_have_the_same_settings_with_the_front_by_reconstruction(tmp_path: Path) -> None:
    records = [
        known("topk", 8, metrics_at(8, 0.125, 0.3), seed=0, mcc=0.75),
        known("topk", 8, metrics_at(10, 0.375, 0.3), seed=1, mcc=0.25),
        known("topk", 16, metrics_at(16, 0.5, 0.4), mcc=1.0),  # dominated by (9, 0.25), though it finds all
        record_of("topk", 32, metrics_at(32, 0.1, 0.1)),  # of a source without known features
        failed("gated", 8),
    ]
    info = GroundTruth.info(load_table(write_sweep(tmp_path / "demo", records)), {})
    assert info is not None
    ids = ("topk-8-0", "topk-8-1")
    assert info.reconstruction == {
        "topk": (
            Point(9.0, 0.25, (8.0, 10.0), (0.125, 0.375), on_front=True, run_ids=ids),
            Point(16.0, 0.5, (16.0, 16.0), (0.5, 0.5), on_front=False, run_ids=("topk-16-0",)),
        )
    }
    assert info.recovery == {
        "topk": (
            Point(9.0, 0.5, (8.0, 10.0), (0.25, 0.75), on_front=True, run_ids=ids),
            Point(16.0, 1.0, (16.0, 16.0), (1.0, 1.0), on_front=False, run_ids=("topk-16-0",)),
        )
    }
    assert info.labels == ("Fraction of variance unexplained", "MCC of latents and true features")
    assert info.true_l0 == 12.0


def test_without_known_features_there_is_no_plot(tmp_path: Path) -> None:
    table = load_table(write_sweep(tmp_path / "demo", [record_of("topk", 8, metrics_at(8, 0.125, 0.3))]))
    assert GroundTruth.info(table, {}) is None


@pytest.mark.parametrize(("true_l0", "n_lines"), [(12.0, 1), (500.0, 0)])
def test_the_true_l0_is_marked_where_it_is_in_view(tmp_path: Path, true_l0: float, n_lines: int) -> None:
    records = [known("topk", k, metrics_at(k, 1 / k, 0.3), mcc=0.8, true_l0=true_l0) for k in (8, 16)]
    info = GroundTruth.info(load_table(write_sweep(tmp_path / "demo", records)), {})
    with matplotlib.rc_context(style.RC):
        figure = GroundTruth.figure(info)
    for axes in figure.axes:
        assert len([text for text in axes.texts if text.get_text() == "true L0"]) == n_lines
    assert figure.axes[1].get_ylim()[1] == 1
