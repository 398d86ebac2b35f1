"""Every check on every architecture, for the report and the terminal."""

from pathlib import Path

import pytest
from fake_results import ARCHITECTURES, failed, metrics_at, record_of, target_record, write_sweep

from analysis.report.checks import CHECKS
from analysis.report.findings import Finding, findings_of, warning_lines
from analysis.table import load_table
from analysis.words import TERMINAL_WIDTH
from sae_core.records import RunRecord


def ladder(architecture: str, targets: tuple[float, ...] = (16, 32, 64)) -> list[RunRecord]:
    return [target_record(architecture, target, metrics_at(target, 1.6 / target, 0.1)) for target in targets]


@pytest.mark.slow
def test_a_sweep_that_is_as_asked_for_has_no_warnings(tmp_path: Path) -> None:
    table = load_table(write_sweep(tmp_path / "demo", [record for name in ARCHITECTURES for record in ladder(name)]))
    assert findings_of(table) == {}
    assert warning_lines(table) == ["No warnings."]


@pytest.mark.slow
def test_findings_are_by_check_and_architecture(tmp_path: Path) -> None:
    missed = target_record("gated", 64, metrics_at(80, 0.02, 0.1))
    table = load_table(write_sweep(tmp_path / "demo", [*ladder("topk", (16, 32)), *ladder("standard"), *ladder("gated", (32,)), missed]))
    comparison = table["comparison_hash"].iloc[0]
    few = [Finding(comparison, name, "2 of 2 sparsity levels finished.") for name in ("gated", "topk")]
    assert findings_of(table) == {
        "missed_target": [Finding(comparison, "gated", "L0 is 80.0 (+25.0 %) at target L0 64.")],
        "few_points": few,
    }
    lines = warning_lines(table)
    assert lines[:2] == ["Warnings: 3", ""]
    assert "  - Gated: L0 is 80.0 (+25.0 %) at target L0 64." in lines
    assert sum(line.startswith("Fewer than 3 points on a front. Too few") for line in lines) == 1


def test_lines_fit_the_terminal_and_name_the_comparison_where_there_are_several(tmp_path: Path) -> None:
    wide = record_of("gated", 3, metrics_at(12, 0.1, 0.2), run_id="wide")
    wide.config["sae"]["d_sae"] = 4096
    dead = [record_of("standard", c, metrics_at(8 * c, 0.1, 0.1) | {"dead_fraction": 0.5}) for c in range(1, 10)]
    table = load_table(write_sweep(tmp_path / "demo", [*dead, wide]))
    lines = warning_lines(table)
    assert max(map(len, lines)) <= TERMINAL_WIDTH
    assert "  - Gated, d_sae 4096: 1 of 1 sparsity level finished." in lines


def test_an_architecture_without_any_finished_run_has_too_few_points(tmp_path: Path) -> None:
    table = load_table(write_sweep(tmp_path / "demo", [*ladder("topk"), failed("gated", 3)], missing=[("gated", 6.0, 0)]))
    assert [found.text for found in findings_of(table)["few_points"]] == ["0 of 2 sparsity levels finished."]


def test_nothing_finished_at_all(tmp_path: Path) -> None:
    table = load_table(write_sweep(tmp_path / "demo", [failed("topk", 16), failed("standard", 1)]))
    assert set(findings_of(table)) == {"few_points"}


def test_runs_without_a_language_model(tmp_path: Path) -> None:
    records = [record_of("topk", k, {"l0": float(k), "fvu": 1 / k}) for k in (8, 16, 32)]
    assert findings_of(load_table(write_sweep(tmp_path / "demo", records))) == {}


@pytest.mark.slow
def test_the_reference_sweep_can_be_checked() -> None:
    table = load_table(Path(__file__).parents[2] / "results" / "reference" / "demo-seeds")
    assert set(findings_of(table)) <= set(CHECKS)


@pytest.mark.parametrize("name", list(CHECKS))
def test_a_check_says_what_is_wrong_and_what_to_do(name: str) -> None:
    check = CHECKS[name]
    assert not check.title.endswith(".")
    assert check.remedy.endswith(".")
    assert check.title[0].isupper()
