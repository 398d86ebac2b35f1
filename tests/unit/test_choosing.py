"""Choosing is not reporting: cross-fitting, and equal tries."""

import numpy as np
import pandas as pd
import pytest

from analysis import compare
from analysis.documents import DocumentSums
from analysis.report.answer import answer
from analysis.statistics import samples as module
from analysis.statistics.choosing import Grid, front_of, grid_of, readings
from analysis.statistics.samples import Samples, samples_of
from sae_core.documents import Ratio

RATES = (1e-4, 2e-4, 4e-4, 8e-4)


def sweep(generator: np.random.Generator, *, rates: int = 4, n_seeds: int = 3, n_documents: int = 40, noise: float = 0.05) -> tuple:
    """Settings that differ in a learning rate that does nothing: the truth is 1.6 / L0 whatever is chosen."""
    rows = [
        {"architecture": arm, "l0": l0, "sparsity_value": l0, "lr": lr, "seed": seed, "setting_hash": f"{arm}{l0}{lr}"}
        for arm, own in (("a", rates), ("b", 1))
        for l0 in (8.0, 16.0, 32.0)
        for lr in RATES[:own]
        for seed in range(n_seeds)
    ]
    table = pd.DataFrame(rows).assign(status="finished", variant="")
    table["run_id"] = [f"run-{number}" for number in range(len(table))]
    table.attrs["metrics"] = {"fvu": {"name": "fvu", "label": "", "unit": "", "direction": "min"}}
    truth = 1.6 / table["l0"].to_numpy()
    table["fvu"] = truth * np.exp(generator.normal(0, noise, len(table)))
    if not n_documents:
        return table, None
    error = table["fvu"].to_numpy()[:, None] * np.exp(generator.normal(0, noise, (len(table), n_documents)))
    ones = np.ones_like(error)
    sums = {"error": error, "variance": ones, "n_tokens": ones, "active": table["l0"].to_numpy()[:, None] * ones}
    ratios = {"fvu": Ratio({"error": 1.0}, {"variance": 1.0}), "l0": Ratio({"active": 1.0}, {"n_tokens": 1.0})}
    documents = DocumentSums(tuple(table["run_id"]), np.arange(n_documents), ones[0], sums, ratios)
    return table.assign(fvu=error.mean(axis=1)), documents


def arms_of(table: pd.DataFrame, documents: DocumentSums | None) -> tuple[Samples, dict[str, Grid]]:
    samples = samples_of(table, "fvu", documents)
    rows = {arm: np.flatnonzero(table["architecture"] == arm) for arm in "ab"}
    return samples, {
        arm: grid_of(table.iloc[index], index, list(table["setting_hash"].iloc[index]), list(table["seed"].iloc[index]))
        for arm, index in rows.items()
    }


def test_each_repeat_and_half_is_read_on_what_did_not_choose_it() -> None:
    table, documents = sweep(np.random.default_rng(0))
    samples, grids = arms_of(table, documents)
    grid = grids["a"]
    assert grid.is_chosen and grid.tries == 4
    found = readings(samples, grid, 1.0)
    assert [[one.part for one in own] for own in found] == [[2, 1]] * 3
    for seed, own in enumerate(found):
        others = [other for other in range(3) if other != seed]
        for reading, chosen_on in zip(own, (1, 2), strict=True):
            # By hand: at each L0 the learning rate with the least mean over the other seeds, on the other half.
            means = samples.y[chosen_on][grid.runs[:, others]].mean(axis=1)
            l0s = samples.x[0][grid.runs[:, 0]]
            best = [min(np.flatnonzero(l0s == l0), key=lambda setting: means[setting]) for l0 in np.unique(l0s)]
            assert sorted(reading.runs) == sorted(grid.runs[best, seed])


def test_where_every_level_has_one_setting_nothing_is_chosen() -> None:
    table, documents = sweep(np.random.default_rng(0))
    samples, grids = arms_of(table, documents)
    assert not grids["b"].is_chosen and grids["b"].tries == 1
    assert [[one.part for one in own] for own in readings(samples, grids["b"], 1.0)] == [[0]] * 3


def test_one_seed_without_documents_reads_what_it_chose() -> None:
    table, _ = sweep(np.random.default_rng(0), n_seeds=1, n_documents=0)
    found = compare(table)
    assert found.arms[0].chosen.startswith("the best of 4 learning rates, chosen and read on the same text")
    assert any(line.startswith("A: the best of 4 learning rates") for line in answer(found))


