"""Names of comparisons."""

from pathlib import Path
from typing import Any

from fake_results import config_of, metrics_at, record_of, write_sweep

from analysis.summary import frontier_lines
from analysis.table import load_table
from analysis.titles import titles
from sae_core.records import RunRecord


def run(name: str, eval_hash: str = "e", **changes: Any) -> RunRecord:
    config = config_of("topk", 8, 0)
    for path, value in changes.items():
        section, _, field = path.partition("__")
        (config["activations"] if section in ("model", "data") else config)[section][field] = value
    return record_of("topk", 8, metrics_at(8, 0.1, 0.2), config=config, run_id=name, eval_hash=eval_hash)


def names(tmp_path: Path, *records: RunRecord) -> list[tuple[str, str, str]]:
    table = load_table(write_sweep(tmp_path / "demo", records))
    return sorted((title.full, title.common, title.short) for title in titles(table).values())


def test_one_comparison_is_named_by_what_its_runs_have_in_common(tmp_path: Path) -> None:
    assert names(tmp_path, run("a")) == [("demo · blocks.2.hook_resid_post · d_sae 1024 · 1 M training tokens", "", "")]


def test_comparisons_are_told_apart_by_what_differs(tmp_path: Path) -> None:
    told = names(tmp_path, run("a", "e1", model__hook_point="blocks.1.hook_mlp_out"), run("b", "e2"))
    assert [(common, short) for _, common, short in told] == [
        ("demo · d_sae 1024 · 1 M training tokens", "blocks.1.hook_mlp_out"),
        ("demo · d_sae 1024 · 1 M training tokens", "blocks.2.hook_resid_post"),
    ]


def test_fields_that_no_title_names_are_told_where_they_differ(tmp_path: Path) -> None:
    runs = [run("a", "e1", model__context_size=64, data__dataset="books"), run("b", "e2", model__context_size=128)]
    assert [short for *_, short in names(tmp_path, *runs)] == ["context_size 128 · dataset demo", "context_size 64 · dataset books"]


def test_the_terminal_says_it_too(tmp_path: Path) -> None:
    table = load_table(write_sweep(tmp_path / "demo", [run("a", "e1", sae__d_sae=512), run("b", "e2")]))
    lines = frontier_lines(table)
    assert lines[0] == "All runs: demo · blocks.2.hook_resid_post · 1 M training tokens"
    assert [line for line in lines if line.startswith("Comparison")] == ["Comparison 1 of 2: d_sae 512", "Comparison 2 of 2: d_sae 1024"]


def test_a_table_that_lost_its_configs_still_has_names(tmp_path: Path) -> None:
    table = load_table(write_sweep(tmp_path / "demo", [run("a", "e1", sae__d_sae=512), run("b", "e2")]))
    table.attrs.pop("comparisons")
    assert [title.full for title in titles(table).values()] == [f"comparison {name}" for name in titles(table)]
