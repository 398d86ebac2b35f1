"""Documents from a Hugging Face data set: a local file, a local directory or a name on the Hub.

Splits are those of the data set; in a local file with a `split` column, that column's values. Where one split serves for
training and evaluation, a tenth of its documents, chosen by a hash of their content, is held out.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from sae_core.activations.files import hash_files, is_hub_name
from sae_core.config import Config
from sae_core.errors import ConfigError, UnknownNameError

Document = str | list[int]
Part = Literal["train", "heldout"]

FILE_FORMATS = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".txt": "text"}
"""File name suffix -> loader of the datasets library. In a .txt file a line is a document."""

HELD_OUT_ONE_IN = 10
"""One in this many documents is held out where one split serves both parts."""

ROWS_AT_A_TIME = 256


class DataConfig(Config):
    """Which text."""

    dataset: str
    """A local .parquet, .json, .jsonl or .txt file, a local directory, or the name of a data set on the Hub."""
    subset: str | None = None
    """Name of the subset ("configuration") where the data set has several."""
    text_column: str = "text"
    tokens_column: str | None = None
    """Column of token ids, for text that is tokenised already; takes the place of `text_column`."""
    train_split: str = "train"
    eval_split: str = "heldout"
    """May equal `train_split`: then a tenth of its documents is held out."""
    streaming: bool = False
    """Read a Hub data set or a directory as it comes instead of downloading all of it first. Local files are always streamed."""
    activations_dtype: Literal["float16", "bfloat16", "float32"] = "float16"
    """Precision of the stored activations."""
    exclude_special_tokens: bool = True
    """Leave BOS, EOS, padding and other special tokens out of training and evaluation."""

    @property
    def column(self) -> str:
        """The column that is read."""
        return self.tokens_column or self.text_column


def open_splits(config: DataConfig, *, streaming: bool) -> Mapping[str, Any]:
    """Split name -> data set.

    Args:
        streaming: whether a Hub data set or a directory is read as it comes, or all of it now.

    Raises:
        ConfigError: there is no such file, directory or Hub data set, or it cannot be read.
    """
    import datasets

    path = Path(config.dataset).expanduser()
    with _as_config_error(config):
        if path.is_file():
            return _open_file(path, config)
        if (path / "dataset_dict.json").is_file():
            return dict(datasets.load_from_disk(str(path)))
        if (path / "state.json").is_file():
            return {"train": datasets.load_from_disk(str(path))}
        if not path.is_dir() and (path.suffix in FILE_FORMATS or not is_hub_name(config.dataset)):
            raise ConfigError(f"`data.dataset` must exist, but got {config.dataset!r}, where no file or directory is. Correct the path.")
        where = str(path.resolve()) if path.is_dir() else config.dataset
        return dict(datasets.load_dataset(where, config.subset, streaming=streaming))


@contextmanager
def _as_config_error(config: DataConfig) -> Iterator[None]:
    """Turn what the datasets library raises for what it cannot find or read into a ConfigError."""
    from datasets.exceptions import DatasetGenerationError

    try:
        yield
    except ConfigError:
        raise
    except (OSError, ValueError, DatasetGenerationError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(
            "`data.dataset` must be a readable local file or directory or a reachable Hugging Face Hub data set, but got "
            f"{config.dataset!r}: {reason} Check the name, `data.subset` and the network, or download the data and give its path."
        ) from error


def _open_file(path: Path, config: DataConfig) -> Mapping[str, Any]:
    import datasets

    if path.suffix not in FILE_FORMATS:
        raise ConfigError(f"`data.dataset` must be one of {sorted(FILE_FORMATS)} files, but got {config.dataset!r}. Convert it.")
    rows = datasets.load_dataset(FILE_FORMATS[path.suffix], data_files=str(path.resolve()), split="train", streaming=True)
    if "split" not in next(iter(rows), {}):
        return {"train": rows}
    wanted, found = {config.train_split, config.eval_split}, set()
    for batch in rows.select_columns(["split"]).iter(batch_size=ROWS_AT_A_TIME):
        found.update(batch["split"])
        if wanted <= found:
            break
    return {name: rows.filter(_in_split, input_columns="split", batched=True, fn_kwargs={"wanted": name}) for name in found}


def _in_split(splits: list[str], wanted: str) -> list[bool]:
    return [split == wanted for split in splits]


def content_hash(config: DataConfig) -> str:
    """Hash of a local file or directory; what identifies the version of a Hub data set.

    Raises:
        ConfigError: there is no such data set.
    """
    path = Path(config.dataset).expanduser()
    if path.exists():
        files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
        return hash_files(files, root=path)
    import datasets

    with _as_config_error(config):
        return str(datasets.load_dataset_builder(config.dataset, config.subset).hash)


def problems(config: DataConfig) -> list[str]:
    """What is wrong with the data set, splits and column asked for; little more than the first row is read."""
    try:
        splits = open_splits(config, streaming=True)
    except ConfigError as error:
        return [str(error)]
    found = []
    if config.train_split not in splits:
        found.append(str(UnknownNameError.of("`data.train_split`", config.train_split, splits)))
    if config.eval_split not in splits:
        remedy = f"Or set it to {config.train_split!r}: where both splits are the same, a tenth of the documents is held out."
        found.append(str(UnknownNameError.of("`data.eval_split`", config.eval_split, splits, remedy)))
    rows = splits.get(config.train_split) or next(iter(splits.values()))
    return found + _column_problems(config, next(iter(rows), {}))


def _column_problems(config: DataConfig, row: Mapping[str, Any]) -> list[str]:
    key, kind = ("`data.tokens_column`", list) if config.tokens_column else ("`data.text_column`", str)
    if config.column not in row:
        return [str(UnknownNameError.of(key, config.column, row))]
    if not isinstance(row[config.column], kind | None):
        holds = "lists of token ids" if kind is list else "text (for token ids use `data.tokens_column`)"
        got = type(row[config.column]).__name__
        return [f"{key} must hold {holds}, but got {config.column!r} with {got}. Choose one of {sorted(row)}."]
    return []


def documents(config: DataConfig, part: Part) -> Iterator[Document]:
    """The documents of one part, in the data set's order; empty ones are left out.

    Raises:
        ConfigError: the split or column is not there.
    """
    wrong = problems(config)
    if wrong:
        raise ConfigError("\n".join(wrong))
    shared = config.train_split == config.eval_split
    rows = open_splits(config, streaming=config.streaming)[config.train_split if part == "train" else config.eval_split]
    for batch in rows.select_columns([config.column]).iter(batch_size=ROWS_AT_A_TIME):
        for document in batch[config.column]:
            if document and (not shared or _is_held_out(document) == (part == "heldout")):
                yield document


def _is_held_out(document: Document) -> bool:
    content = document if isinstance(document, str) else json.dumps(list(document))
    return int(hashlib.sha256(content.encode()).hexdigest(), 16) % HELD_OUT_ONE_IN == 0
