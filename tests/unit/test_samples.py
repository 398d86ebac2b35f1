"""Draws of documents, against an explicit loop."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from fake_results import realistic_records, write_sweep
from simulated_sweeps import Truth, draw

from analysis.statistics import samples as module
from analysis.statistics.samples import N_DRAWS, draws, samples_of
from analysis.table import load_table

TRUTH = Truth({"a": 0.08, "b": 0.07}, n_seeds=2, n_documents=12, l0_noise=0.05)


def test_a_draw_takes_as_many_documents_as_there_are() -> None:
    counts = np.concatenate(list(draws(12)))
    assert counts.shape == (N_DRAWS, 12)
    assert (counts.sum(axis=1) == 12).all()
    np.testing.assert_array_equal(counts, np.concatenate(list(draws(12))))
    np.testing.assert_allclose(counts.mean(axis=0), 1, atol=0.15)


def test_chunks_of_draws_add_up_to_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = np.concatenate(list(draws(12)))
    monkeypatch.setattr(module, "_MOST_COUNTS", 12 * 77)
    np.testing.assert_array_equal(np.concatenate(list(draws(12))), whole)


def test_draws_are_those_of_a_loop_over_runs_and_documents() -> None:
    table, documents = draw(TRUTH, np.random.default_rng(0))
    assert documents is not None
    samples = samples_of(table, "fvu", documents)
    assert samples.x_draws is not None and samples.y_draws is not None
    counts = np.concatenate(list(draws(12)))
    for b in (0, 7, N_DRAWS - 1):
        for run in range(len(table)):
            for part, start, step in ((0, 0, 1), (1, 0, 2), (2, 1, 2)):
                error = variance = active = tokens = 0.0
                for document in range(start, 12, step):
                    error += counts[b, document] * documents.sums["error"][run, document]
                    variance += counts[b, document] * documents.sums["variance"][run, document]
                    active += counts[b, document] * documents.sums["active"][run, document]
                    tokens += counts[b, document] * documents.sums["n_tokens"][run, document]
                assert samples.y_draws[part, b, run] == pytest.approx(np.log(error / variance))
                assert samples.x_draws[part, b, run] == pytest.approx(np.log(active / tokens))


def test_the_table_says_where_values_are_and_the_sums_how_they_move() -> None:
    table, documents = draw(TRUTH, np.random.default_rng(0))
    plain, moved = samples_of(table, "fvu", documents), samples_of(table.assign(fvu=2 * table["fvu"]), "fvu", documents)
    assert plain.y_draws is not None and moved.y_draws is not None
    np.testing.assert_allclose(moved.y[0], np.log(2 * table["fvu"]))
    np.testing.assert_allclose(moved.y_draws, plain.y_draws + np.log(2))


def test_values_of_0_or_less_are_taken_as_they_are() -> None:
    table, documents = draw(TRUTH, np.random.default_rng(0))
    table.loc[0, "fvu"] = -0.01
    samples = samples_of(table, "fvu", documents)
    assert samples.raw
    np.testing.assert_allclose(samples.y[0], table["fvu"])


def test_documents_of_one_length_have_the_usual_correction() -> None:
    table, documents = draw(TRUTH, np.random.default_rng(0))
    assert documents is not None
    even = {**documents.sums, "variance": np.ones((len(table), 12))}
    samples = samples_of(table, "fvu", dataclasses.replace(documents, sums=even))
    assert (samples.n_documents, samples.correction, samples.df) == (12, pytest.approx(12 / 11), pytest.approx(11))
    uneven = samples_of(table, "fvu", documents)
    shares = documents.sums["variance"][0] / documents.sums["variance"][0].sum()
    assert uneven.correction > 12 / 11 and uneven.df < 11 and uneven.df == pytest.approx(1 / (shares**2).sum() - 1)


def test_what_cannot_be_drawn_says_why() -> None:
    table, documents = draw(TRUTH, np.random.default_rng(0))
    assert documents is not None
    assert samples_of(table, "fvu").undrawn == "the table comes without files of runs"
    long = {**documents.sums, "variance": documents.sums["variance"] * np.where(np.arange(12) == 3, 1000.0, 1.0)}
    for sums, reason in ((long, "nearly all of the text is one or two documents"), ({**documents.sums, "error": long["variance"] - 1}, "")):
        samples = samples_of(table, "fvu", dataclasses.replace(documents, sums=sums))
        assert (samples.undrawn, samples.n_documents) == (reason, 0 if reason else 12)
    lacking = dataclasses.replace(documents, ratios={"l0": documents.ratios["l0"]})
    assert samples_of(table, "fvu", lacking).undrawn == "not all runs have sums per document of fvu"


def test_without_sums_or_with_too_few_documents_nothing_is_drawn() -> None:
    table, documents = draw(TRUTH, np.random.default_rng(0))
    assert samples_of(table, "fvu").n_documents == 0
    assert samples_of(table, "fvu", documents).n_documents == 12
    table, documents = draw(dataclasses.replace(TRUTH, n_documents=9), np.random.default_rng(0))
    assert samples_of(table, "fvu", documents).y_draws is None


@pytest.mark.slow
def test_sums_are_read_from_the_directories_that_the_table_knows(tmp_path: Path) -> None:
    table = load_table(write_sweep(tmp_path / "demo", realistic_records()[:8], n_documents=20))
    assert samples_of(table, "fvu").n_documents == 20
    assert samples_of(table, "mcc").n_documents == 0  # no ratio of sums
    assert samples_of(table, "fvu") is samples_of(table[table["status"] == "finished"], "fvu")  # kept: nothing has changed
