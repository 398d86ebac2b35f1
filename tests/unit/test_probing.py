"""k-sparse probes: tasks, scores, datasets, and columns of the table."""

import json

import numpy as np
import pandas as pd
import pytest
from fake_results import record_of, write_sweep
from learned_runs import of_known_features

from analysis import load_table, pareto_front
from analysis.features.probe_data import LabeledTexts, labeled_texts
from analysis.features.probing import probe_activations, probe_latents, summary, tasks_of
from analysis.table import metric_specs
from sae_core.errors import ConfigError
from sae_core.files import write_json


def data_of(labels, groups=None):
    groups = range(len(labels)) if groups is None else groups
    return LabeledTexts("made_up", tuple(f"text {row}" for row in range(len(labels))), tuple(labels), tuple(map(str, groups)))


def test_parts_are_balanced_and_share_no_group():
    labels = ["a"] * 300 + ["b"] * 500 + ["c"] * 90
    data = data_of(labels, [row // 3 for row in range(890)])
    tasks = tasks_of(data)
    assert [task.label for task in tasks] == ["a", "b", "c"]
    groups = np.array(data.groups)
    for task in tasks:
        assert not set(groups[task.train]) & set(groups[task.test])
        for part in (task.train, task.test):
            assert task.is_label[part].mean() == 0.5 and len(set(part.tolist())) == len(part)
        assert len(task.test) >= min(100, len(task.train))
    again = tasks_of(data)
    assert all(np.array_equal(one.train, other.train) for one, other in zip(tasks, again, strict=True))


def test_two_labels_are_one_task():
    assert [task.label for task in tasks_of(data_of(["no", "yes"] * 60))] == ["yes"]


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """A run of known features, held-out activations, and a latent that is active on some of them."""
    pytest.importorskip("sklearn")
    run = of_known_features(tmp_path_factory.mktemp("probes"), k=6)
    x = run.source.heldout(run.cache, 0).x
    active, _ = run.sae.active(x)
    latents = active.mask().numpy()
    latent = int(np.abs(latents.mean(axis=0) - 0.4).argmin())
    return run, x, latents[:, latent], latent


@pytest.mark.slow
def test_a_label_that_is_a_latent_is_found_by_one_latent(known):
    run, x, is_active, latent = known
    tasks = tasks_of(data_of(["on" if one else "off" for one in is_active]))
    scores = probe_latents(run, x, tasks, [1, 3])
    assert scores[1]["on"].columns == (latent,) and scores[3]["on"].columns[0] == latent
    assert scores[1]["on"].accuracy > 0.99 and scores[1]["on"].auc > 0.99
    assert 0.7 < probe_activations(x, tasks)["on"].accuracy <= 1
    assert scores == probe_latents(run, x, tasks, [1, 3])


@pytest.mark.slow
def test_labels_that_mean_nothing_are_found_by_chance_alone(known):
    run, x, _, _ = known
    labels = np.random.default_rng(0).permutation(["a", "b"] * (len(x) // 2))
    score = summary(probe_latents(run, x, tasks_of(data_of(labels.tolist())), [2])[2])
    assert abs(score["accuracy"] - 0.5) < 4 * score["standard_error"]
    assert score["standard_error"] == pytest.approx(0.5 / np.sqrt(score["labels"]["b"]["n_test"]), rel=0.2)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_files_are_read(tmp_path, suffix):
    table = pd.DataFrame({"line": [f"text {row}" for row in range(50)], "kind": [row % 2 for row in range(50)]})
    file = tmp_path / f"My texts-2{suffix}"
    if suffix == ".csv":
        table.to_csv(file, index=False)
    elif suffix == ".jsonl":
        table.to_json(file, orient="records", lines=True)
    else:
        table.to_parquet(file)
    data = labeled_texts(str(file), "line", "kind")
    assert (data.name, data.labels[:3], data.texts[1]) == ("my_texts_2", ("0", "1", "0"), "text 1")
    assert data.checksum == LabeledTexts("other", data.texts, data.labels, ()).checksum


@pytest.mark.parametrize(
    ("rows", "named"),
    [
        ([{"text": "a", "label": "x"}] * 50, r"{'x': 50}"),
        ([{"text": "a", "label": "x"}, {"text": "b", "label": "y"}] * 5, r"{'x': 5, 'y': 5}"),
        ([{"text": "", "label": "x"}], r"got '' in row 0"),
        ([{"text": "a", "label": None}], r"got none in row 0"),
        ([{"words": "a", "label": "x"}], r"got 'text'"),
    ],
)
def test_data_that_says_nothing_is_refused(tmp_path, rows, named):
    file = tmp_path / "data.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows))
    with pytest.raises(ConfigError, match=named):
        labeled_texts(str(file))


def test_files_that_cannot_be_read_are_refused(tmp_path):
    (tmp_path / "broken.parquet").write_text("no table")
    for name in ("nothing.csv", "text.txt", "broken.parquet"):
        with pytest.raises(ConfigError, match=name):
            labeled_texts(str(tmp_path / name))


@pytest.mark.slow
def test_the_source_of_scikit_learn_has_labels_that_its_text_shows():
    pytest.importorskip("sklearn")
    data = labeled_texts("scikit-learn")
    assert set(data.labels) == {"code", "comment", "docstring"} and min(map(data.labels.count, set(data.labels))) >= 200
    for text, label in zip(data.texts, data.labels, strict=True):
        assert label != "comment" or "#" in text.rpartition("\n")[2]
    assert data.checksum == labeled_texts("scikit-learn").checksum


def test_without_scikit_learn_one_message_says_what_to_install(monkeypatch):
    import importlib.metadata

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    with pytest.raises(ConfigError, match=r"sae-sweep\[probes\]"):
        labeled_texts("scikit-learn")


def swept(tmp_path, checksums=("one", "one", "one")):
    """A sweep of three runs with scores of probes."""
    records = [record_of("topk", level, {"l0": level, "fvu": 1 / level, "delta_ce": 0.1, "dead_fraction": 0.0}) for level in (8, 16, 32)]
    sweep = write_sweep(tmp_path / "probed", records)
    for number, (record, checksum) in enumerate(zip(records, checksums, strict=True)):
        by_k = {"1": {"accuracy": 0.6 + 0.1 * number}, "5": {"accuracy": 0.9 - 0.1 * number}}
        write_json(sweep / "runs" / record.run_id / "probes.json", {"probes": {"books": {"checksum": checksum, "by_k": by_k}}})
    return sweep


def test_scores_are_columns_with_fronts(tmp_path):
    sweep = swept(tmp_path)
    table = load_table(sweep)
    assert table["probe_books_k1"].tolist() == pytest.approx([0.6, 0.7, 0.8])
    spec = metric_specs(sweep)["probe_books_k5"]
    assert (spec.direction, spec.label) == ("max", "Accuracy of probes of 5 latents, books")
    assert table["l0"][pareto_front(table, "l0", "probe_books_k1")].tolist() == [8, 16, 32]
    assert table["l0"][pareto_front(table, "l0", "probe_books_k5")].tolist() == [8]


def test_scores_on_different_texts_are_left_out(tmp_path, caplog):
    assert "probe_books_k1" not in load_table(swept(tmp_path, ("one", "two", "one")))
    assert "probes on ['books']" in caplog.text


def test_runs_without_scores_are_empty_and_damaged_ones_are_told(tmp_path, caplog):
    sweep = swept(tmp_path)
    files = sorted(sweep.glob("runs/*/probes.json"))
    files[0].unlink()
    files[1].write_text(files[1].read_text().replace("0.", "1."))
    column = load_table(sweep)["probe_books_k1"]
    assert column.isna().sum() == 2 and "probes.json" in caplog.text
