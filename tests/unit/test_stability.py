"""Seed stability: matching of latents, what is kept, and the columns of the table."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from fake_results import metrics_at, record_of, write_sweep
from fake_saes import write_sae

from analysis import matching, stability
from analysis.matching import match
from analysis.plots.stability import Stability
from analysis.results import read_sweeps
from analysis.table import load_table, specs_of
from sae_core.errors import ConfigError


def rows(n: int, d_in: int = 16, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d_in))


def test_the_best_assignment_is_found() -> None:
    first, second = rows(5, 3), rows(6, 3, seed=1)
    unit = [part / np.linalg.norm(part, axis=1, keepdims=True) for part in (first, second)]
    cosines = np.abs(unit[0] @ unit[1].T)
    best = max(sum(cosines[i, j] for i, j in enumerate(order)) for order in itertools.permutations(range(6), 5))
    found = match(first, second)
    assert found.mean == pytest.approx(best / 5, abs=1e-6) and not found.is_bound


def test_order_sign_and_length_of_rows_do_not_matter() -> None:
    first = rows(40)
    order = np.random.default_rng(2).permutation(40)
    found = match(first, -3 * first[order])
    assert found.mean == pytest.approx(1, abs=1e-6)
    assert np.array_equal(order[found.columns], found.rows)


def test_beyond_the_exact_size_it_is_a_lower_bound_near_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    first = rows(200, 32)
    second = np.concatenate([first[:120] + 0.3 * rows(120, 32, seed=3), rows(80, 32, seed=4)])
    exact = match(first, second)
    monkeypatch.setattr(matching, "EXACT", 100)
    monkeypatch.setattr(matching, "_ROWS", 64)
    bound = match(first, second)
    assert bound.is_bound and 0.9 * exact.mean < bound.mean <= exact.mean
    assert len(set(bound.rows)) == len(bound.rows) and len(set(bound.columns)) == len(bound.columns)
    assert np.array_equal(np.sort(exact.rows[exact.cosines > 0.7]), np.sort(bound.rows[bound.cosines > 0.7]))


@pytest.mark.parametrize("shape", [(0, 16), (4, 8)])
def test_dictionaries_that_cannot_be_matched_are_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match=r"must have rows of one width, but got \(5, 16\) and \(" + ", ".join(map(str, shape))):
        match(rows(5), np.zeros(shape))


SHARED, OWN, DEAD = 30, 10, 8


def write_seeds(directory: Path, seeds: int = 3) -> Path:
    """Seeds that share 30 of 40 living latents, which explain 9 tenths; 8 dead ones are the same in all, and must not count."""
    sweep = write_sweep(directory, [record_of("topk", 8, metrics_at(8, 0.1, 0.1), seed) for seed in range(seeds)])
    for seed in range(seeds):
        W_dec = np.concatenate([rows(SHARED, 64), rows(OWN, 64, seed=10 + seed), rows(DEAD, 64, seed=99)])
        times = np.array([5] * (SHARED + OWN) + [0] * DEAD)
        explained = np.array([0.9 / SHARED] * SHARED + [0.1 / OWN] * OWN + [0.0] * DEAD)
        order = np.random.default_rng(seed).permutation(len(W_dec))
        write_sae(sweep / "runs" / f"topk-8-{seed}", W_dec[order], times[order], explained[order])
    return sweep


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    return write_seeds(tmp_path / "demo")


def test_columns_say_how_much_recurs(sweep: Path) -> None:
    assert "pw_mcc" not in load_table(sweep)
    stability.measure(read_sweeps(sweep))
    table = load_table(sweep)
    assert table["recurring_latents"].tolist() == pytest.approx([SHARED / (SHARED + OWN)] * 3)
    assert table["recurring_explained"].tolist() == pytest.approx([0.9] * 3)
    assert (table["pw_mcc"].between(0.75, 0.9)).all()
    assert specs_of(table)["pw_mcc"].direction == "max"


def test_what_was_worked_out_is_not_worked_out_again(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stability.measure(read_sweeps(sweep))
    before = (sweep / "stability.json").read_bytes()
    monkeypatch.setattr(stability, "match", None)
    stability.measure(read_sweeps(sweep))
    assert (sweep / "stability.json").read_bytes() == before


def test_another_sae_under_the_same_name_is_another_pair(sweep: Path) -> None:
    stability.measure(read_sweeps(sweep))
    write_sae(sweep / "runs" / "topk-8-0", rows(40, 64, seed=7), np.ones(40))
    table = load_table(sweep)
    assert np.isnan(table["pw_mcc"].iloc[0]) and table["pw_mcc"].iloc[1] > 0.75
    stability.measure(read_sweeps(sweep))
    table = load_table(sweep)
    assert table["recurring_latents"].tolist() == pytest.approx([0, 0.375, 0.375])
    assert np.isnan(table["recurring_explained"].iloc[0])


def test_runs_without_files_or_with_damaged_ones_have_no_value(sweep: Path) -> None:
    (sweep / "runs" / "topk-8-0" / "latents.safetensors").unlink()
    weights = sweep / "runs" / "topk-8-1" / "sae" / "sae_weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    stability.measure(read_sweeps(sweep))
    assert "pw_mcc" not in load_table(sweep)


def test_a_damaged_cache_is_made_again(sweep: Path) -> None:
    stability.measure(read_sweeps(sweep))
    whole = load_table(sweep)
    (sweep / "stability.json").write_text(json.dumps({"pairs": 3}))
    assert "pw_mcc" not in load_table(sweep)
    stability.measure(read_sweeps(sweep))
    assert load_table(sweep).equals(whole)


def test_one_seed_and_dead_dictionaries_have_no_value(tmp_path: Path) -> None:
    one = write_seeds(tmp_path / "one", seeds=1)
    stability.measure(read_sweeps(one))
    assert not (one / "stability.json").exists()
    dead = write_seeds(tmp_path / "dead", seeds=2)
    write_sae(dead / "runs" / "topk-8-0", rows(40, 64), np.zeros(40))
    stability.measure(read_sweeps(dead))
    assert load_table(dead)["pw_mcc"].isna().all()


def test_the_plot_shows_means_over_seeds(sweep: Path) -> None:
    assert Stability.info(load_table(sweep), {}) is None
    stability.measure(read_sweeps(sweep))
    info = Stability.info(load_table(sweep), {})
    assert info is not None and info.n_seeds == (3,)
    ((l0, recurring),) = info.panels["recurring_latents"]["topk"]
    assert (l0, recurring) == (8, pytest.approx(0.75))
