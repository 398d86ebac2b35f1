import hashlib
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict

from sae_core.activations.files import hash_files
from sae_core.activations.language_model.data_config import DataConfig
from sae_core.activations.language_model.dataset import Part, content_hash, documents, problems
from sae_core.errors import ConfigError

ROWS = [
    {"text": "one", "split": "train"},
    {"text": "two", "split": "heldout"},
    {"text": "", "split": "train"},
    {"text": "three", "split": "train"},
]


def write(directory: Path, suffix: str) -> str:
    path = directory / f"text{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    elif suffix == ".json":
        path.write_text(json.dumps(ROWS))
    elif suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in ROWS))
    else:
        path.write_text("one\n\ntwo\nthree\n")
    return str(path)


def texts(part: Part, **fields: object) -> list[object]:
    return list(documents(DataConfig.model_validate(fields), part))


@pytest.mark.parametrize("suffix", [".parquet", ".json", ".jsonl"])
def test_split_column_of_a_file(tmp_path: Path, suffix: str) -> None:
    name = write(tmp_path, suffix)
    assert texts("train", dataset=name) == ["one", "three"]
    assert texts("heldout", dataset=name) == ["two"]


def test_one_split_for_both_parts_holds_out_by_hash(tmp_path: Path) -> None:
    path = tmp_path / "lines.txt"
    lines = [f"line {i}" for i in range(200)]
    path.write_text("\n".join(lines))
    held_out = [line for line in lines if int(hashlib.sha256(line.encode()).hexdigest(), 16) % 10 == 0]
    fields = {"dataset": str(path), "eval_split": "train"}
    assert texts("heldout", **fields) == held_out
    assert texts("train", **fields) == [line for line in lines if line not in held_out]
    assert 5 < len(held_out) < 40


def test_tokenised_rows(tmp_path: Path) -> None:
    path = tmp_path / "tokens.parquet"
    pq.write_table(pa.table({"ids": [[1, 2, 3], [4], []], "split": ["train", "heldout", "train"]}), path)
    assert texts("train", dataset=str(path), tokens_column="ids") == [[1, 2, 3]]
    shared = {"dataset": str(path), "tokens_column": "ids", "eval_split": "train"}
    assert [*texts("train", **shared), *texts("heldout", **shared)] == [[1, 2], [3]]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.slow
def test_directory_of_files(tmp_path: Path, streaming: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "data").mkdir()
    for split in ("train", "test"):
        pq.write_table(pa.table({"text": [f"{split} text"]}), tmp_path / "data" / f"{split}.parquet")
    fields = {"dataset": str(tmp_path / "data"), "eval_split": "test", "streaming": streaming}
    assert texts("train", **fields) == ["train text"]
    assert texts("heldout", **fields) == ["test text"]


def test_saved_data_sets(tmp_path: Path) -> None:
    train, valid = Dataset.from_dict({"text": ["a"]}), Dataset.from_dict({"text": ["b"]})
    DatasetDict({"train": train, "valid": valid}).save_to_disk(tmp_path / "both")
    train.save_to_disk(tmp_path / "one")
    assert texts("heldout", dataset=str(tmp_path / "both"), eval_split="valid") == ["b"]
    one = {"dataset": str(tmp_path / "one"), "eval_split": "train"}
    assert [*texts("train", **one), *texts("heldout", **one)] == ["a"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"text_column": "txt"}, r"`data\.text_column` must be one of \['split', 'text'\], but got 'txt'\. Did you mean 'text'\?"),
        ({"tokens_column": "ids"}, r"`data\.tokens_column` must be one of .* but got 'ids'"),
        ({"train_split": "trian"}, r"`data\.train_split` must be one of \['heldout', 'train'\], but got 'trian'\. Did you mean 'train'\?"),
        ({"eval_split": "test"}, r"`data\.eval_split` must be one of .* but got 'test'.*set it to 'train'"),
    ],
)
def test_wrong_names_say_what_there_is(tmp_path: Path, fields: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        texts("train", dataset=write(tmp_path, ".parquet"), **fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"text_column": "n"},
            r"`data\.text_column` must hold text .*but got 'n' with int in row 1\..* Columns are \['ids', 'n', 'text'\]",
        ),
        (
            {"text_column": "ids"},
            r"must hold text \(for token ids use `data\.tokens_column`\), but got 'ids' with list",
        ),
        ({"tokens_column": "text"}, r"`data\.tokens_column` must hold lists of token ids, .*but got 'text' with 'a' \(str\)"),
    ],
)
def test_columns_of_another_kind_are_refused(tmp_path: Path, fields: dict[str, str], message: str) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"text": ["a"], "n": [1], "ids": [[1, 2]]}), path)
    with pytest.raises(ConfigError, match=message):
        texts("train", dataset=str(path), eval_split="train", **fields)


