"""The windows of a definition: text read, tokenized, cut and checked. `prepare` of the source stores them, `sae-sweep pretokenize` too."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from sae_core.activations.language_model import dataset, loading, mixture
from sae_core.activations.language_model.chat import ChatTemplate, special_tokens
from sae_core.activations.language_model.data_config import DataConfig
from sae_core.activations.language_model.dataset import Part
from sae_core.activations.language_model.loading import ModelConfig
from sae_core.activations.language_model.text import CutText, WindowMaker
from sae_core.activations.language_model.token_file import kept
from sae_core.errors import ConfigError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Windows:
    """Windows of both parts."""

    train: CutText
    heldout: CutText
    special_ids: tuple[int, ...]
    """Tokens that do not count."""


def make_windows(model: ModelConfig, data: DataConfig, *, train_tokens: int, eval_tokens: int, d_vocab: int) -> Windows:
    """The fewest windows that hold the tokens requested.

    Raises:
        ConfigError: there is too little text, or a token that the model does not have.
    """
    if data.exclude_special_tokens and loading.tokenizer_or_none(model.name) is None:
        logger.warning("no token is special: `model.name` %r has no tokenizer that could say which are.", model.name)
    maker = window_maker(model, data)
    train = maker.cut(dataset.documents(data, "train"), train_tokens)
    _check(model, data, "train", train, maker.special_ids, train_tokens, d_vocab)
    heldout = maker.cut(dataset.documents(data, "heldout"), eval_tokens)
    _check(model, data, "heldout", heldout, maker.special_ids, eval_tokens, d_vocab)
    return Windows(train, heldout, maker.special_ids)


def text_in_words(data: DataConfig) -> str:
    """What is said of the text and of the tokens that count, where it is not the usual."""
    factor = data.exclude_high_norm
    low = "" if factor is None else f"no tokens whose norm is above {factor:g} times the median one"
    return "; ".join(said for said in (mixture.in_words(data), data.in_words, low) if said)


def window_maker(model: ModelConfig, data: DataConfig) -> WindowMaker:
    """What makes the windows. Text is refused where there is no tokenizer, or no BOS token and one is needed."""
    tokenizer = loading.tokenizer_or_none(model.name)
    if tokenizer is None and not dataset.resolved(data).tokens_column:
        raise ConfigError(
            f"text needs a tokenizer, but got none in `model.name` {model.name!r}. Add its files, or give text that is tokenized: "
            "`data.tokens_column`."
        )
    chat = ChatTemplate(tokenizer, data.chat_template, data.train_on) if data.chat_column else None
    special: tuple[int, ...] = ()
    if tokenizer is not None and data.exclude_special_tokens:
        special = tuple(sorted(special_tokens(tokenizer) if chat else set(tokenizer.all_special_ids)))
    return WindowMaker(tokenizer, model.context_size, model.prepend_bos, special, data.packing, data.positions, chat)


def _check(model: ModelConfig, data: DataConfig, part: Part, cut: CutText, special_ids: Sequence[int], asked: int, d_vocab: int) -> None:
    key, split = ("train_tokens", data.train_split) if part == "train" else ("eval_tokens", data.eval_split)
    windows = cut.windows
    there = int((kept(windows, torch.tensor(special_ids, dtype=torch.int32)) & cut.counts).sum())
    if there < asked:
        raise ConfigError(
            f"`data.{key}` must be at most the {there} tokens that split {split!r} of {data.dataset} has in whole windows of "
            f"{model.context_size} ({data.in_words or 'special tokens excluded'}), but got {asked}. Lower `data.{key}` or give "
            "more text."
        )
    if int(windows.max()) >= d_vocab:
        raise dataset.too_large_id(dataset.resolved(data), int(windows.max()), d_vocab)
