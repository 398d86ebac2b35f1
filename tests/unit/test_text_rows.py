import bz2
import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sae_core.activations.language_model.rows import file_format, read_rows

ROWS = [{"text": "one", "n": 1}, {"text": "zwei ä", "n": None}]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def zstd(content: bytes) -> bytes:
    """One frame."""
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as file:
        file.write(content)
    return bytes(sink.getvalue())


def rows(path: Path) -> list[dict[str, Any]]:
    return list(read_rows(path))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.parquet", ".parquet"),
        ("a.b.JSONL", ".jsonl"),
        ("a.json.zst", ".json"),
        ("a.txt.gz", ".txt"),
        ("a.parquet.gz", None),
        ("a.gz", None),
        ("a.csv", None),
        ("jsonl", None),
    ],
)
def test_formats(name: str, kind: str | None) -> None:
    assert file_format(Path(name)) == kind


@pytest.mark.parametrize(
    ("suffix", "compress"),
    [("", bytes), (".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress), (".zst", zstd)],
)
def test_compressed_files_of_several_parts(tmp_path: Path, suffix: str, compress: Any) -> None:
    path = tmp_path / f"rows.jsonl{suffix}"
    path.write_bytes(compress(LINES) + compress(LINES))
    assert rows(path) == ROWS * 2


@pytest.mark.parametrize("name", ["a[1].jsonl", "100% #1?*.jsonl", "zip::a b.jsonl", "ünï.jsonl", "{a,b}.jsonl"])
def test_a_path_is_no_pattern(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(LINES)
    assert rows(tmp_path / name) == ROWS


@pytest.mark.parametrize(
    "content",
    [
        json.dumps(ROWS),
        json.dumps(ROWS, indent=2),
        json.dumps({"text": ["one", "zwei ä"], "n": [1, None]}, indent=1),
        "\ufeff" + LINES.decode(),
        "\n\n" + LINES.decode().replace("\n", "\r\n\r\n"),
        LINES.decode().rstrip(),
    ],
    ids=["array", "indented array", "columns", "byte order mark", "empty lines", "no last newline"],
)
def test_layouts_of_json(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.json").write_bytes(content.encode())
    assert rows(tmp_path / "a.json") == ROWS


def test_one_object_is_a_row(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(ROWS[0], indent=1))
    assert rows(tmp_path / "a.json") == ROWS[:1]


def test_nothing_has_no_rows(tmp_path: Path) -> None:
    for name in ("a.json", "a.jsonl", "a.txt"):
        (tmp_path / name).write_text("")
        assert rows(tmp_path / name) == []


def test_rows_of_several_types(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": 1}\n{"text": "a"}\n{"text": {"b": 1}}\n')
    assert [row["text"] for row in rows(tmp_path / "a.jsonl")] == [1, "a", {"b": 1}]


def test_lines_of_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"one\r\n\ntwo three \n")
    assert [row["text"] for row in rows(tmp_path / "a.txt")] == ["one", "", "two three "]


def test_only_the_columns_asked_for_are_read(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    assert list(read_rows(tmp_path / "a.parquet", ["n"])) == [{"n": 1}, {"n": None}]
    assert rows(tmp_path / "a.parquet") == ROWS


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "a"}\n{"text": \n', "line 2 is not JSON"),
        ('{"text": "a"}\n\n"b"\n', "line 3 holds str, not an object"),
        ('[{"text": "a"}, 5]', "element 2 holds int, not an object"),
        ("3\n", "element 1 holds int, not an object"),
        ("not JSON", "Expecting value"),
    ],
)
def test_what_is_no_row_is_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(ValueError, match=message):
        rows(tmp_path / "a.jsonl")


def test_a_pointer_of_git_lfs_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "train.txt"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 12\n")
    with pytest.raises(ValueError, match=r"train\.txt' is a git-lfs pointer: run `git lfs pull` there"):
        list(read_rows(path))


def test_a_link_to_nothing_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").symlink_to(tmp_path / "gone.jsonl")
    with pytest.raises(ValueError, match=r"a\.jsonl' is a link to a file that does not exist, or no file"):
        list(read_rows(tmp_path / "a.jsonl"))
