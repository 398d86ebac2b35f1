"""Labeled texts for probes: a file of the user's, or snippets of scikit-learn's own source."""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import itertools
import json
import re
import tokenize
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sae_core.errors import ConfigError, UnknownNameError, border

if TYPE_CHECKING:
    import pandas as pd

READY = "scikit-learn"
"""Name of the dataset that is there wherever scikit-learn is: does a piece of its source end in code, in a comment or in a docstring?"""
SNIPPET_CHARACTERS, MOST_FILES, MOST_PER_FILE, MOST_PER_LABEL = 240, 100, 6, 400
LEAST_INSIDE = 8
"""Characters of a comment or docstring that a piece has at least."""
LEAST_PER_LABEL = 20
"""Texts of a label: fewer say nothing."""
FORMATS = (".csv", ".jsonl", ".parquet")


@dataclass(frozen=True)
class LabeledTexts:
    """Texts, each with one of at least two labels."""

    name: str
    """In columns of tables: letters, digits and underscores."""
    texts: tuple[str, ...]
    labels: tuple[str, ...]
    groups: tuple[str, ...]
    """Texts of one group are never split between training and test: pieces of one file are alike."""

    @property
    def checksum(self) -> str:
        """Of all texts and labels."""
        return hashlib.sha256(json.dumps([self.texts, self.labels]).encode()).hexdigest()


def labeled_texts(data: str, text_column: str = "text", label_column: str = "label") -> LabeledTexts:
    """Read a dataset.

    Args:
        data: a .csv, .jsonl or .parquet file, or "scikit-learn".

    Raises:
        ConfigError: it cannot be read, lacks a column, holds something else than texts and labels, or has too few of one label.
    """
    if data == READY:
        return _source_of_scikit_learn()
    path = Path(data).expanduser()
    if path.suffix not in FORMATS or not path.is_file():
        raise ConfigError(
            f"`--data` must be {READY!r} or an existing file that ends in {', '.join(FORMATS)}, but got {data!r}. Correct the path."
        )
    table = _read(path)
    for column in (text_column, label_column):
        if column not in table.columns:
            raise UnknownNameError.of(
                f"a column of {data!r}", column, map(str, table.columns), "Name it with --text-column, --label-column."
            )
    texts, labels = table[text_column].tolist(), table[label_column].tolist()
    if (row := next((row for row, text in enumerate(texts) if not isinstance(text, str) or not text.strip()), None)) is not None:
        raise ConfigError(f"texts must not be empty, but got {texts[row]!r} in row {row} of column {text_column!r} of {data!r}. Remove it.")
    if (row := next((row for row, missing in enumerate(table[label_column].isna()) if missing), None)) is not None:
        raise ConfigError(f"every text must have a label, but got none in row {row} of column {label_column!r} of {data!r}. Remove it.")
    name = re.sub(r"\W+", "_", path.stem.lower(), flags=re.ASCII).strip("_") or "data"
    found = LabeledTexts(name, tuple(texts), tuple(map(str, labels)), tuple(str(row) for row in range(len(texts))))
    _check_counts(found.labels, data)
    return found


def _read(path: Path) -> pd.DataFrame:
    import pandas as pd

    with border(f"`--data` must be a readable table, but got {str(path)!r}", "Correct it, or save it in another format."):
        if path.suffix == ".csv":
            return pd.read_csv(path)
        return pd.read_json(path, lines=True, dtype=False) if path.suffix == ".jsonl" else pd.read_parquet(path)


def _check_counts(labels: Sequence[str], data: str) -> None:
    counts = {label: labels.count(label) for label in sorted(set(labels))}
    if len(counts) < 2 or min(counts.values()) < LEAST_PER_LABEL:
        shown = dict(list(counts.items())[:10])
        raise ConfigError(
            f"probes need two labels or more with at least {LEAST_PER_LABEL} texts each, but got {shown} in {data!r}. Add texts, or remove "
            "rare labels."
        )


def _source_of_scikit_learn() -> LabeledTexts:
    """Pieces of its modules without tests, in an order that is the same everywhere."""
    try:
        files = importlib.metadata.distribution(READY).files or []
    except importlib.metadata.PackageNotFoundError:
        raise missing_scikit_learn() from None
    modules = [
        file for file in files if file.suffix == ".py" and file.parts[0] == "sklearn" and not {"tests", "externals"} & set(file.parts)
    ]
    rows: dict[str, list[tuple[str, str, str]]] = {}
    for file in sorted(modules, key=lambda file: hashlib.sha256(str(file).encode()).hexdigest())[:MOST_FILES]:
        text = Path(str(file.locate())).read_text(encoding="utf-8")
        for label, ends in _ends(text).items():
            pieces = [text[max(0, end - SNIPPET_CHARACTERS) : end] for end in ends if end > SNIPPET_CHARACTERS // 2]
            hashed = sorted((hashlib.sha256(f"{file} {piece}".encode()).hexdigest(), piece, str(file)) for piece in pieces)
            rows.setdefault(label, []).extend(hashed[:MOST_PER_FILE])
    chosen = [(label, *row) for label in sorted(rows) for row in sorted(rows[label])[:MOST_PER_LABEL]]
    labels = tuple(label for label, *_ in chosen)
    _check_counts(labels, READY)
    return LabeledTexts("sklearn_source", tuple(row[2] for row in chosen), labels, tuple(row[3] for row in chosen))


def _ends(text: str) -> dict[str, list[int]]:
    """Places inside of code, comments and docstrings: label -> numbers of characters."""
    starts = [0, *itertools.accumulate(len(line) for line in text.splitlines(keepends=True))]
    found: dict[str, list[int]] = {"code": [], "comment": [], "docstring": []}
    begins_statement = True
    for kind, content, (row, column), _, _ in tokenize.generate_tokens(io.StringIO(text).readline):
        begin = starts[row - 1] + column
        if kind == tokenize.COMMENT and len(content) > 2 * LEAST_INSIDE:
            found["comment"].append(begin + len(content) // 2)
        elif kind == tokenize.STRING and begins_statement and len(content) > 4 * LEAST_INSIDE:
            found["docstring"] += [begin + len(content) * part // 4 for part in (1, 2, 3)]
        elif kind in (tokenize.NAME, tokenize.OP):
            found["code"].append(begin + len(content))
        if kind not in (tokenize.NL, tokenize.COMMENT):
            begins_statement = kind in (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
    return found


def missing_scikit_learn() -> ConfigError:
    """What to say where it is not installed."""
    return ConfigError("probes need the package scikit-learn, but got an environment without it. Run `pip install 'sae-sweep[probes]'`.")