@pytest.mark.parametrize(
    ("n_seeds", "n_documents", "how"),
    [
        (3, 12, "chosen on one half of the documents, of the other seeds, and read on the rest."),
        (3, 0, "chosen on the other seeds, and read on the rest."),
        (1, 12, "chosen on one half of the documents and read on the other; one seed gives no interval over seeds."),
    ],
)
def test_the_answer_says_how_settings_were_chosen(n_seeds: int, n_documents: int, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "N_DRAWS", 50)
    table, documents = sweep(np.random.default_rng(0), n_seeds=n_seeds, n_documents=n_documents)
    assert f"A: the best of 4 learning rates, {how}" in answer(compare(table, documents=documents))


@pytest.mark.parametrize(("n_seeds", "n_documents"), [(3, 0), (2, 40), (1, 40)])
@pytest.mark.slow
def test_the_best_of_several_is_not_flattered(n_seeds: int, n_documents: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "N_DRAWS", 50)
    generator = np.random.default_rng(1)
    fitted, flattered = [], []
    for _ in range(24):
        # With one seed, only the documents' luck can be told from merit.
        table, documents = sweep(generator, n_seeds=n_seeds, n_documents=n_documents, noise=0.05 if n_seeds > 1 else 0.0)
        if n_seeds == 1:
            assert documents is not None
            error = 1.6 / table["l0"].to_numpy()[:, None] * np.exp(generator.normal(0, 0.2, (len(table), n_documents)) - 0.02)
            documents.sums["error"][:] = error  # type: ignore[index]
            table["fvu"] = error.mean(axis=1)
        (a, _) = compare(table, l0s=[16], documents=documents).arms
        assert a.at[16] is not None
        fitted.append(np.log(a.at[16].value / 0.1))
        means = table[(table["architecture"] == "a") & (table["l0"] == 16)].groupby("lr")["fvu"].mean()
        flattered.append(np.log(means.min() / 0.1))
    standard_error = np.std(fitted) / np.sqrt(len(fitted))
    assert abs(np.mean(fitted)) < 3 * standard_error
    assert np.mean(flattered) < -4 * np.std(flattered) / np.sqrt(len(flattered))


def test_more_tries_are_told_and_can_be_taken_away() -> None:
    table, _ = sweep(np.random.default_rng(0), n_seeds=1, n_documents=0)
    free = compare(table, l0s=[16])
    assert [arm.tries for arm in free.arms] == [4, 1]
    assert free.arms[0].advantage is not None and free.arms[0].advantage < 0
    assert any("chose among 4 settings, more than others; with as few its FVU would be" in note for note in free.notes)
    equal = compare(table, l0s=[16], equal_tries=True)
    assert [arm.tries for arm in equal.arms] == [1, 1]
    assert "A: one at random of 4 learning rates." in answer(equal)
    assert equal.arms[0].advantage is None
    values = [one.arms[0].at[16] for one in (free, equal)]
    assert values[0] is not None and values[1] is not None and values[0].value < values[1].value


def test_a_front_of_means_leaves_out_what_is_dominated() -> None:
    x = np.log([8.0, 8.0, 16.0, 32.0])
    y = np.array([0.5, 0.4, 0.45, 0.2])
    samples = Samples(np.arange(4), np.stack([x] * 3), np.stack([y] * 3), False)
    assert front_of(samples, np.arange(4)[:, None], 0, 1.0).tolist() == [1, 3]
    assert front_of(samples, np.arange(4)[:, None], 0, -1.0).tolist() == [0]


def test_a_bad_setting_with_a_hair_less_l0_is_no_part_of_the_front() -> None:
    """No setting dominates it, but a reader of L0 16 wants the best setting there."""
    rows = [
        {"architecture": "a", "l0": l0 * (1 - 0.002 * step), "fvu": 1.6 / l0 * 1.5**step, "sparsity_value": l0, "lr": lr, "seed": seed}
        for l0 in (8.0, 16.0, 32.0)
        for step, lr in enumerate(RATES)
        for seed in range(2)
    ]
    table = pd.DataFrame(rows).assign(status="finished", variant="")
    table["run_id"] = [f"run-{number}" for number in range(len(table))]
    table["setting_hash"] = table["sparsity_value"].astype(str) + table["lr"].astype(str)
    table.attrs["metrics"] = {"fvu": {"name": "fvu", "label": "", "unit": "", "direction": "min"}}
    estimate = compare(table, l0s=[16]).arms[0].at[16.0]
    assert estimate is not None and estimate.value == pytest.approx(0.1)


def test_with_few_tries_a_bad_setting_shortens_some_fronts_and_not_the_comparison() -> None:
    table, _ = sweep(np.random.default_rng(0), n_documents=0)
    bad = (table["architecture"] == "a") & (table["lr"] == RATES[0])
    table.loc[bad, "fvu"] *= 10
    (pair,) = compare(table, l0s=[16], equal_tries=True).pairs
    assert pair.window == (pytest.approx(8), pytest.approx(32)) and not pair.reason
