"""Files of published results as rows of cells, as they were written: CSV, Parquet, JSON, and directories of SAEBench results."""

import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.foreign import saebench
from sae_core.errors import ConfigError, UnknownNameError, border
from sae_core.records import flat

SEPARATORS = {".csv": ",", ".tsv": "\t"}


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of a file, not yet interpreted."""

    cells: tuple[Mapping[str, Any], ...]
    """Per row: name of a column -> its cell."""
    places: tuple[str, ...]
    """What to call each row in messages, e.g. "row 3"."""
    columns: tuple[str, ...]
    """Every column that a row has."""
    several: Mapping[str, bool]
    """Columns that stand several times in the file -> whether they hold the same."""
    mapping: Mapping[str, str]
    """Our column -> theirs, where the format itself says what its columns are."""

    @classmethod
    def of(cls, cells: Sequence[Mapping[str, Any]], places: Sequence[str] = (), mapping: Mapping[str, str] | None = None) -> "Rows":
        """Rows whose columns have different names."""
        columns = dict.fromkeys(name for row in cells for name in row)
        return cls(tuple(cells), tuple(places or (f"row {index}" for index, _ in enumerate(cells, 1))), tuple(columns), {}, mapping or {})


def read_rows(path: Path, rows: str | None) -> Rows:
    """Read a file or a directory.

    Args:
        rows: of a JSON file: path of the list that holds the rows, e.g. "per_sae".

    Raises:
        ConfigError: it cannot be read, or it does not say what its rows are.
    """
    with border(
        f"a table must be a readable CSV, TSV, Parquet or JSON file, or a directory of JSON files, but got {str(path)!r}", "Correct it."
    ):
        if path.is_dir():
            return Rows.of(*saebench.read_directory(path))
        names = path.name.lower().removesuffix(".gz")
        kind = Path(names).suffix
        if kind in SEPARATORS:
            return _of_csv(path, SEPARATORS[kind])
        if kind in (".parquet", ".pq"):
            return of_frame(pd.read_parquet(path))
        if kind in (".jsonl", ".ndjson"):
            return _of_lines([json.loads(line) for line in _text(path).splitlines() if line.strip()])
        if kind == ".json":
            return _of_json(json.loads(_text(path)), rows, path)
    raise ConfigError(
        f"a table must be a CSV, TSV, Parquet or JSON file, or a directory of JSON files, but got {str(path)!r}. Convert it first."
    )


def of_frame(frame: pd.DataFrame) -> Rows:
    """Rows of a DataFrame. Its index is not read."""
    return _of_columns([str(name) for name in frame.columns], frame.astype(object).where(frame.notna(), None).to_numpy().tolist())


def _text(path: Path) -> str:
    content = path.read_bytes()
    return (gzip.decompress(content) if path.name.lower().endswith(".gz") else content).decode("utf-8-sig")


def _of_csv(path: Path, separator: str) -> Rows:
    """Cells stay the text they are: what a number is, is decided later, by name of the cell."""
    table = pd.read_csv(path, header=None, dtype=str, sep=separator, keep_default_na=False, encoding="utf-8-sig", skipinitialspace=True)
    header, *rows = table.to_numpy().tolist()
    return _of_columns([str(name).strip() for name in header], rows)


def _of_columns(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> Rows:
    """Of columns with the same name the first is read; whether the others hold the same is noted."""
    first: dict[str, int] = {}
    several: dict[str, bool] = {}
    for index, name in enumerate(names):
        if name in first:
            several[name] = several.get(name, True) and all(row[index] == row[first[name]] for row in rows)
        first.setdefault(name, index)
    cells = [{name: row[index] for name, index in first.items()} for row in rows]
    return Rows(tuple(cells), tuple(f"row {index}" for index in range(1, len(rows) + 1)), tuple(first), several, {})


def _of_lines(objects: Sequence[Any]) -> Rows:
    if not all(isinstance(item, Mapping) for item in objects):
        raise ValueError("a line is not a JSON object")
    return Rows.of([flat(item) for item in objects])


def _of_json(content: Any, rows: str | None, path: Path) -> Rows:
    """A list of objects, an object of objects, or an object with one list of objects, whose other fields hold for every row."""
    if isinstance(content, Mapping) and saebench.is_result(content):
        return Rows.of(*saebench.rows_of([(path.name, content)]))
    if isinstance(content, Sequence) and not isinstance(content, str):
        return _of_lines(content)
    if not isinstance(content, Mapping):
        raise ValueError(f"it holds {type(content).__name__}, neither a list of objects nor an object")
    lists = {name: items for name, items in flat(content).items() if isinstance(items, list) and items and isinstance(items[0], Mapping)}
    if rows is not None and rows not in lists:
        raise UnknownNameError.of("`rows`", rows, lists)
    if rows is None and len(lists) > 1:
        raise ConfigError(f"`rows` must name the list of rows, but {str(path)!r} has several: {sorted(lists)}. Pass one of them.")
    if lists:
        name = rows or next(iter(lists))
        shared = {key: value for key, value in flat(content).items() if key not in lists}
        return Rows.of([{**shared, **flat(item)} for item in lists[name]])
    if content and all(isinstance(item, Mapping) for item in content.values()):
        return Rows.of([{"name": name, **flat(item)} for name, item in content.items()], [f"row {name!r}" for name in content])
    return Rows.of([flat(content)])
