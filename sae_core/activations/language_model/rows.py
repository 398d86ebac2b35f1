"""Rows of local files and directories: parquet, JSON and plain text, compressed or not. A path is a path, whatever characters are in it.

JSON may be one object per line, an array of objects, or one object: of columns of the same length, or a single row. In a .txt file a line
is a row. Text is UTF-8, with or without a byte order mark.

Which files of a directory belong to which split the datasets library decides, by file names and the header of a README. It takes a path for
a pattern and writes into its cache, so it is given a temporary directory of links to the files.
"""

import bz2
import gzip
import io
import json
import lzma
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

Row = dict[str, Any]
Rows = Callable[[Sequence[str] | None], Iterable[Row]]
"""Rows that can be read again and again, in order: of these columns at least; None: of all."""

FILE_FORMATS = (".parquet", ".json", ".jsonl", ".txt")
COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
"""Endings that .json, .jsonl and .txt may have behind their own."""
ROWS_AT_A_TIME = 256
LFS_POINTER = b"version https://git-lfs"
"""What a file starts with that git-lfs has not downloaded yet."""
CACHE_FILES = ("cache-*.arrow", "tmp*.arrow", "*.lock", "*.pyc")
"""What libraries write beside data."""


def file_format(path: Path) -> str | None:
    """Ending of a file that can be read, without that of its compression; None where it cannot."""
    *_, before, last = ["", "", *(suffix.lower() for suffix in path.suffixes)]
    if last in COMPRESSIONS:
        return before if before in FILE_FORMATS and before != ".parquet" else None
    return last if last in FILE_FORMATS else None


def read_rows(path: Path, columns: Sequence[str] | None = None) -> Iterator[Row]:
    """The rows of a file; of parquet, only these columns of them.

    Raises:
        Exception: whatever libraries raise for a file that cannot be read; ValueError for what is not as described above.
    """
    check_file(path)
    kind = file_format(path)
    if kind == ".parquet":
        import pyarrow.parquet as pq

        with path.open("rb") as file, pq.ParquetFile(file) as table:
            for batch in table.iter_batches(batch_size=ROWS_AT_A_TIME, columns=list(columns) if columns else None):
                yield from batch.to_pylist()
        return
    with _opened(path) as binary, io.TextIOWrapper(binary, encoding="utf-8-sig") as text:
        yield from ({"text": line.rstrip("\n")} for line in text) if kind == ".txt" else _json_rows(text)


def check_file(path: Path) -> None:
    """Make sure that a file is there, and not a pointer to one.

    Raises:
        ValueError: git-lfs has not downloaded it, or it is a link to nothing.
    """
    if not path.is_file():
        raise ValueError(f"{str(path)!r} is a link to a file that does not exist, or no file")
    with path.open("rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise ValueError(f"{str(path)!r} is a git-lfs pointer: run `git lfs pull` there")


def _opened(path: Path) -> io.BufferedReader:
    """The file's bytes, decompressed."""
    if path.suffix.lower() == ".zst":
        import pyarrow as pa

        # Not the zstandard package, which stops at the end of the first frame.
        return io.BufferedReader(pa.input_stream(path.open("rb"), compression="zstd"))
    decompress: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
    return io.BufferedReader(decompress.get(path.suffix.lower(), io.FileIO)(path))


def _json_rows(file: Iterable[str]) -> Iterator[Row]:
    """Rows of JSON in any of its layouts, line by line where a line is a row."""
    lines = ((number, line) for number, line in enumerate(file, start=1) if line.strip())
    for first in lines:
        try:
            per_line = isinstance(json.loads(first[1]), dict)
        except json.JSONDecodeError:
            per_line = False
        if not per_line:
            yield from _whole_json_rows(json.loads(first[1] + "".join(line for _, line in lines)))
            return
        for number, line in chain([first], lines):
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"line {number} is not JSON ({error.msg})") from error
            yield _checked(row, f"line {number}")


def _whole_json_rows(content: Any) -> Iterator[Row]:
    """Rows of a file that is one JSON value."""
    if isinstance(content, dict) and content and all(isinstance(value, list) for value in content.values()):
        yield from (dict(zip(content, values, strict=True)) for values in zip(*content.values(), strict=True))
        return
    for number, row in enumerate(content if isinstance(content, list) else [content], start=1):
        yield _checked(row, f"element {number}")


def _checked(row: Any, where: str) -> Row:
    if not isinstance(row, dict):
        raise ValueError(f"{where} holds {type(row).__name__}, not an object")
    return row


def is_saved_dataset(path: Path) -> bool:
    """Whether the datasets library saved it with `save_to_disk`."""
    return (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()


def files_of_splits(path: Path, subset: str | None) -> Mapping[str, list[Path]]:
    """Split -> its files, of a directory that is no saved dataset.

    Raises:
        Exception: whatever the datasets library raises for a directory it cannot make sense of.
        ValueError: it holds no data files, or a loading script.
    """
    import datasets

    if (script := path / f"{path.name}.py").is_file():
        raise ValueError(
            f"it holds the loading script {script.name!r}, which no current version of datasets runs: convert the data to parquet, or "
            "remove the script if the files beside it are the data"
        )
    originals = {}
    with tempfile.TemporaryDirectory(prefix="sae-sweep-") as temporary:
        for file in _content(path):
            if file != path / "README.md" or _decides(file):
                check_file(file)
                link = Path(temporary).resolve() / "data" / file.relative_to(path)
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(file.resolve())
                originals[link] = file
        if not originals:
            raise ValueError("it holds no data files")
        builder = datasets.load_dataset_builder(str(Path(temporary).resolve() / "data"), subset, cache_dir=f"{temporary}/cache")
        found = builder.config.data_files or {}
    return {str(split): [originals[Path(name)] for name in names] for split, names in found.items()}


def files_read(path: Path, subset: str | None) -> list[Path]:
    """The files of a directory that decide the text: not those that a library, a file browser or a version control wrote beside them."""
    if is_saved_dataset(path):
        return _content(path)
    found = {file for files in files_of_splits(path, subset).values() for file in files}
    return sorted(found | {readme for readme in [path / "README.md"] if _decides(readme)})


def _content(path: Path) -> list[Path]:
    """Files of a directory that are neither hidden nor a cache, and links to data that is not there."""
    visible = (file for file in path.rglob("*") if not any(part.startswith((".", "__")) for part in file.relative_to(path).parts))
    files = (file for file in visible if not any(file.match(pattern) for pattern in CACHE_FILES))
    return sorted(file for file in files if file.is_file() or (file.is_symlink() and not file.exists() and file_format(file)))


def _decides(readme: Path) -> bool:
    """Whether a README has a header that says which files are which split."""
    if not readme.is_file():
        return False
    text = readme.read_text(encoding="utf-8", errors="replace")
    return text.startswith("---") and "configs:" in text
