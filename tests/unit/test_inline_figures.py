"""Figures inside of the page."""

import re
from pathlib import Path

from fake_results import metrics_at, record_of, write_sweep

from analysis.report.figures import draw_plots
from analysis.table import load_table


def test_ids_are_those_referred_to_and_no_two_figures_share_one(tmp_path: Path) -> None:
    table = load_table(write_sweep(tmp_path / "demo", [record_of("topk", k, metrics_at(k, 1 / k, 1 / k)) for k in (8, 16, 32)]))
    figures = [figure["svg"] for figure in draw_plots(table, {}, tmp_path / "plots")]
    ids = [re.findall(r'\sid="([^"]*)"', svg) for svg in figures]
    assert len(figures) > 2
    assert sum(map(len, ids)) == len(set().union(*ids))
    assert all(set(re.findall(r"url\(#([^)]+)\)", svg)) <= set(own) for svg, own in zip(figures, ids, strict=True))
