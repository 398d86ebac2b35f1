"""What hyperparameters did: planted optima, curvature and importance are found again."""

import math
from pathlib import Path

import pandas as pd
import pytest
from fake_results import metrics_at, record_of, write_sweep
from fake_search import BEST_RATE, CURVATURE, write_search

from analysis.hyperparameters import best_rates, excess, hyperparameters, importance, is_searched, volumes_of_trials
from analysis.pareto import L0_WINDOW, hypervolume
from analysis.plots.hyperparameters import Importance, LearningRates, ParallelCoordinates, SearchHypervolume
from analysis.table import load_table
from sae_core.errors import ConfigError


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    return load_table(write_search(tmp_path_factory.mktemp("results") / "search", n_trials=120))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    records = [record_of("topk", k, metrics_at(k, 1 / k, 1 / k)) for k in (8, 16, 32)]
    return load_table(write_sweep(tmp_path_factory.mktemp("results") / "plain", records))


@pytest.mark.slow
def test_excess_is_0_on_the_front_and_does_not_blame_sparsity(table: pd.DataFrame) -> None:
    above = excess(table)
    assert above.min() == 0 and (above >= 0).all()
    off = (table["lr"] * table["sparsity_value"] / (BEST_RATE * 16)).map(math.log)
    assert above.to_numpy() == pytest.approx((CURVATURE / 2 * off**2).to_numpy(), abs=0.05)
    with pytest.raises(ConfigError, match="must be of a metric that falls, but got 'cosine'"):
        excess(table, "cosine")


def test_planted_best_rates_and_their_curvature_are_found(table: pd.DataFrame) -> None:
    found = best_rates(table)
    assert {(best.architecture, best.l0) for best in found} == {(name, k) for name in ("topk", "batchtopk") for k in (8, 16, 32, 64)}
    for best in found:
        assert best.rate == pytest.approx(BEST_RATE * 16 / best.l0, rel=0.1)
        assert best.curvature == pytest.approx(CURVATURE, rel=0.1)
        assert best.within[0] < best.rate < best.within[1] and not best.at_end


def test_a_best_rate_at_an_end_is_said(tmp_path: Path) -> None:
    records = [
        record_of("topk", 16, metrics_at(16, fvu, fvu), config=None, run_id=f"r{lr}") for lr, fvu in ((1e-3, 0.3), (2e-3, 0.2), (4e-3, 0.1))
    ]
    for record, lr in zip(records, (1e-3, 2e-3, 4e-3), strict=True):
        record.config["train"]["lr"] = lr
    records += [record_of("topk", k, metrics_at(k, 1.6 / k, 0.1), run_id=f"k{k}") for k in (8, 32)]
    (best,) = [one for one in best_rates(load_table(write_sweep(tmp_path / "demo", records))) if one.l0 == 16]
    assert best.at_end and best.rate == 4e-3


@pytest.mark.slow
def test_what_matters_is_called_important(table: pd.DataFrame) -> None:
    shares = importance(table)
    assert list(shares.index) == ["batchtopk", "topk"] and shares.sum(axis=1).tolist() == pytest.approx([1, 1])
    assert (shares["lr"] > 0.5).all() and (shares["batch_size"] < 0.1).all()
    assert set(hyperparameters(table)) == {"lr", "batch_size"}


def test_without_scikit_learn_it_says_how_to_get_it(table: pd.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'sae-sweep\[probes\]'"):
        importance(table)
    assert Importance.info(table, {}) is None


@pytest.mark.slow
def test_the_progress_of_a_search_ends_with_the_hypervolume_of_all(table: pd.DataFrame) -> None:
    volumes = volumes_of_trials(table)
    for name, own in volumes.items():
        rows = table[table["architecture"] == name]
        assert own[-1] == (len(rows), pytest.approx(hypervolume(rows, window=L0_WINDOW)))
        assert [volume for _, volume in own] == sorted(volume for _, volume in own)


def test_plots_show_what_there_is(table: pd.DataFrame, plain: pd.DataFrame) -> None:
    assert is_searched(table) and not is_searched(plain)
    for plot in (LearningRates, Importance, ParallelCoordinates, SearchHypervolume):
        assert plot.info(plain, {}) is None  # type: ignore[abstract]
    parallel = ParallelCoordinates.info(table, {})
    assert parallel is not None and parallel.axes == ("architecture", "lr", "batch_size", "L0", "FVU") and len(parallel.lines) == 120
    # One rate for each architecture is no choice: nothing to see.
    assert ParallelCoordinates.info(plain.assign(lr=[0.1 if name == "topk" else 0.2 for name in plain["architecture"]]), {}) is None
