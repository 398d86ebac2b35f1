import json
from pathlib import Path

import pytest
import yaml

from sae_core.activations.language_model.data_config import DataConfig
from sae_core.activations.language_model.dataset import content_hash, documents, problems
from sae_core.activations.language_model.mixture import in_words
from sae_core.errors import ConfigError

SPLITS = {"train": 40, "heldout": 10}


def rows(letter: str, length: int, column: str = "text") -> str:
    """A JSONL file of equal documents, each with its number."""
    found = [{column: f"{letter}{number:03d}".ljust(length, "."), "split": split} for split, n in SPLITS.items() for number in range(n)]
    return "\n".join(map(json.dumps, found))


def mixed(directory: Path, *entries: dict[str, object]) -> DataConfig:
    path = directory / "mixture.yaml"
    path.write_text(yaml.safe_dump({"mixture": list(entries)}))
    return DataConfig(dataset=str(path))


@pytest.fixture
def two(tmp_path: Path) -> Path:
    (tmp_path / "a.jsonl").write_text(rows("a", 20))
    (tmp_path / "b.jsonl").write_text(rows("b", 10, "content"))
    return tmp_path


def test_shares_are_those_of_the_weights_all_along(two: Path) -> None:
    config = mixed(two, {"dataset": "a.jsonl", "weight": 3}, {"dataset": "b.jsonl", "weight": 1, "column": "content"})
    assert problems(config) == []
    lengths = {"a": 0, "b": 0}
    for document in documents(config, "train"):
        assert isinstance(document, str)
        lengths[document[0]] += len(document)
        assert abs(lengths["a"] - 3 * lengths["b"]) <= 30  # never further off than a document of each
    assert lengths["a"] == 40 * 20  # until the first dataset has no more
    assert {document[0] for document in documents(config, "heldout")} == {"a", "b"}


def test_each_document_once_in_the_order_of_its_dataset(two: Path) -> None:
    config = mixed(two, {"dataset": "a.jsonl", "weight": 1}, {"dataset": "b.jsonl", "weight": 2, "column": "content"})
    found = [str(document) for document in documents(config, "train")]
    for letter in "ab":
        own = [document for document in found if document[0] == letter]
        assert own == sorted(set(own))


def test_the_hash_is_of_content_and_weights_not_of_paths(two: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    entries = [{"dataset": "a.jsonl", "weight": 1}, {"dataset": "b.jsonl", "weight": 2, "column": "content"}]
    config = mixed(two, *entries)
    before = content_hash(config)
    other = tmp_path_factory.mktemp("other")
    for name in ("a.jsonl", "b.jsonl"):
        (other / name).write_text((two / name).read_text())
    assert content_hash(mixed(other, *entries)) == before
    assert content_hash(mixed(two, entries[0], {**entries[1], "weight": 3})) != before
    (two / "b.jsonl").write_text(rows("c", 10, "content"))
    assert content_hash(mixed(two, *entries)) != before


def test_what_is_mixed_is_said(two: Path) -> None:
    config = mixed(two, {"dataset": "a.jsonl", "weight": 3}, {"dataset": "b.jsonl", "weight": 1})
    assert in_words(config) == f"0.75 of {two / 'a.jsonl'}, 0.25 of {two / 'b.jsonl'}"
    assert in_words(DataConfig(dataset=str(two / "a.jsonl"))) == ""


@pytest.mark.parametrize(
    ("entries", "problem"),
    [
        ([{"dataset": "a.jsonl", "weight": 1}], "two datasets or more"),
        ([{"dataset": "a.jsonl", "weight": 0}, {"dataset": "b.jsonl", "weight": 1}], "weight"),
        ([{"dataset": "a.jsonl"}, {"dataset": "b.jsonl", "weight": 1}], "weight"),
        ([{"dataset": "a.jsonl", "weight": 1, "colum": "text"}, {"dataset": "b.jsonl", "weight": 1}], "colum"),
        ([{"dataset": "a.jsonl", "weight": 1}, {"dataset": "gone.jsonl", "weight": 1}], "gone.jsonl"),
        ([{"dataset": "a.jsonl", "weight": 1}, {"dataset": "mixture.yaml", "weight": 1}], "of other datasets"),
        ([{"dataset": "a.jsonl", "weight": 1}, {"dataset": "b.jsonl", "weight": 1}], "`data.text_column`"),
        ([{"dataset": "a.jsonl", "weight": 1}, {"dataset": "ids.jsonl", "weight": 1}], "all be of text"),
    ],
)
def test_what_is_refused(two: Path, entries: list[dict[str, object]], problem: str) -> None:
    (two / "ids.jsonl").write_text("\n".join(json.dumps({"input_ids": [1, 2], "split": split}) for split in SPLITS))
    found = "\n".join(problems(mixed(two, *entries)))
    assert problem in found
    assert str(two) in found


def test_paths_are_those_beside_the_file_alone(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (two / "sub").mkdir()
    config = mixed(two / "sub", {"dataset": "../a.jsonl", "weight": 1}, {"dataset": "b.jsonl", "weight": 1})
    monkeypatch.chdir(two)  # where there is a b.jsonl
    assert str(two / "sub" / "b.jsonl") in problems(config)[0]


def test_a_file_that_is_none(two: Path) -> None:
    (two / "mixture.yaml").write_text("mixture: [")
    assert "readable file of a mixture" in problems(DataConfig(dataset=str(two / "mixture.yaml")))[0]
    with pytest.raises(ConfigError, match="must exist"):
        content_hash(DataConfig(dataset=str(two / "other.yaml")))
