import hashlib
import importlib.metadata
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from sae_core.errors import ConfigError
from sweeps.demo import corpus

PINNED = {"matplotlib": "3.11.2", "networkx": "3.6.1", "numpy": "2.4.6", "optuna": "5.0.0", "pandas": "3.1.1", "sympy": "1.14.0"}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "demo.parquet"
    corpus.write_corpus(path)
    return path


def test_model_is_complete() -> None:
    names = {file.name for file in corpus.model_directory().iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= names


@pytest.mark.slow
def test_split_and_order_follow_the_hash_of_the_path(path: Path) -> None:
    table = pq.read_table(path)
    assert table.column_names == ["text", "path", "package", "split"]
    keys = [hashlib.sha256(name.encode()).hexdigest() for name in table["path"].to_pylist()]
    assert keys == sorted(keys)
    assert table["split"].to_pylist() == ["heldout" if int(key, 16) % 10 == 0 else "train" for key in keys]
    assert set(table["package"].to_pylist()) == set(corpus.PACKAGES)


def test_no_tests_and_no_extremes(path: Path) -> None:
    table = pq.read_table(path)
    assert not [name for name in table["path"].to_pylist() if {"tests", "test", "testing", "_examples"} & set(name.split("/"))]
    lengths = [len(text) for text in table["text"].to_pylist()]
    assert min(lengths) >= 500
    assert max(lengths) <= 200_000


@pytest.mark.slow
@pytest.mark.skipif({name: importlib.metadata.version(name) for name in PINNED} != PINNED, reason="counts are those of the pinned versions")
def test_counts_with_the_pinned_versions(path: Path) -> None:
    table = pq.read_table(path).to_pylist()
    train = [len(row["text"]) for row in table if row["split"] == "train"]
    heldout = [len(row["text"]) for row in table if row["split"] == "heldout"]
    assert (len(train), round(sum(train) / 1e6, 1)) == (1_636, 33.8)
    assert (len(heldout), round(sum(heldout) / 1e6, 1)) == (171, 3.7)


def test_writing_again_gives_the_same_bytes(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "PACKAGES", ("networkx",))
    for name in ("one", "two"):
        corpus.write_corpus(tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["one", "two"]


def test_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "PACKAGES", ("no-such-package",))
    with pytest.raises(ConfigError, match="got none of 'no-such-package'"):
        corpus.write_corpus(tmp_path / "demo.parquet")
    assert list(tmp_path.iterdir()) == []
