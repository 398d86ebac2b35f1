"""What every plot in the registry does, whatever it shows."""

import dataclasses
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from fake_results import failed, metrics_at, realistic_records, record_of, variant_record, write_sweep
from fake_saes import write_sae
from fake_search import write_search
from fake_sizes import sized_records

from analysis.plots import PLOTS, style
from analysis.results import read_sweeps
from analysis.stability import measure
from analysis.table import load_table

NAMES = list(PLOTS)
FITTED = {"scaling", "importance"}
"""Plots that take seconds."""


MORE = {"decoder_cosine": 0.2, "decoder_projection": 0.1, "fvu_at_blocks.0": 0.3, "fvu_at_blocks.1": 0.1}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Realistic runs with every trouble: a failed one, a missing one, a collapsed one, a lone point, a new architecture."""
    records = [record for record in realistic_records() if record.architecture != "jumprelu"]
    records += [
        failed("jumprelu", 0.4),
        record_of("jumprelu", 0.2, metrics_at(18, 0.07, 0.11)),
        record_of("gated", 40, metrics_at(0, 1.02, 3.1)),
        record_of("new_idea", 16, metrics_at(16, 0.05, -0.01)),  # better than the language model itself: no logarithm
    ]
    records += [record_of("topk", 16, metrics_at(16, 0.082, 0.14), seed=seed) for seed in (1, 2)]
    records += [variant_record(record, name, 16, fvu) for record in records[-2:] for name, fvu in (("tokens-2048", 0.9), ("k-8", 0.2))]
    records = [dataclasses.replace(one, metrics={**one.metrics, **MORE}) if one.metrics else one for one in records]
    sweep = write_sweep(tmp_path_factory.mktemp("results") / "demo", records, missing=[("jumprelu", 0.1, 0)])
    for seed in (0, 1):
        latents = np.random.default_rng(seed).normal(size=(8, 128))
        write_sae(sweep / "runs" / f"topk-16-{seed}", latents, np.ones(8), np.ones(8))
    measure(read_sweeps(sweep))
    return sweep


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search over learning rates and batch sizes."""
    return write_search(tmp_path_factory.mktemp("results") / "search")


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Several widths and numbers of tokens, with seeds: what plots of all comparisons together need."""
    return write_sweep(tmp_path_factory.mktemp("results") / "sizes", sized_records(seeds=(0, 1), noise=0.02))


def histories_of(sweep: Path) -> dict[str, Path]:
    return {directory.name: directory / "history.jsonl" for directory in (sweep / "runs").iterdir()}


@pytest.fixture
def results(name: str, request: pytest.FixtureRequest) -> Path:
    """A sweep that the plot has something to show of."""
    kind = "several" if PLOTS[name].of_all else "search" if PLOTS[name].section == "Hyperparameters" else "sweep"
    return request.getfixturevalue(kind)  # type: ignore[no-any-return]


@pytest.fixture
def table(results: Path) -> pd.DataFrame:
    return load_table(results)


def test_the_registry_finds_them() -> None:
    assert {"l0_fvu", "l0_delta_ce", "l0_ce_loss_recovered", "ground_truth", "dead_fraction", "training_curves"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_says_what_it_shows(name: str) -> None:
    plot = PLOTS[name]
    assert plot.section
    assert plot.title
    assert plot.caption.endswith(".")
    assert isinstance(plot.order, int)


def test_places_in_the_report_are_unique() -> None:
    orders = [plot.order for plot in PLOTS.values()]
    assert len(set(orders)) == len(orders)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.slow
def test_info_is_frozen_and_the_table_untouched(name: str, table: pd.DataFrame, results: Path) -> None:
    before = table.copy()
    info = PLOTS[name].info(table, histories_of(results))
    assert dataclasses.is_dataclass(info)
    assert type(info).__dataclass_params__.frozen  # type: ignore[attr-defined]
    pd.testing.assert_frame_equal(table, before)


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) if name in FITTED else name for name in NAMES])
def test_figure_draws_without_a_warning(name: str, table: pd.DataFrame, results: Path) -> None:
    plot = PLOTS[name]
    with matplotlib.rc_context(style.RC):
        figure = plot.figure(plot.info(table, histories_of(results)))
        figure.canvas.draw()
    assert figure.axes


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.slow
def test_nothing_to_draw_is_none(name: str, tmp_path: Path) -> None:
    table = load_table(write_sweep(tmp_path / "demo", [failed("topk", 8)], missing=[("topk", 16, 0)]))
    assert PLOTS[name].info(table, {}) is None
