"""Numbers read off the fronts."""

from pathlib import Path

import pytest
from fake_results import failed, metrics_at, realistic_records, record_of, target_record, write_sweep

from analysis.estimates import Estimate
from analysis.report.summary import frontier_lines, hypervolumes
from analysis.statistics.matched import at_matched_l0, compared_metrics, matched_l0s
from analysis.table import load_table
from analysis.words import TERMINAL_WIDTH, interval


def line_of(architecture: str, scale: float, seed: int = 0, l0s: tuple[float, ...] = (8, 32, 128)) -> list:
    """Runs with FVU scale / L0 and delta CE twice that: straight lines in logarithms."""
    return [record_of(architecture, l0, metrics_at(l0, scale / l0, 2 * scale / l0), seed) for l0 in l0s]


def test_matched_l0_is_read_per_seed_and_averaged(tmp_path: Path) -> None:
    table = load_table(write_sweep(tmp_path / "demo", line_of("topk", 1.6, seed=0) + line_of("topk", 2.0, seed=1)))
    (value, *_) = at_matched_l0(table, "fvu", [16])["topk"]
    assert value is not None
    assert value.value == pytest.approx(0.0125**0.5)  # the geometric mean of 1.6 / 16 and 2.0 / 16
    assert value.n_seeds == 2
    assert value.low is not None and value.high is not None
    # Both seeds are off by the same at all three levels, so there is one degree of freedom: t = 12.7, se = ln(1.25) / 2.
    assert value.low == pytest.approx(0.0125**0.5 * 1.25 ** (-12.7062 / 2), rel=1e-4)


def test_matched_l0_that_one_seed_does_not_reach_is_none(tmp_path: Path) -> None:
    table = load_table(write_sweep(tmp_path / "demo", line_of("topk", 1.6) + line_of("topk", 2.0, seed=1, l0s=(8, 12))))
    assert at_matched_l0(table, "fvu", [16]) == {"topk": [None]}


@pytest.mark.slow
def test_architectures_are_put_side_by_side_where_a_front_reaches(tmp_path: Path) -> None:
    def l0s(name: str, records: list) -> list[float]:
        return matched_l0s(load_table(write_sweep(tmp_path / name, records)))

    assert l0s("powers of two", line_of("topk", 1.6, l0s=(2, 5)) + line_of("gated", 1.6, l0s=(7, 9))) == [2, 4, 8]
    assert l0s("at most four", line_of("topk", 1.6, l0s=(1, 64))) == [1, 4, 16, 64]
    assert l0s("none", line_of("topk", 1.6, l0s=(9, 12))) == []
    asked = [target_record("standard", l0, metrics_at(1.01 * l0, 0.8 / l0, 1 / l0), seed) for l0 in (3, 6) for seed in (0, 1)]
    assert l0s("asked for", asked) == [3, 6]


def test_hypervolumes_on_the_common_window(tmp_path: Path) -> None:
    records = line_of("topk", 1.6) + line_of("gated", 3.2, l0s=(16, 64)) + line_of("jumprelu", 1.6, l0s=(32,))
    volumes = hypervolumes(load_table(write_sweep(tmp_path / "demo", records)), "fvu")
    assert volumes.window == (16.0, 64.0)
    # gated: FVU 0.2 from log2 16 = 4 to log2 64 = 6. topk: 0.2 (its L0 8) from 4 to 5, 0.05 (its L0 32) from 5 to 6.
    assert volumes.architectures["gated"].value == pytest.approx(2 * 0.8)
    assert volumes.architectures["topk"].value == pytest.approx(0.8 + 0.95)
    assert "jumprelu" not in volumes.architectures
    # All together, 3 to 7: 0.2 from 3 to 5, 0.05 from 5 on. gated's L0 64 at 0.05 adds nothing.
    assert volumes.pooled == Estimate(pytest.approx(2 * 0.8 + 2 * 0.95), raw=True)
    # In doublings, fronts lie from log2 8 = 3 to log2 128 = 7 (topk) and from 4 to 6 (gated); jumprelu is a point.
    assert {name: span.coverage for name, span in volumes.spans.items()} == pytest.approx({"gated": 0.5, "topk": 1.0, "jumprelu": 0.0})
    # From L0 16 on: gated's 64 must become 32, topk need not move.
    assert (volumes.epsilons["gated"]["topk"], volumes.epsilons["topk"]["gated"]) == (pytest.approx(0.5), 0.0)
    assert volumes.epsilons["topk"]["jumprelu"] is None


def test_hypervolumes_without_a_common_window(tmp_path: Path) -> None:
    volumes = hypervolumes(load_table(write_sweep(tmp_path / "demo", line_of("topk", 1.6))), "delta_ce")
    assert (volumes.window, volumes.architectures, volumes.reference) == (None, {}, 2.0)


def test_a_hypervolume_has_an_interval_over_seeds(tmp_path: Path) -> None:
    records = [run for seed, scale in enumerate((1.5, 1.6, 1.7)) for run in line_of("topk", scale, seed)]
    pooled = hypervolumes(load_table(write_sweep(tmp_path / "demo", records)), "fvu").pooled
    # 2 from L0 8 on and 2 more from 32 on: each seed has 4 - 2 * scale / 8 - 2 * scale / 32; t = 4.303 with 2 degrees of freedom.
    assert pooled.value == pytest.approx(3.5) and pooled.n_seeds == 3
    assert pooled.high == pytest.approx(3.5 + 4.3027 * 0.03125 / 3**0.5, rel=1e-4)


