"""Documents from a dataset: a local file, a local directory or a name on the Hugging Face Hub; and what is wrong with them.

Splits are those of the dataset; in a local file with a `split` column, that column's values. Where one split serves for training and
evaluation, a tenth of its documents, chosen by a hash of their content, is held out; where that leaves nothing for one of the two, as of a
single document, the last tenth of each document is.
"""

import hashlib
import json
import os
import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

from sae_core.activations.files import hash_files, is_hub_name
from sae_core.activations.language_model import mixture, pretokenized
from sae_core.activations.language_model.chat import Conversation
from sae_core.activations.language_model.data_config import DataConfig
from sae_core.activations.language_model.rows import (
    COMPRESSIONS,
    FILE_FORMATS,
    ROWS_AT_A_TIME,
    Row,
    Rows,
    file_format,
    files_of_splits,
    files_read,
    is_saved_dataset,
    read_rows,
)
from sae_core.errors import ConfigError, UnknownNameError, border
from sae_core.files import existing


@dataclass(frozen=True, slots=True)
class Window:
    """A window that was made before, to be used as it is."""

    ids: list[int]
    """Its tokens."""
    documents: list[int]
    """Number of the document that each token is of."""

    def __len__(self) -> int:
        return len(self.ids)


Text = str | list[int] | Conversation
Document = Text | Window
Part = Literal["train", "heldout"]

HELD_OUT_ONE_IN = 10
"""One in this many documents is held out where one split serves both parts."""
CHECKED_ROWS = 256
"""Rows of each split whose column is checked before anything starts."""


def documents(config: DataConfig, part: Part) -> Iterator[Document]:
    """The documents of one part, in the dataset's order; empty ones are left out.

    Raises:
        ConfigError: the split or column is not there, or a row cannot be read.
    """
    if wrong := problems(config):
        raise ConfigError("\n".join(wrong))
    if mixed := mixture.parts_of(config):
        yield from mixture.interleaved([documents(one.config, part) for one in mixed], [one.weight for one in mixed])
        return
    splits = _open_splits(config, streaming=config.streaming)
    config = _with_column(config, splits)
    rows = splits[config.train_split if part == "train" else config.eval_split]
    if _is_ours(config):
        with _reading(config):
            yield from _windows(config, part, rows)
    elif config.train_split != config.eval_split:
        yield from _documents(config, rows)
    elif _both_parts_have_some(_documents(config, rows)):
        yield from (document for document in _documents(config, rows) if _is_held_out(document) == (part == "heldout"))
    else:
        for document in _documents(config, rows):
            if isinstance(document, Conversation):
                raise ConfigError(
                    f"`data.eval_split` must be another split where conversations cannot be parted, but got {config.eval_split!r} for both "
                    "parts. Add conversations, or a split."
                )
            n_train = len(document) * (HELD_OUT_ONE_IN - 1) // HELD_OUT_ONE_IN
            if piece := document[:n_train] if part == "train" else document[n_train:]:
                yield piece


def problems(config: DataConfig, d_vocab: int | None = None) -> list[str]:
    """What is wrong with the dataset, splits and column requested; the first rows of each split are read.

    Args:
        d_vocab: size of the model's vocabulary, where it is known.
    """
    try:
        if mixed := mixture.parts_of(config):
            return [f"{problem} (in {config.dataset!r})" for problem in _problems_of_mixture([one.config for one in mixed], d_vocab)]
        splits = _open_splits(config, streaming=True)
        config = _with_column(config, splits)
    except ConfigError as error:
        return [str(error)]
    if _is_ours(config) and config.packing != "packed":
        return [
            f"`data.packing` must be packed in a pretokenized dataset, whose windows are used as they are, but got "
            f"{config.packing!r}. Remove it."
        ]
    if _is_ours(config) and config.train_split == config.eval_split:
        return [
            f"`data.eval_split` must be another split than `data.train_split` in a pretokenized dataset, which has both parts, but got "
            f"{config.eval_split!r} for both. Set it to 'heldout'."
        ]
    wanted = {"`data.train_split`": config.train_split, "`data.eval_split`": config.eval_split}
    found = [str(_unknown_split(config, key, name, splits)) for key, name in wanted.items() if name not in splits]
    for name in [name for name in dict.fromkeys(wanted.values()) if name in splits] or list(splits)[:1]:
        try:
            with _reading(config):
                _check_column(config, name, splits[name], d_vocab)
        except ConfigError as error:
            return [*found, str(error)]
    return found


