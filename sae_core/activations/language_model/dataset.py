"""Documents from a dataset: a local file, a local directory or a name on the Hugging Face Hub.

Splits are those of the dataset; in a local file with a `split` column, that column's values.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from sae_core.activations.files import hash_files, is_hub_name
from sae_core.activations.language_model.folders import files_of_splits, files_read, is_saved_dataset, other_splits, saved_splits
from sae_core.activations.language_model.rows import COMPRESSIONS, FILE_FORMATS, ROWS_AT_A_TIME, Row, file_format, read_rows
from sae_core.config.run import Config
from sae_core.errors import ConfigError, border
from sae_core.files import existing


class DataConfig(Config):
    """Which text."""

    dataset: str
    """A local .parquet, .json, .jsonl or .txt file, a local directory, or the name of a dataset on the Hub."""
    subset: str | None = None
    """Name of the subset ("configuration") where the dataset has several."""
    text_column: str = "text"
    tokens_column: str | None = None
    """Column of token ids, for text that is tokenised already; takes the place of `text_column`."""
    train_split: str = "train"
    eval_split: str = "heldout"
    """May equal `train_split`: then a tenth of its documents is held out."""
    streaming: bool = False
    """Read a Hub dataset as it comes instead of downloading all of it first. Local files are always read as they come."""
    activations_dtype: Literal["float16", "bfloat16", "float32"] = "float16"
    """Precision of the stored activations."""
    exclude_special_tokens: bool = True
    """Leave BOS, EOS, padding and other special tokens out of training and evaluation."""

    @property
    def column(self) -> str:
        """The column that is read."""
        return self.tokens_column or self.text_column


@runtime_checkable
class Split(Protocol):
    """Rows that can be read again and again."""

    def rows(self, columns: Sequence[str] | None = None) -> Iterator[Row]:
        """The rows in order; of these columns at least, all by default."""


@dataclass(frozen=True, slots=True)
class _Files:
    """Rows of local files."""

    files: tuple[Path, ...]
    split: str | None = None
    """Value of the column `split`, as text, that rows must have; None: all rows."""

    def rows(self, columns: Sequence[str] | None = None) -> Iterator[Row]:
        wanted = [*columns, *(["split"] if self.split is not None else [])] if columns else None
        rows = chain.from_iterable(read_rows(file, wanted) for file in self.files)
        return (row for row in rows if _name(row.get("split")) == self.split) if self.split is not None else rows


@dataclass(frozen=True, slots=True)
class _Library:
    """Rows of a dataset of the datasets library."""

    dataset: Any

    def rows(self, columns: Sequence[str] | None = None) -> Iterator[Row]:
        dataset = self.dataset.with_format(None)  # whatever format it was saved in: tensors and arrays are lists again
        if columns is None:
            yield from dataset
            return
        for batch in dataset.select_columns(list(columns)).iter(batch_size=ROWS_AT_A_TIME):
            yield from (dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True))


def open_splits(config: DataConfig, *, streaming: bool) -> Mapping[str, Split]:
    """Split name -> its rows.

    Args:
        streaming: whether a Hub dataset is read as it comes, or all of it now.

    Raises:
        ConfigError: there is no such file, directory or Hub dataset, or it cannot be read.
    """
    path = local_path(config.dataset)
    with reading(config):
        if path is not None and path.is_file():
            return _splits_of_file(path, config)
        if path is not None and is_saved_dataset(path):
            return {name: _Library(rows) for name, rows in saved_splits(path).items()}
        if path is not None:
            files = files_of_splits(path, config.subset)
            if files is None:
                return {name: _Library(rows) for name, rows in other_splits(path, config.subset).items()}
            return {name: _Files(tuple(some)) for name, some in files.items()}
        import datasets

        return {
            str(name): _Library(rows) for name, rows in datasets.load_dataset(config.dataset, config.subset, streaming=streaming).items()
        }


def is_split_column(split: Split) -> bool:
    """Whether a split is the rows of a file whose column `split` has some value."""
    return isinstance(split, _Files) and split.split is not None


def local_path(name: str) -> Path | None:
    """The local file or directory of this name; None: a name on the Hub.

    Raises:
        ConfigError: it is a path, and nothing is there.
    """
    if (path := existing(name)) is not None:
        return Path(os.path.normpath(path.absolute()))  # not resolved: what a link points to may be named after a hash
    if name.lower().endswith((*FILE_FORMATS, *COMPRESSIONS)) or not is_hub_name(name):
        raise ConfigError(f"`data.dataset` must exist, but got {name!r}, where no file or directory is. Correct the path.")
    return None


def reading(config: DataConfig) -> AbstractContextManager[None]:
    """Whatever libraries raise while they read becomes one ConfigError."""
    if local_path(config.dataset) is not None:
        must, remedy = "a readable local file or directory", "Check that it is complete, and its layout (docs/definition.md)."
    else:
        must = "a readable local file or directory or a reachable Hugging Face Hub dataset"
        remedy = "Check the name, `data.subset` and the network, or download the data and give its path."
    return border(f"`data.dataset` must be {must}, but got {config.dataset!r}", remedy)


def _splits_of_file(path: Path, config: DataConfig) -> Mapping[str, Split]:
    if file_format(path) is None:
        raise ConfigError(
            f"`data.dataset` must be one of {list(FILE_FORMATS)} files, text also compressed as one of {list(COMPRESSIONS)}, but got "
            f"{config.dataset!r}. Convert it."
        )
    everything = _Files((path,))
    if not any("split" in row for row in islice(everything.rows(), 1)):
        return {"train": everything}
    wanted, found = {config.train_split, config.eval_split}, set()
    for row in everything.rows(["split"]):
        found.add(_name(row.get("split")))
        if wanted <= found:
            break
    return {name: _Files((path,), name) for name in found}


def _name(value: Any) -> str:
    """A value of a `split` column as it is written in a definition: true, null, 3."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def content_hash(config: DataConfig) -> str:
    """Hash of the files that a local dataset is read from; what identifies the version of a Hub dataset.

    Raises:
        ConfigError: there is no such dataset.
    """
    path = local_path(config.dataset)
    with reading(config):
        if path is not None:
            return hash_files([path] if path.is_file() else files_read(path, config.subset), root=path)
        import datasets

        return str(datasets.load_dataset_builder(config.dataset, config.subset).hash)
