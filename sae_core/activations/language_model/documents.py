"""Documents from the rows of a dataset, and what is wrong with them.

Where one split serves for training and evaluation, a tenth of its documents, chosen by a hash of their content, is held out; where that
leaves nothing for one of the two, as of a single document, the last tenth of each document is.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, Literal

import numpy as np

from sae_core.activations.language_model.dataset import DataConfig, Split, is_split_column, open_splits, reading
from sae_core.activations.language_model.rows import Row
from sae_core.errors import ConfigError, UnknownNameError

Document = str | list[int]
Part = Literal["train", "heldout"]

HELD_OUT_ONE_IN = 10
"""One in this many documents is held out where one split serves both parts."""
CHECKED_ROWS = 256
"""Rows of each split whose column is looked at before anything starts."""


def problems(config: DataConfig, d_vocab: int | None = None) -> list[str]:
    """What is wrong with the dataset, splits and column asked for; the first rows of each split are read.

    Args:
        d_vocab: size of the model's vocabulary, where it is known.
    """
    try:
        splits = open_splits(config, streaming=True)
    except ConfigError as error:
        return [str(error)]
    found = []
    if config.train_split not in splits:
        found.append(_unknown_split("`data.train_split`", config.train_split, splits))
    if config.eval_split not in splits:
        remedy = f"Or set it to {config.train_split!r}: where both splits are the same, a tenth of the documents is held out."
        found.append(_unknown_split("`data.eval_split`", config.eval_split, splits, remedy))
    names = [name for name in dict.fromkeys((config.train_split, config.eval_split)) if name in splits] or list(splits)[:1]
    for name in names:
        try:
            with reading(config):
                wrong = _column_problem(config, name, splits[name], d_vocab)
        except ConfigError as error:
            wrong = str(error)
        if wrong:
            return [*found, wrong]
    return found


def _unknown_split(key: str, name: str, splits: Mapping[str, Split], remedy: str = "") -> str:
    if any(is_split_column(split) for split in splits.values()):
        remedy = f"{remedy} The names are the values of the file's column 'split'; rename it if it is something else.".lstrip()
    return str(UnknownNameError.of(key, name, splits, remedy))


def _column_problem(config: DataConfig, name: str, split: Split, d_vocab: int | None) -> str:
    """What is wrong with the first rows of a split; empty if nothing is."""
    first = next(split.rows(), None)
    key = "`data.tokens_column`" if config.tokens_column else "`data.text_column`"
    if first is None:
        return f"splits of `data.dataset` must have rows, but got none in {name!r} of {config.dataset!r}. Choose another split."
    rows = list(islice(split.rows([config.column] if config.column in first else None), CHECKED_ROWS))
    if not any(config.column in row for row in rows):
        return str(UnknownNameError.of(key, config.column, first))
    for number, row in enumerate(rows, start=1):
        try:
            documents = list(_documents_of(config, row, number))
        except ConfigError as error:
            return f"{error} Columns are {sorted(first)}."
        largest = max((max(ids) for ids in documents if isinstance(ids, list)), default=0)
        if d_vocab is not None and largest >= d_vocab:
            return str(too_large_id(config, largest, d_vocab))
    return ""


def too_large_id(config: DataConfig, largest: int, d_vocab: int) -> ConfigError:
    """What to say about a token id that the model does not have."""
    return ConfigError(
        f"token ids must be < {d_vocab}, the model's vocabulary, but got {largest} in `{config.column}` of {config.dataset}. "
        "Use text tokenised for this model, or `data.text_column`."
    )


def documents(config: DataConfig, part: Part) -> Iterator[Document]:
    """The documents of one part, in the dataset's order; empty ones are left out.

    Raises:
        ConfigError: the split or column is not there, or a row cannot be read.
    """
    wrong = problems(config)
    if wrong:
        raise ConfigError("\n".join(wrong))
    split = open_splits(config, streaming=config.streaming)[config.train_split if part == "train" else config.eval_split]
    if config.train_split != config.eval_split:
        yield from _all_documents(config, split)
    elif _both_parts_have_some(_all_documents(config, split)):
        yield from (document for document in _all_documents(config, split) if _is_held_out(document) == (part == "heldout"))
    else:
        for document in _all_documents(config, split):
            n_train = len(document) * (HELD_OUT_ONE_IN - 1) // HELD_OUT_ONE_IN
            if piece := document[:n_train] if part == "train" else document[n_train:]:
                yield piece


def _all_documents(config: DataConfig, split: Split) -> Iterator[Document]:
    with reading(config):
        for number, row in enumerate(split.rows([config.column]), start=1):
            yield from _documents_of(config, row, number)


def _documents_of(config: DataConfig, row: Row, number: int) -> Iterator[Document]:
    """The document of a row, or of each list in a row of lists; none where it is empty."""
    value = row.get(config.column)
    if value is None or (isinstance(value, str | list | tuple) and not value):
        return
    if not config.tokens_column:
        if not isinstance(value, str):
            got = f"{config.column!r} with {type(value).__name__} in row {number}"
            raise ConfigError(
                f"`data.text_column` must hold text (for token ids use `data.tokens_column`), but got {got}. Choose another column."
            )
        yield _encodable(value)
        return
    if isinstance(value, list | tuple) and isinstance(value[0], list | tuple):
        for inner in value:
            yield from _documents_of(config, {config.column: inner}, number)
        return
    yield _ids(config, value, number)


def _ids(config: DataConfig, value: Any, number: int) -> list[int]:
    """Token ids, none below 0."""
    must = f"`data.tokens_column` must hold lists of token ids, but got {config.column!r} with"
    if not isinstance(value, list | tuple | np.ndarray):
        raise ConfigError(f"{must} {type(value).__name__} in row {number}. Choose another column.")
    ids = list(value)
    try:
        array = np.asarray(ids)
    except (ValueError, OverflowError):  # of several shapes, or too large a number
        array = np.asarray(ids, dtype=object)
    if array.dtype.kind not in "iu" or array.ndim != 1:
        wrong = next((one for one in ids if type(one) is not int), ids[0])
        raise ConfigError(f"{must} {wrong!r} ({type(wrong).__name__}) in row {number}. Choose another column, or convert it to integers.")
    if array.min() < 0:
        raise ConfigError(
            f"{must} {array.min()} in row {number}. Ids are not negative; labels with -100 are not token ids: choose another column."
        )
    return ids


def _encodable(text: str) -> str:
    """The text, with U+FFFD for each half of a surrogate pair that stands alone: no tokenizer takes those."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _both_parts_have_some(documents: Iterator[Document]) -> bool:
    """Whether the hash holds out some of these documents, and not all."""
    first = next(documents, None)
    return first is None or any(_is_held_out(document) != _is_held_out(first) for document in documents)


def _is_held_out(document: Document) -> bool:
    content = document if isinstance(document, str) else json.dumps(list(document))
    return int(hashlib.sha256(content.encode()).hexdigest(), 16) % HELD_OUT_ONE_IN == 0