def _problems_of_mixture(parts: Sequence[DataConfig], d_vocab: int | None) -> list[str]:
    if found := [problem for part in parts for problem in problems(part, d_vocab)]:
        return found
    known = [resolved(part) for part in parts]
    if any(_is_ours(part) for part in known):
        return ["windows that `sae-sweep pretokenize` made must be read alone, but got them in a mixture. Give the text that they are of."]
    if len({part.tokens_column is None for part in known}) > 1:
        kinds = {part.dataset: "token ids" if part.tokens_column else "text" for part in known}
        return [f"datasets of a mixture must all be of text, or all of token ids, but got {kinds}. Leave some out."]
    return []


def parts(config: DataConfig) -> list[DataConfig]:
    """The datasets that are read: those of a mixture, or the one.

    Raises:
        ConfigError: the file of a mixture cannot be read.
    """
    return [one.config for one in mixture.parts_of(config)] or [config]


def resolved(config: DataConfig) -> DataConfig:
    """The config with the column of tokens, where the dataset is tokenized and no column is given; of a mixture, its first dataset's.

    Raises:
        ConfigError: there is no such dataset, or it cannot be read.
    """
    first = parts(config)[0]
    return _with_column(first, _open_splits(first, streaming=True))


def content_hash(config: DataConfig) -> str:
    """Hash of the files that a local dataset is read from; what identifies the version of a Hub dataset.

    Raises:
        ConfigError: there is no such dataset.
    """
    if mixed := mixture.parts_of(config):
        return hashlib.sha256(json.dumps([[content_hash(one.config), *one.identity] for one in mixed]).encode()).hexdigest()
    path = _local_path(config.dataset)
    with _reading(config):
        if path is not None:
            return hash_files([path] if path.is_file() else files_read(path, config.subset), root=path)
        import datasets

        return str(datasets.load_dataset_builder(config.dataset, config.subset).hash)


def too_large_id(config: DataConfig, largest: int, d_vocab: int) -> ConfigError:
    """The error of a token id that the model does not have."""
    return ConfigError(
        f"token ids must be < {d_vocab}, the model's vocabulary, but got {largest} in `{config.column}` of {config.dataset}. "
        "Use text tokenized for this model, or `data.text_column`."
    )


def _local_path(name: str) -> Path | None:
    """The local file or directory of this name; None: a name on the Hub. A path where nothing is is refused."""
    if (path := existing(name)) is not None:
        return Path(os.path.normpath(path.absolute()))  # not resolved: what a link points to may be named after a hash
    if mixture.has_file_ending(name) or not is_hub_name(name):
        raise ConfigError(f"`data.dataset` must exist, but got {name!r}, where no file or directory is. Correct the path.")
    return None


def _reading(config: DataConfig) -> AbstractContextManager[None]:
    """Whatever libraries raise while they read becomes one ConfigError."""
    if _local_path(config.dataset) is not None:
        must, remedy = "a readable local file or directory", "Check that it is complete, and its layout (docs/definition.md)."
    else:
        must = "a readable local file or directory or a reachable Hugging Face Hub dataset"
        remedy = "Check the name, `data.subset` and the network, or download the data and give its path."
    return border(f"`data.dataset` must be {must}, but got {config.dataset!r}", remedy)