def test_runs_without_a_language_model_are_compared_by_fvu_alone(tmp_path: Path) -> None:
    record = record_of("topk", 8, {"l0": 8.0, "fvu": 0.2})
    table = load_table(write_sweep(tmp_path / "demo", [record]))
    assert compared_metrics(table) == ["fvu"]
    assert any("0.2000" in line for line in frontier_lines(table))


@pytest.mark.slow
def test_frontier_lines_fit_the_terminal(tmp_path: Path) -> None:
    lines = frontier_lines(load_table(write_sweep(tmp_path / "demo", realistic_records(seeds=(0, 1)))))
    assert max(map(len, lines)) <= 100
    assert lines[0] == "Pareto frontier of L0 against FVU: 24 of 24 settings, means over 2 seeds"
    assert sum("k=8" in line for line in lines) == 3
    assert sum(line.startswith("Matryoshka BatchTopK") for line in lines) == 3  # its front and its matched values of two metrics


def test_frontier_lines_say_where_seeds_are_missing(tmp_path: Path) -> None:
    records = line_of("topk", 1.6, l0s=(8, 16)) + line_of("topk", 1.6, seed=1, l0s=(8,))
    lines = frontier_lines(load_table(write_sweep(tmp_path / "demo", records)))
    assert lines[0] == "Pareto frontier of L0 against FVU: 2 of 2 settings, means over 1 to 2 seeds"


def test_frontier_lines_of_one_run(tmp_path: Path) -> None:
    lines = frontier_lines(load_table(write_sweep(tmp_path / "demo", [record_of("topk", 16, metrics_at(16, 0.08, 0.135))])))
    assert lines[3].split() == ["TopK", "16.0", "0.0800", "0.1350", "0.9786", "6.3", "%", "k=16"]
    assert [line.split() for line in lines if line.startswith("TopK")][1:] == [["TopK", "0.0800"], ["TopK", "0.1350"]]


@pytest.mark.slow
def test_frontier_lines_keep_widths_apart(tmp_path: Path) -> None:
    wide = record_of("topk", 16, metrics_at(16, 0.05, 0.1), run_id="wide")
    wide.config["sae"]["d_sae"] = 4096
    lines = frontier_lines(load_table(write_sweep(tmp_path / "demo", [record_of("topk", 16, metrics_at(16, 0.08, 0.1)), wide])))
    assert sum(line.startswith("Comparison ") for line in lines) == 2


@pytest.mark.slow
def test_targets_are_named_and_so_are_rates_that_differ(tmp_path: Path) -> None:
    records = [target_record("standard", 32, metrics_at(32.4, fvu, 0.2), seed) for seed, fvu in enumerate((0.08, 0.1))]
    lines = frontier_lines(load_table(write_sweep(tmp_path / "one", records)))
    assert lines[3].split() == ["Standard", "(L1)", "32.4", "0.0900", "0.2000", "0.9683", "4.6", "%", "target", "L0", "32"]
    records += [target_record("standard", 64, metrics_at(64, 0.04, 0.1), lr=1e-3)]
    lines = frontier_lines(load_table(write_sweep(tmp_path / "two", records)))
    assert lines[2].split()[-2:] == ["lr", "setting"]
    assert lines[4].split()[-4:] == ["0.001", "target", "L0", "64"]


@pytest.mark.slow
def test_settings_too_long_for_the_terminal_go_on_in_the_next_line(tmp_path: Path) -> None:
    records = [target_record("gated", 32, metrics_at(32, 0.1, 0.2), lr=4e-3, a_field_of_a_plugin=value) for value in (1.0, 2.0)]
    lines = frontier_lines(load_table(write_sweep(tmp_path / "demo", records)))
    first = next(index for index, line in enumerate(lines) if line.startswith("Gated"))
    assert lines[first].endswith("  target L0 32") and lines[first].index("target") == lines[first + 1].index("(a_field")
    assert lines[first + 1].strip() == "(a_field_of_a_plugin=1)"
    assert max(map(len, lines)) <= TERMINAL_WIDTH


def test_frontier_lines_of_nothing(tmp_path: Path) -> None:
    table = load_table(write_sweep(tmp_path / "demo", [failed("topk", 16)]))
    assert frontier_lines(table) == ["No run has finished, so there is no frontier yet."]


@pytest.mark.slow
def test_extrapolated_values_are_marked_and_points_without_a_logarithm_counted(tmp_path: Path) -> None:
    better = record_of("topk", 256, metrics_at(256, 0.001, -0.01))
    table = load_table(write_sweep(tmp_path / "demo", [*line_of("topk", 1.6, l0s=(8.5, 32, 128)), better]))
    value, inside = at_matched_l0(table, "fvu", [8, 32])["topk"]
    assert value is not None
    assert inside is not None
    assert (value.extrapolated, inside.extrapolated) == (True, False)
    assert (interval(value), interval(inside)) == ("0.2000*", "0.0500")
    lines = frontier_lines(table)
    assert any(line.split()[:2] == ["TopK", "0.2000*"] for line in lines)
    assert lines[-2:] == [
        "* extrapolated: beyond an end of the front",
        "1 run with delta CE of 0 or less, which has no logarithm: values are read on its own scale.",
    ]