def test_looking_for_problems_downloads_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "data").mkdir()
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "data" / "train.parquet")
    assert problems(DataConfig(dataset=str(tmp_path / "data"), eval_split="train", streaming=False)) == []
    assert not list((tmp_path / "cache").rglob("*.arrow"))


def test_every_problem_is_found(tmp_path: Path) -> None:
    config = DataConfig(dataset=write(tmp_path, ".jsonl"), text_column="a", train_split="b", eval_split="c")
    assert len(problems(config)) == 3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere/at/all", "must exist, but got 'nowhere/at/all'"),
        ("./missing", r"must exist, but got '\./missing'"),
        ("missing.parquet", r"must exist, but got 'missing\.parquet'"),
        ("nobody/nothing", "reachable Hugging Face Hub dataset, but got 'nobody/nothing'.*network"),
    ],
)
def test_missing_data_sets(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        texts("train", dataset=name)


def test_unknown_file_format(tmp_path: Path) -> None:
    (tmp_path / "text.csv").write_text("a,b")
    with pytest.raises(ConfigError, match=r"\.parquet.*but got '.*text\.csv'"):
        texts("train", dataset=str(tmp_path / "text.csv"))


def test_hash_is_of_the_content(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    here, there = write(tmp_path, ".jsonl"), write(tmp_path / "other", ".jsonl")
    assert content_hash(DataConfig(dataset=here)) == content_hash(DataConfig(dataset=there))
    folder = content_hash(DataConfig(dataset=str(tmp_path / "other")))
    Path(there).write_text("{}")
    assert content_hash(DataConfig(dataset=here)) != content_hash(DataConfig(dataset=there))
    assert folder != content_hash(DataConfig(dataset=str(tmp_path / "other")))


def test_hash_is_of_the_files_that_are_read(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    write(tmp_path / "d", ".jsonl")
    config = DataConfig(dataset=str(tmp_path / "d"))
    before = content_hash(config)
    # As it was when all files of a directory were hashed: caches of activations made then are found.
    assert before == hash_files([tmp_path / "d/text.jsonl"], tmp_path / "d")
    for name in (".DS_Store", "cache-0a.arrow", "tmp0a.arrow", "text.jsonl.lock", "LICENSE", "README.md"):
        (tmp_path / "d" / name).write_text("nobody reads it as text")
    (tmp_path / "d/.cache/huggingface").mkdir(parents=True)
    (tmp_path / "d/.cache/huggingface/text.jsonl").write_text("{}")
    assert content_hash(config) == before
    (tmp_path / "d/more.jsonl").write_text('{"text": "four"}')
    assert content_hash(config) != before


def test_hash_of_a_saved_data_set(tmp_path: Path) -> None:
    DatasetDict({"train": Dataset.from_dict({"text": ["a", "b"]})}).save_to_disk(tmp_path / "both")
    config = DataConfig(dataset=str(tmp_path / "both"))
    before = content_hash(config)
    assert before == hash_files(sorted(file for file in (tmp_path / "both").rglob("*") if file.is_file()), tmp_path / "both")
    (tmp_path / "both/train/cache-0a.arrow").write_bytes(b"indices")
    (tmp_path / "both/.DS_Store").write_bytes(b"")
    assert content_hash(config) == before
    data = tmp_path / "both/train/data-00000-of-00001.arrow"
    data.write_bytes(data.read_bytes().replace(b"ab", b"ac"))
    assert content_hash(config) != before


def test_nothing_is_written_where_a_local_directory_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "d").mkdir()
    write(tmp_path / "d", ".jsonl")
    config = DataConfig(dataset=str(tmp_path / "d"), eval_split="train", streaming=False)
    assert list(documents(config, "train"))
    content_hash(config)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["d", "text.jsonl"]


def test_fields_that_would_have_no_effect(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"`text_column` must be left out .* but got text_column='body' and tokens_column='ids'"):
        DataConfig(dataset="owner/text", text_column="body", tokens_column="ids")
    with pytest.raises(ConfigError, match=r"`data\.subset` must be left out where the dataset is one file, but got 'en'"):
        texts("train", dataset=write(tmp_path, ".jsonl"), subset="en")