def _open_splits(config: DataConfig, *, streaming: bool) -> Mapping[str, Rows]:
    """Split name -> its rows. A Hub dataset is read as it comes where it is `streaming`, else all of it is downloaded now."""
    path = _local_path(config.dataset)
    with _reading(config):
        if path is not None and path.is_file():
            if config.subset is not None:
                raise ConfigError(f"`data.subset` must be left out where the dataset is one file, but got {config.subset!r}. Remove it.")
            return _splits_of_file(path, config)
        import datasets

        if path is None:
            splits = datasets.load_dataset(config.dataset, config.subset, streaming=streaming)
        elif is_saved_dataset(path):
            saved = datasets.load_from_disk(str(path))
            splits = saved if isinstance(saved, dict) else {"train": saved}
        else:
            files = files_of_splits(path, config.subset)
            if all(file_format(file) for names in files.values() for file in names):
                return {name: partial(_rows_of_files, names) for name, names in files.items()}
            splits = datasets.load_dataset(str(path), config.subset, streaming=True)  # formats that only the library reads
        return {str(name): partial(_rows_of_dataset, dataset) for name, dataset in splits.items()}


def _splits_of_file(path: Path, config: DataConfig) -> Mapping[str, Rows]:
    if file_format(path) is None:
        raise ConfigError(
            f"`data.dataset` must be one of {list(FILE_FORMATS)} files, text also compressed as one of {list(COMPRESSIONS)}, but got "
            f"{config.dataset!r}. Convert it."
        )
    if not any("split" in row for row in islice(read_rows(path), 1)):
        return {"train": partial(_rows_of_files, [path])}
    wanted, found = {config.train_split, config.eval_split}, set()
    for row in read_rows(path, ["split"]):
        found.add(_split_name(row))
        if wanted <= found:
            break
    return {name: partial(_rows_of_files, [path], split=name) for name in found}


def _split_name(row: Row) -> str:
    """The value of the `split` column as it is written in a definition: true, null, 3."""
    value = row.get("split")
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _rows_of_files(files: Sequence[Path], columns: Sequence[str] | None, split: str | None = None) -> Iterator[Row]:
    wanted = None if columns is None else [*columns, *(["split"] if split is not None else [])]
    rows = chain.from_iterable(read_rows(file, wanted) for file in files)
    return (row for row in rows if split is None or _split_name(row) == split)


def _rows_of_dataset(dataset: Any, columns: Sequence[str] | None) -> Iterator[Row]:
    dataset = dataset.with_format(None)  # whatever format it was saved in: tensors and arrays are lists again
    if columns is None:
        yield from dataset
        return
    for batch in dataset.select_columns(list(columns)).iter(batch_size=ROWS_AT_A_TIME):
        yield from (dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True))


def _with_column(config: DataConfig, splits: Mapping[str, Rows]) -> DataConfig:
    """See `resolved`. Beside text, ids are taken only where the dataset says that it was tokenized on purpose."""
    if config.tokens_column or config.chat_column or config.changed("text_column") or not splits:
        return config
    with _reading(config):
        first = next(iter(splits.get(config.train_split, next(iter(splits.values())))(None)), {})
    column = next((name for name in pretokenized.COLUMNS if _are_ids(first.get(name))), None)
    if column is None or (config.text_column in first and pretokenized.described(config.dataset) is None):
        return config
    return config.model_copy(update={"tokens_column": column})


def _are_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(one) is int for one in value)


def _is_ours(config: DataConfig) -> bool:
    """Whether the rows are windows that `sae-sweep pretokenize` made."""
    return config.tokens_column == pretokenized.IDS and pretokenized.is_ours(config.dataset)


def _windows(config: DataConfig, part: Part, rows: Rows) -> Iterator[Window]:
    names = [pretokenized.IDS, *([pretokenized.DOCUMENTS] if part == "heldout" else [])]
    for number, row in enumerate(rows(names), start=1):
        ids, *documents = (_checked_ids(config, row.get(name), number) for name in names)
        yield Window(ids, documents[0] if documents else [number] * len(ids))


def _unknown_split(config: DataConfig, key: str, name: str, splits: Iterable[str]) -> UnknownNameError:
    path, remedy = _local_path(config.dataset), ""
    if key == "`data.eval_split`":
        remedy = f"Or set it to {config.train_split!r}: where both splits are the same, a tenth of the documents is held out."
    if path is not None and path.is_file():
        remedy += " The names are the values of the file's column 'split', if it has one."
    return UnknownNameError.of(key, name, splits, remedy.strip())


