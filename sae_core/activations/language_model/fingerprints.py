"""Hashes of what decides the activations of a language model: weights, text and settings. Names and paths do not enter."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from sae_core.activations.language_model import dataset, loading
from sae_core.activations.language_model.data_config import DataConfig
from sae_core.activations.language_model.loading import ModelConfig
from sae_core.activations.language_model.token_file import TokenFile, may_be_shorter


def of_activations(model: ModelConfig, data: DataConfig, n_tokens: Sequence[int], format_version: int) -> str:
    """`ActivationSource.fingerprint` of a language model, with this many training and held-out tokens."""
    # Content stands for the names of model and dataset, so that the hash does not depend on where they lie.
    content = {
        "format": format_version,
        "model": loading.content_hash(model.name),
        "data": dataset.content_hash(data),
        "tokens": list(n_tokens),
        "model_fields": model.model_dump(exclude={"name", "device_map"}),
        "data_fields": data.model_dump(exclude={"dataset", "streaming"}),
    }
    return hash_of(content)


def of_held_out(model: ModelConfig, data: DataConfig, tokens: TokenFile, format_version: int) -> str:
    """`ActivationSource.eval_fingerprint` of a language model, with these tokens."""
    heldout, special_ids = tokens.heldout, tokens.special_ids
    content = {
        "format": format_version,
        "model": loading.content_hash(model.name),
        "hook_point": model.hook_point,
        "dtype": model.dtype,
        "heldout": hashlib.sha256(heldout.numpy().tobytes()).hexdigest(),
        "special_ids": special_ids,
    }
    if (counts := tokens.heldout_counts) is not None:
        content["heldout_counts"] = hashlib.sha256(counts.numpy().tobytes()).hexdigest()
    if data.exclude_high_norm is not None:
        content["exclude_high_norm"] = data.exclude_high_norm
    if model.hook_out is not None:
        content["hook_out"] = model.hook_out
    if model.quantization is not None:
        content["quantization"] = model.quantization
    if not model.prepend_bos or may_be_shorter(heldout):  # else BOS at each start shows how long windows are
        content["shape"] = list(heldout.shape)
    return hash_of(content)


def hash_of(content: dict[str, Any]) -> str:
    """Hash of what JSON can hold."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
