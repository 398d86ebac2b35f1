"""Datasets whose text is tokenized already: what they say about themselves, and whether that agrees with the model.

    sae_lens.json    beside the data: settings of SAELens' PretokenizeRunner, and ours as it would write them
    sae_sweep.json   beside windows that `sae-sweep pretokenize` made: what is checked before they are used as they are

Of a dataset without either, as TransformerLens' `tokenize_and_concatenate` makes, only the column is known.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_core.activations.files import is_hub_name
from sae_core.activations.language_model import loading
from sae_core.activations.language_model.loading import ModelConfig
from sae_core.errors import ConfigError, border
from sae_core.files import existing

IDS = "input_ids"
"""Column of token ids: the name that SAELens and transformers use."""
COLUMNS = ("tokens", IDS)
"""Columns of token ids that are recognized, in SAELens' order; the first is TransformerLens' name."""
DOCUMENTS = "documents"
"""Column of our windows: number of the document that each token is of."""
OURS = "sae_sweep.json"
SAELENS = "sae_lens.json"
_NAMED = "To use the ids as they are, unchecked, name the column: `data.tokens_column: {column}`."


@dataclass(frozen=True, slots=True)
class Description:
    """What a tokenized dataset says about itself."""

    file: str
    """Where it says so."""
    tokenizer: str
    """Name of the tokenizer, or of its model."""
    context_size: int
    """Tokens in a row."""
    vocabulary: str | None = None
    """`vocabulary_hash` of the tokenizer; None: it is known by name only."""
    prepend_bos: bool | None = None
    """Whether our windows start with BOS; None: rows are cut into windows again."""


def is_ours(dataset: str) -> bool:
    """Whether `sae-sweep pretokenize` made it."""
    return _file(dataset, OURS) is not None


def described(dataset: str) -> Description | None:
    """What lies beside a dataset; None: nothing.

    Raises:
        ConfigError: it cannot be read.
    """
    for name in (OURS, SAELENS):
        if (file := _file(dataset, name)) is None:
            continue
        with border(f"{name} beside `data.dataset` must hold its settings, but got {str(file)!r}", "Tokenize the text again."):
            content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            is_windows = name == OURS
            return Description(
                name,
                str(content["tokenizer_name"]),
                int(content["context_size"]),
                vocabulary=str(content["vocabulary"]) if is_windows else None,
                prepend_bos=bool(content["prepend_bos"]) if is_windows else None,
            )
    return None


def problems(dataset: str, column: str, model: ModelConfig) -> list[str]:
    """Where a tokenized dataset and the model differ.

    Args:
        column: of its token ids.
    """
    try:
        found = described(dataset)
    except ConfigError as error:
        return [str(error)]
    if found is None:
        return []
    length, is_ours = model.context_size, found.prepend_bos is not None
    wrong = []
    if length > found.context_size or (is_ours and length != found.context_size):
        must = str(found.context_size) if is_ours else f"<= {found.context_size}"
        wrong.append(
            f"`model.context_size` must be {must}, the tokens in a row of {dataset} ({found.file}), but got {length}. Correct it, or "
            "tokenize the text again."
        )
    if is_ours and model.prepend_bos != found.prepend_bos:
        wrong.append(
            f"`model.prepend_bos` must be {str(found.prepend_bos).lower()}, with which {dataset} was tokenized ({found.file}), but got "
            f"{str(model.prepend_bos).lower()}. Correct it, or tokenize the text again."
        )
    try:
        is_same = _is_same_tokenizer(found, model.name)
    except ConfigError as error:
        return [*wrong, str(error)]
    if not is_same:
        known = "" if found.vocabulary else ", or is not at hand"
        wrong.append(
            f"`data.dataset` must be tokenized with the tokenizer of `model.name`, but got {dataset} of {found.tokenizer!r} "
            f"({found.file}), whose vocabulary is another than that of {model.name!r}{known}. Tokenize the text for this model. "
            + _NAMED.format(column=column)
        )
    return wrong


def vocabulary_hash(tokenizer: Any) -> str:
    """Hash of a tokenizer's vocabulary and of its BOS and EOS tokens."""
    content = [sorted(tokenizer.get_vocab().items()), tokenizer.bos_token_id, tokenizer.eos_token_id]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _is_same_tokenizer(found: Description, name: str) -> bool:
    if found.vocabulary is None and found.tokenizer == name:
        return True
    tokenizer = loading.tokenizer_or_none(name)
    if tokenizer is None:
        return False
    if found.vocabulary is not None:
        return found.vocabulary == vocabulary_hash(tokenizer)
    try:
        other = loading.tokenizer_or_none(found.tokenizer)
    except ConfigError:  # not at hand
        return False
    return other is not None and bool(other.get_vocab() == tokenizer.get_vocab())


def _file(dataset: str, name: str) -> Path | None:
    """A file beside a dataset: in its directory, above that of a split, or in its repository on the Hub."""
    path = existing(dataset)
    if path is not None:
        return next((file for file in (path / name, path.parent / name) if file.is_file()), None) if path.is_dir() else None
    if name == OURS or not is_hub_name(dataset):
        return None
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(dataset, name, repo_type="dataset"))
    except Exception:  # there is none, or no network: then only the column is known
        return None