def _check_column(config: DataConfig, name: str, rows: Rows, d_vocab: int | None) -> None:
    """Read the first rows of a split, and refuse it where there are none, or they have no such column, or one of another kind."""
    first = next(iter(rows(None)), None)
    if first is None:
        raise ConfigError(f"splits of `data.dataset` must have rows, but got none in {name!r} of {config.dataset!r}. Choose another split.")
    head = list(islice(rows([config.column] if config.column in first else None), CHECKED_ROWS))
    if not any(config.column in row for row in head):
        kind = "tokens" if config.tokens_column else "chat" if config.chat_column else "text"
        raise UnknownNameError.of(f"`data.{kind}_column`", config.column, first)
    try:
        found = [document for number, row in enumerate(head, start=1) for document in _documents_of(config, row, number)]
    except ConfigError as error:
        raise ConfigError(f"{error} Columns are {sorted(first)}.") from error
    largest = max((max(ids) for ids in found if isinstance(ids, list)), default=0)
    if d_vocab is not None and largest >= d_vocab:
        raise too_large_id(config, largest, d_vocab)


def _documents(config: DataConfig, rows: Rows) -> Iterator[Text]:
    with _reading(config):
        for number, row in enumerate(rows([config.column]), start=1):
            yield from _documents_of(config, row, number)


def _documents_of(config: DataConfig, row: Row, number: int) -> Iterator[Text]:
    """The document of a row, or of each list in a row of lists; none where it is empty."""
    value = row.get(config.column)
    if value is None or (isinstance(value, str | list) and not value):
        return
    if config.chat_column:
        yield _conversation(config, value, number)
    elif not config.tokens_column:
        if not isinstance(value, str):
            got = f"{config.column!r} with {type(value).__name__} in row {number}"
            raise ConfigError(
                f"`data.text_column` must hold text (for token ids use `data.tokens_column`), but got {got}. Choose another column."
            )
        # Half a surrogate pair that stands alone becomes U+FFFD: no tokenizer takes it.
        yield value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    elif isinstance(value, list) and isinstance(value[0], list):
        for inner in value:
            yield from _documents_of(config, {config.column: inner}, number)
    else:
        yield _checked_ids(config, value, number)


def _conversation(config: DataConfig, value: Any, number: int) -> Conversation:
    messages = value if isinstance(value, list) else [value]
    if wrong := [one for one in messages if not isinstance(one, dict) or not isinstance(one.get("role"), str)]:
        raise ConfigError(
            "`data.chat_column` must hold lists of messages, each with `role` and `content`, but got "
            f"{config.column!r} with {reprlib.repr(wrong[0])} in row {number}. Choose another column, or rename the keys."
        )
    # Tables have all keys in all messages, with nothing in those that have none.
    return Conversation(tuple({key: one for key, one in message.items() if one is not None} for message in messages))


def _checked_ids(config: DataConfig, value: Any, number: int) -> list[int]:
    wrong = [one for one in value if type(one) is not int or not 0 <= one < 2**31] if isinstance(value, list) else [value]
    if wrong:
        raise ConfigError(
            "`data.tokens_column` must hold lists of token ids, which are integers from 0 on (labels with -100 are none), but got "
            f"{config.column!r} with {reprlib.repr(wrong[0])} ({type(wrong[0]).__name__}) in row {number}. Choose another column."
        )
    return list(value)


def _both_parts_have_some(found: Iterator[Text]) -> bool:
    """Whether the hash holds out some of these documents, and not all."""
    first = next(found, None)
    return first is None or any(_is_held_out(document) != _is_held_out(first) for document in found)


def _is_held_out(document: Text) -> bool:
    content = document if isinstance(document, str) else json.dumps(document.messages if isinstance(document, Conversation) else document)
    return int(hashlib.sha256(content.encode()).hexdigest(), 16) % HELD_OUT_ONE_IN == 0
