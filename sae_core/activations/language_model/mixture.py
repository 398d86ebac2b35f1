"""Mixtures of datasets: a .yaml file that names them, each with a weight, and the documents of all in proportion.

    mixture:
      - {dataset: books.parquet, weight: 3}
      - {dataset: owner/code, subset: python, column: content, weight: 1}

Lengths are counted in what documents are of: characters of text, or token ids.
"""

from collections.abc import Iterator, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import ValidationError

from sae_core.activations.files import is_hub_name
from sae_core.activations.language_model.data_config import DataConfig
from sae_core.activations.language_model.rows import COMPRESSIONS, FILE_FORMATS
from sae_core.config.base import Config, Positive
from sae_core.errors import ConfigError, border
from sae_core.files import existing
from sae_core.validation import first_problem

D = TypeVar("D", bound=Sized)

SUFFIXES = (".yaml", ".yml")
"""Of the files that name the datasets of a mixture."""


def has_file_ending(name: str) -> bool:
    """Whether a name ends as files of datasets do, so that it is none on the Hub."""
    return name.lower().endswith((*FILE_FORMATS, *COMPRESSIONS, *SUFFIXES))


class _Entry(Config):
    """A dataset of a mixture. What is not given is as in the section `data`."""

    dataset: str
    """A path, relative to the file, or a name on the Hub."""
    weight: Positive
    subset: str | None = None
    column: str | None = None
    """In place of `text_column`, `tokens_column` or `chat_column`, whichever `data` gives."""
    train_split: str | None = None
    eval_split: str | None = None


class _Mixture(Config):
    mixture: list[_Entry]


@dataclass(frozen=True, slots=True)
class MixedDataset:
    """A dataset of a mixture."""

    config: DataConfig
    """How it is read."""
    weight: float

    @property
    def identity(self) -> list[object]:
        """What decides its documents, beside the content of its files."""
        config = self.config
        return [self.weight, config.subset, config.column, config.train_split, config.eval_split]


def parts_of(config: DataConfig) -> list[MixedDataset]:
    """The datasets of a mixture; none where `data.dataset` is no file of one.

    Raises:
        ConfigError: the file cannot be read, or says something that is not known here.
    """
    path = existing(config.dataset)
    if path is None or not path.is_file() or path.suffix.lower() not in SUFFIXES:
        return []
    with border(f"`data.dataset` must be a readable file of a mixture, but got {config.dataset!r}", "See docs/definition.md."):
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        try:
            entries = _Mixture.model_validate(content).mixture
        except ValidationError as error:
            raise ConfigError(
                f"a mixture must be a list of datasets with weights, but in {config.dataset!r} {first_problem(error)}."
            ) from error
    if len(entries) < 2:
        raise ConfigError(
            f"a mixture must have two datasets or more, but got {len(entries)} in {config.dataset!r}. Add some, or name the one."
        )
    return [MixedDataset(_config_of(entry, config, path), entry.weight) for entry in entries]


def _config_of(entry: _Entry, config: DataConfig, path: Path) -> DataConfig:
    changes = entry.model_dump(exclude={"weight", "column"}, exclude_none=True)
    beside = path.resolve().parent / Path(entry.dataset).expanduser()
    is_path = beside.exists() or not is_hub_name(entry.dataset) or has_file_ending(entry.dataset)
    changes["dataset"] = str(beside) if is_path else entry.dataset
    if beside == path.resolve():
        raise ConfigError(f"a mixture must be of other datasets, but got itself in {config.dataset!r}. Remove it.")
    if entry.column is not None:
        kind = "tokens_column" if config.tokens_column else "chat_column" if config.chat_column else "text_column"
        changes[kind] = entry.column
    return config.model_copy(update=changes)


def in_words(config: DataConfig) -> str:
    """What is mixed, for readers; empty where nothing is."""
    mixed = parts_of(config)
    total = sum(one.weight for one in mixed)
    return ", ".join(f"{one.weight / total:.3g} of {one.config.dataset}" for one in mixed)


def interleaved(documents: Sequence[Iterator[D]], weights: Sequence[float]) -> Iterator[D]:
    """Documents of all, the next one always of the dataset that has given least for its weight.

    Ends where one of them does, so that shares hold.
    """
    given = [0.0] * len(weights)
    while True:
        number = min(range(len(weights)), key=lambda index: given[index] / weights[index])
        document = next(documents[number], None)
        if document is None:
            return
        given[number] += len(document)
        yield document
