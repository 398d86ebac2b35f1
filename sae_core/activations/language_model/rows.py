"""Rows of local files: parquet, JSON and plain text, compressed or not. A path is a path here, whatever characters are in it.

JSON may be one object per line, an array of objects, or one object: of columns of the same length, or a single row. In a .txt file a line
is a row. Text is UTF-8, with or without a byte order mark.
"""

import bz2
import gzip
import io
import json
import lzma
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]

FILE_FORMATS = (".parquet", ".json", ".jsonl", ".txt")
COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
"""Endings that .json, .jsonl and .txt may have behind their own."""
ROWS_AT_A_TIME = 256
LFS_POINTER = b"version https://git-lfs"
"""What a file starts with that git-lfs has not downloaded yet."""


def file_format(path: Path) -> str | None:
    """Ending of a file that can be read, without that of its compression; None where it cannot."""
    endings = [suffix.lower() for suffix in path.suffixes[-2:]]
    if endings and endings[-1] in COMPRESSIONS:
        inner = endings[0] if len(endings) == 2 else ""
        return inner if inner in FILE_FORMATS and inner != ".parquet" else None
    return endings[-1] if endings and endings[-1] in FILE_FORMATS else None


def read_rows(path: Path, columns: Sequence[str] | None = None) -> Iterator[Row]:
    """The rows of a file; of parquet, only these columns of them.

    Raises:
        Exception: whatever libraries raise for a file that cannot be read; ValueError for what is not as described above.
    """
    kind = file_format(path)
    assert kind is not None, f"{path=} is of a format that callers refuse"
    check_file(path)
    if kind == ".parquet":
        yield from _parquet_rows(path, columns)
        return
    with _opened(path) as binary, io.TextIOWrapper(binary, encoding="utf-8-sig") as file:
        yield from ({"text": line.rstrip("\n")} for line in file) if kind == ".txt" else _json_rows(file)


def check_file(path: Path) -> None:
    """Make sure that a file is there, and not a pointer to one.

    Raises:
        ValueError: git-lfs has not downloaded it, or it is a link to nothing.
    """
    if path.is_symlink() and not path.exists():
        raise ValueError(f"{str(path)!r} is a link to a file that does not exist")
    if not path.is_file():
        raise ValueError(f"{str(path)!r} is no file")
    with path.open("rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise ValueError(f"{str(path)!r} is a git-lfs pointer: run `git lfs pull` there")


def _parquet_rows(path: Path, columns: Sequence[str] | None) -> Iterator[Row]:
    import pyarrow.parquet as pq

    with path.open("rb") as file, pq.ParquetFile(file) as table:
        for batch in table.iter_batches(batch_size=ROWS_AT_A_TIME, columns=list(columns) if columns else None):
            yield from batch.to_pylist()


def _opened(path: Path) -> io.BufferedReader:
    """The file's bytes, decompressed."""
    match path.suffix.lower():
        case ".gz":
            return io.BufferedReader(gzip.open(path))
        case ".bz2":
            return io.BufferedReader(bz2.open(path))
        case ".xz":
            return io.BufferedReader(lzma.open(path))
        case ".zst":
            import pyarrow as pa

            # Not the zstandard package, which stops at the end of the first frame.
            return io.BufferedReader(pa.input_stream(path.open("rb"), compression="zstd"))
        case _:
            return path.open("rb")


def _json_rows(file: io.TextIOWrapper) -> Iterator[Row]:
    """Rows of JSON in any of its layouts, line by line where a line is a row."""
    lines = enumerate(file, start=1)
    number, first = next(((number, line) for number, line in lines if line.strip()), (0, ""))
    if not first:
        return
    try:
        row = None if first.lstrip().startswith("[") else json.loads(first)
    except json.JSONDecodeError:
        row = None
    if row is None:  # not a row per line
        yield from _whole_json_rows(json.loads(first + "".join(line for _, line in lines)))
        return
    yield _checked(row, number)
    for number, line in lines:
        if line.strip():
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"line {number} is not JSON ({error.msg})") from error
            yield _checked(row, number)


def _whole_json_rows(content: Any) -> Iterator[Row]:
    """Rows of a file that is one JSON value."""
    if isinstance(content, list):
        yield from (_checked(row, number, "element") for number, row in enumerate(content, start=1))
    elif isinstance(content, dict) and content and all(isinstance(value, list) for value in content.values()):
        yield from (dict(zip(content, values, strict=True)) for values in zip(*content.values(), strict=True))
    else:
        yield _checked(content, 1, "element")


def _checked(row: Any, number: int, what: str = "line") -> Row:
    if not isinstance(row, dict):
        raise ValueError(f"{what} {number} holds {type(row).__name__}, not an object")
    return row
