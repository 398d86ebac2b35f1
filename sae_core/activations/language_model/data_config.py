"""The section `data` of a definition: which text, which of its tokens count, and in which windows."""

from collections.abc import Callable
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_serializer, model_validator

from sae_core.activations.language_model.chat import TrainOn
from sae_core.config.base import Config
from sae_core.errors import ConfigError


class DataConfig(Config):
    """Which text."""

    dataset: str
    """A local .parquet, .json, .jsonl or .txt file, a local directory, the name of a dataset on the Hub, or a .yaml file that names
    several: see `mixture`."""
    subset: str | None = None
    """Name of the subset ("configuration") where the dataset has several."""
    text_column: str = "text"
    tokens_column: str | None = None
    """Column of token ids, for text that is tokenized already; takes the place of `text_column`. Where neither is given, tokenized datasets
    are recognized: see `pretokenized`."""
    train_split: str = "train"
    eval_split: str = "heldout"
    """May equal `train_split`: then a tenth of its documents is held out."""
    streaming: bool = False
    """Read a Hub dataset as it comes instead of downloading all of it first. Local files are always read as they come."""
    activations_dtype: Literal["float16", "bfloat16", "float32"] = "float16"
    """Precision of the stored activations."""
    exclude_special_tokens: bool = True
    """Leave BOS, EOS, padding and other special tokens out of training and evaluation."""
    chat_column: str | None = None
    """Column of conversations, lists of messages with `role` and `content`; takes the place of `text_column`."""
    chat_template: str | None = None
    """Name of one of the tokenizer's chat templates, or the text of a template; None: its default."""
    train_on: TrainOn = "all"
    """Tokens of conversations that count: what the assistant says, the contents of all messages, or the template too."""
    positions: Annotated[tuple[Annotated[int, Field(ge=0)], int], Field(strict=False)] | None = None
    """First position in a window that counts, from 0, and the one behind the last; None: all."""
    packing: Literal["packed", "one_per_window"] = "packed"
    """Documents one after the other, cut into windows; or the start of each in a window of its own, the rest of which does not count."""
    exclude_high_norm: Annotated[float, Field(gt=1, allow_inf_nan=False)] | None = None
    """Leave tokens out, as special ones, whose activation has a norm above this multiple of the median one: attention sinks. None: none."""

    @model_serializer(mode="wrap")
    def _without_what_is_not_given(self, serialize: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        # Run ids and hashes of activations stay those of configs without these fields.
        later = self.changed(*_LATER_FIELDS).keys()
        return {name: value for name, value in serialize(self).items() if name in later or name not in _LATER_FIELDS}

    @model_validator(mode="after")
    def _chat_or_not(self) -> Self:
        if self.chat_column is None and (given := self.changed("chat_template", "train_on")):
            raise ConfigError(f"`chat_template` and `train_on` need a `chat_column`, but got {given} without one. Give it, or remove them.")
        if self.chat_column is not None and (given := self.changed("text_column", "tokens_column")):
            raise ConfigError(f"`chat_column` takes the place of other columns, but got {given} beside it. Remove one of them.")
        if self.positions is not None and self.positions[0] >= self.positions[1]:
            raise ConfigError(f"`positions` must be [start, stop] with start < stop, but got {list(self.positions)}. Correct them.")
        return self

    @model_validator(mode="after")
    def _text_or_tokens(self) -> Self:
        if self.tokens_column is not None and self.changed("text_column"):
            given = f"text_column={self.text_column!r} and tokens_column={self.tokens_column!r}"
            raise ConfigError(f"`text_column` must be left out where `tokens_column` is given, but got {given}. Remove one of them.")
        return self

    @property
    def column(self) -> str:
        """The column that is read."""
        return self.tokens_column or self.chat_column or self.text_column

    @property
    def in_words(self) -> str:
        """What is said of the windows, where it is not the usual."""
        said = []
        if self.chat_column is not None:
            counted = {"assistant": "what the assistant says", "content": "contents of messages", "all": "all tokens"}
            said.append(f"conversations, {counted[self.train_on]}")
        if self.positions is not None:
            said.append(f"positions {self.positions[0]} to {self.positions[1] - 1} of each window")
        if self.packing == "one_per_window":
            said.append("one document per window, longer ones cut, shorter ones padded")
        return "; ".join(said)


_LATER_FIELDS = frozenset({"chat_column", "chat_template", "train_on", "positions", "packing", "exclude_high_norm"})
"""Left out of what is written where they have their defaults."""
