"""documents.py on data as it is found: odd columns, odd values, odd files. Either read, or one message."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict

from sae_core.activations.language_model import dataset as module
from sae_core.activations.language_model.data_config import DataConfig
from sae_core.activations.language_model.dataset import Document, Part, documents, problems
from sae_core.errors import ConfigError

SHARED = {"train_split": "train", "eval_split": "train"}


def config(dataset: Path | str, **fields: Any) -> DataConfig:
    return DataConfig.model_validate({"dataset": str(dataset), **SHARED, **fields})


def all_of(dataset: Path | str, **fields: Any) -> list[Document]:
    """The documents of both parts."""
    parts: tuple[Part, Part] = ("train", "heldout")
    return [document for part in parts for document in documents(config(dataset, **fields), part)]


def write(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def texts(n: int) -> list[dict[str, str]]:
    return [{"text": f"text {index}"} for index in range(n)]


def same(found: list[Document], rows: list[dict[str, str]]) -> bool:
    return sorted(map(str, found)) == sorted(row["text"] for row in rows)


# Values of columns


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([5, -100], "got 'ids' with -100 \\(int\\) in row 2"),
        ([1.0, 2.0], r"got 'ids' with 1.0 \(float\) in row 2"),
        ([True, False], r"got 'ids' with True \(bool\) in row 2"),
        ([1, None], r"got 'ids' with None \(NoneType\) in row 2"),
        (["1"], r"got 'ids' with '1' \(str\) in row 2"),
        (7, r"got 'ids' with 7 \(int\) in row 2"),
        ({"a": 1}, r"got 'ids' with .* \(dict\) in row 2"),
        ([[1, [2]]], r"got 'ids' with \[2\] \(list\) in row 2"),
        ([2**70], r"got 'ids' with 1180.* \(int\) in row 2"),
    ],
)
def test_what_is_no_token_id_is_refused(tmp_path: Path, ids: Any, message: str) -> None:
    path = write(tmp_path / "a.jsonl", [{"ids": [1, 2]}, {"ids": ids}])
    with pytest.raises(ConfigError, match=f"`data.tokens_column` must hold lists of token ids, .*but {message}"):
        all_of(path, tokens_column="ids")


def test_ids_that_the_model_does_not_have_are_found_before_anything_starts(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"ids": [1, 2]}, {"ids": [3, 4096]}])
    (problem,) = problems(config(path, tokens_column="ids"), 4096)
    assert "token ids must be < 4096, the model's vocabulary, but got 4096 in `ids`" in problem
    assert problems(config(path, tokens_column="ids"), 4097) == []


def test_lists_of_lists_are_documents(tmp_path: Path) -> None:
    rows = [{"ids": [[1, 2, 3]]}, {"ids": [[4, 5], [6, 7]]}, {"ids": []}, {"ids": [[]]}, {"ids": None}]
    path = write(tmp_path / "a.jsonl", [{**row, "split": split} for row in rows for split in ("a", "b")])
    found = documents(config(path, tokens_column="ids", train_split="a", eval_split="b"), "train")
    assert list(found) == [[1, 2, 3], [4, 5], [6, 7]]


@pytest.mark.parametrize("kind", ["torch", "numpy", "pandas", "arrow"])
def test_datasets_saved_in_another_format(tmp_path: Path, kind: str) -> None:
    ids = [[index, index + 1] for index in range(40)]
    saved = Dataset.from_dict({"ids": ids})
    saved.set_format(kind, columns=["ids"])
    saved.save_to_disk(tmp_path / "saved")
    assert sorted(all_of(tmp_path / "saved", tokens_column="ids")) == ids


def test_text_that_is_null_or_absent_is_left_out(tmp_path: Path) -> None:
    rows = [*texts(30), {"text": None}, {"other": "a"}, {"text": ""}]
    assert same(all_of(write(tmp_path / "a.jsonl", rows)), rows[:30])


def test_half_a_character_is_replaced(tmp_path: Path) -> None:
    rows = [{"text": f"a\ud800b {index}"} for index in range(30)]
    found = all_of(write(tmp_path / "a.jsonl", rows))
    assert sorted(found) == sorted(f"a\ufffdb {index}" for index in range(30))


@pytest.mark.parametrize("value", [{"a": "b"}, ["a"], 3, 2.5, True])
def test_a_column_that_is_not_text_is_refused_by_its_row(tmp_path: Path, value: Any) -> None:
    path = write(tmp_path / "a.jsonl", [{"text": "a"}, {"text": value}])
    (problem,) = problems(config(path))
    assert "`data.text_column` must hold text" in problem and f"got 'text' with {type(value).__name__} in row 2" in problem
    with pytest.raises(ConfigError, match=f"got 'text' with {type(value).__name__} in row 2"):
        all_of(path)


def test_what_is_wrong_far_down_is_refused_where_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHECKED_ROWS", 5)
    path = write(tmp_path / "a.jsonl", [*texts(30), {"text": 5}])
    assert problems(config(path)) == []
    with pytest.raises(ConfigError, match="got 'text' with int in row 31"):
        all_of(path)


# Splits


@pytest.mark.parametrize(
    ("values", "names"),
    [([0, 1], ["0", "1"]), ([True, False], ["true", "false"]), ([None, "b"], ["null", "b"]), ([2.5, {"a": 1}], ["2.5", '{"a": 1}'])],
)
def test_a_split_column_of_any_type(tmp_path: Path, values: list[Any], names: list[str]) -> None:
    rows = [{"text": f"{value} {index}", "split": value} for index in range(3) for value in values]
    path = write(tmp_path / "a.jsonl", rows)
    for value, name in zip(values, names, strict=True):
        found = list(documents(config(path, train_split=name, eval_split=names[0]), "train"))
        if name != names[0]:
            assert found == [f"{value} {index}" for index in range(3)]
    problem = problems(config(path))[0]
    assert "but got 'train'" in problem and names[0] in problem and "values of the file's column 'split', if it has one" in problem


def test_a_single_document_is_cut(tmp_path: Path) -> None:
    text = "".join(map(str, range(50)))  # 90 characters
    path = write(tmp_path / "a.jsonl", [{"text": text}])
    assert list(documents(config(path), "train")) == [text[:81]]
    assert list(documents(config(path), "heldout")) == [text[81:]]
    path = write(tmp_path / "b.jsonl", [{"ids": list(range(100))}])
    assert list(documents(config(path, tokens_column="ids"), "heldout")) == [list(range(90, 100))]


def test_few_documents_that_the_hash_parts_are_not_cut(tmp_path: Path) -> None:
    rows = texts(30)
    found = list(documents(config(write(tmp_path / "a.jsonl", rows)), "heldout"))
    assert 0 < len(found) < 10 and set(map(str, found)) < {row["text"] for row in rows}


# Files and directories


@pytest.mark.slow
@pytest.mark.parametrize("name", ["run[1]", "100% #1 ?*", "a b", "ünï", "{a,b}", "[!x]"])
@pytest.mark.parametrize("kind", ["directory", "saved"])  # of files: test_text_rows.py
def test_a_path_is_no_pattern(tmp_path: Path, name: str, kind: str) -> None:
    directory, rows = tmp_path / name, texts(40)
    if kind == "saved":
        Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
        (tmp_path / "saved").rename(directory)
        assert same(all_of(directory), rows)
        return
    write(directory / f"{name}.jsonl", rows)
    assert same(all_of(directory), rows)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.slow
def test_compressed_files_in_a_directory(tmp_path: Path, streaming: bool) -> None:
    rows = texts(40)
    (tmp_path / "pile").mkdir()
    with pa.CompressedOutputStream(str(tmp_path / "pile/train.jsonl.zst"), "zstd") as file:
        file.write("\n".join(json.dumps(row) for row in rows).encode())
    assert same(all_of(tmp_path / "pile", streaming=streaming), rows)


def test_a_readme_decides_the_splits_of_a_directory(tmp_path: Path) -> None:
    write(tmp_path / "d/x/one.jsonl", texts(3))
    write(tmp_path / "d/y/two.jsonl", [{"text": "other"}])
    (tmp_path / "d/README.md").write_text(
        "---\nconfigs:\n- config_name: x\n  data_files:\n  - {split: train, path: x/*.jsonl}\n  - {split: valid, path: y/two.jsonl}\n---\n"
    )
    fields = {"subset": "x", "train_split": "train", "eval_split": "valid"}
    assert list(documents(config(tmp_path / "d", **fields), "heldout")) == ["other"]
    (problem,) = problems(config(tmp_path / "d", subset="z"))
    assert "readable local file or directory" in problem and "'z'" in problem


def test_a_directory_of_what_only_the_library_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None, bool]] = []

    def load_dataset(path: str, subset: str | None, *, streaming: bool) -> dict[str, Dataset]:  # the real one leaves the file open
        asked.append((path, subset, streaming))
        return {"train": Dataset.from_list(texts(30))}

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    (tmp_path / "d").mkdir()
    (tmp_path / "d/train.csv").write_text("text\n" + "\n".join(row["text"] for row in texts(30)))
    assert same(all_of(tmp_path / "d"), texts(30))
    assert set(asked) == {(str(tmp_path / "d"), None, True)}


def test_a_directory_with_what_others_leave_in_it(tmp_path: Path) -> None:
    write(tmp_path / "d/train.jsonl", texts(30))
    (tmp_path / "d/.DS_Store").write_bytes(b"\x00")
    (tmp_path / "d/cache-12ab.arrow").write_bytes(b"")
    (tmp_path / "d/gone.log").symlink_to(tmp_path / "nowhere")
    (tmp_path / "d/.git").mkdir()
    write(tmp_path / "d/.git/train.jsonl", [{"text": "hidden"}])
    assert same(all_of(tmp_path / "d"), texts(30))


def test_links_named_as_files_are(tmp_path: Path) -> None:
    write(tmp_path / "blobs/0a1b", texts(30))
    (tmp_path / "d").mkdir()
    (tmp_path / "d/train.jsonl").symlink_to(tmp_path / "blobs/0a1b")
    assert same(all_of(tmp_path / "d"), texts(30))
    assert same(all_of(tmp_path / "d/train.jsonl"), texts(30))


def damaged(path: Path, name: str) -> Path:
    """A file or directory that cannot be read, by the name of what is wrong with it."""
    path.mkdir()
    pq.write_table(pa.table({"text": ["a"] * 1000}), path / "whole.parquet")
    whole = (path / "whole.parquet").read_bytes()
    (path / "whole.parquet").unlink()
    content = {
        "cut.parquet": whole[: len(whole) // 2],
        "empty.parquet": b"",
        "overwritten.parquet": whole[:40] + b"\xff" * 40 + whole[80:],
        "latin-1.jsonl": '{"text": "\xe4"}'.encode("latin-1"),
        "utf-16.txt": "text".encode("utf-16"),
        "deep.json": b"[" * 200_000,
        "number.json": b"1" * 10_000,
        "strings.json": b'["a", "b"]',
        "not-gzip.jsonl.gz": b"plain",
        "not-zstd.jsonl.zst": b"plain",
        "git-lfs.parquet": b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 5\n",
    }
    if name in content:
        (path / name).write_bytes(content[name])
        return path / name
    if name == "script":
        write(path / "train.jsonl", texts(3))
        (path / f"{path.name}.py").write_text("")
    elif name == "cut state":
        Dataset.from_list(texts(3)).save_to_disk(path)
        (path / "state.json").write_text('{"_data_files": [')
    elif name == "lost data":
        Dataset.from_list(texts(3)).save_to_disk(path)
        (path / "data-00000-of-00001.arrow").unlink()
    elif name == "lost split":
        DatasetDict({"train": Dataset.from_list(texts(3))}).save_to_disk(path)
        (path / "train" / "state.json").unlink()
    elif name == "cut file in a directory":
        (path / "train.parquet").write_bytes(whole[:100])
    elif name == "bad readme":
        write(path / "train.jsonl", texts(3))
        (path / "README.md").write_text("---\nconfigs: [\n---\n")
    return path


@pytest.mark.parametrize(
    "name",
    [
        *("cut.parquet", "empty.parquet", "overwritten.parquet", "latin-1.jsonl", "utf-16.txt", "deep.json", "number.json", "strings.json"),
        *("not-gzip.jsonl.gz", "not-zstd.jsonl.zst", "git-lfs.parquet"),
        *("script", "cut state", "lost data", "lost split", "empty directory", "cut file in a directory", "bad readme"),
    ],
)
def test_what_cannot_be_read_is_one_message_that_names_it(tmp_path: Path, name: str) -> None:
    path = damaged(tmp_path / "d", name)
    (problem,) = problems(config(path))
    assert problem.startswith("`data.dataset` must be") and str(path) in problem and "\n" not in problem
    assert "network" not in problem
    with pytest.raises(ConfigError, match=r"`data\.dataset` must be"):
        all_of(path)


@pytest.mark.parametrize("name", ["~nosuchuser/a", "a\0b", "x" * 5000, "x" * 5000 + ".parquet", "\ud800", "", "a/b/c/d"])
@pytest.mark.slow
def test_names_that_are_nothing(name: str) -> None:
    (problem,) = problems(config(name))
    assert problem.startswith("`data.dataset` must ") and "but got" in problem


def test_no_rows(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "a.parquet")
    for path in (tmp_path / "a.parquet", write(tmp_path / "b.jsonl", [])):
        (problem,) = problems(config(path))
        assert f"must have rows, but got none in 'train' of '{path}'" in problem
