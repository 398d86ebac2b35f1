"""What may be wrong with the activations."""

from pathlib import Path

import pytest
from fake_results import metrics_at, record_of, write_sweep

from analysis.activation_checks import no_better_than_guessing, sinks
from analysis.findings import warning_lines
from analysis.table import load_table
from sae_core.records import RunRecord


def run(k: float, clean: float = 3.0, **facts: float | None) -> RunRecord:
    metrics = metrics_at(k, 1 / k, 0.1) | {"ce_loss_clean": clean}
    return record_of("topk", k, metrics, activation_facts={"d_vocab": 1000.0, **facts})


def test_a_language_model_that_guesses(tmp_path: Path) -> None:
    # ln(1000) = 6.9078
    assert no_better_than_guessing(load_table(write_sweep(tmp_path / "fine", [run(8, 6.9)]))) == []
    table = load_table(write_sweep(tmp_path / "demo", [run(8, 6.91), run(16, 6.91)]))
    assert no_better_than_guessing(table) == [
        "The cross-entropy of the untouched model is 6.910 nats per token; guessing among its 1,000 tokens gives ln(1000) = 6.908."
    ]


def test_rows_that_carry_nearly_all_variance(tmp_path: Path) -> None:
    def told(name: str, rows: float, share: float) -> list[str]:
        return sinks(load_table(write_sweep(tmp_path / name, [run(8, outlier_rows=rows, outlier_share=share)])))

    assert told("half", 1024, 0.5) == []
    assert told("many", 1024, 0.973) == [
        "1,024 rows of the training activations, at ten times the usual distance from their mean or more, carry 97.3 % of the variance."
    ]
    assert "1 row of the training activations" in told("one", 1, 0.9)[0]
    assert "mean or more, carries 90.0 %" in told("one more", 1, 0.9)[0]


def test_records_without_such_numbers_are_fine(tmp_path: Path) -> None:
    table = load_table(write_sweep(tmp_path / "demo", [record_of("topk", 8, metrics_at(8, 0.1, 0.1))]))
    assert no_better_than_guessing(table) == sinks(table) == []
    bare = table.drop(columns=["d_vocab", "outlier_rows", "outlier_share"])
    assert no_better_than_guessing(bare) == sinks(bare) == []


def test_they_are_told_once_for_all_architectures(tmp_path: Path) -> None:
    runs = [run(k, 7.0, outlier_rows=10, outlier_share=0.9) for k in (8, 16, 32)]
    lines = warning_lines(load_table(write_sweep(tmp_path / "demo", runs)))
    assert lines[0] == "Warnings: 2"
    assert lines[2].startswith("The language model is no better than chance.")
    assert sum(line.startswith("  - All runs: ") for line in lines) == 2


@pytest.mark.parametrize("column", ["d_vocab", "outlier_rows"])
def test_they_have_columns_of_whole_numbers(tmp_path: Path, column: str) -> None:
    table = load_table(write_sweep(tmp_path / "demo", [run(8, outlier_rows=3.0)]))
    assert str(table[column].dtype) == "Int64"
