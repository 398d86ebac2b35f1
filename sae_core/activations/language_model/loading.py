"""The border to transformers and TransformerLens: models and tokenizers from what a user named, or one ConfigError.

A model is refused unless all its weights load. transformers fills in what is missing with random numbers and goes on; whether it did, it
says itself: `from_pretrained(device_map="meta", output_loading_info=True)` compares names and shapes and reads no weights.
"""

import copy
import gc
import json
import logging
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from sae_core.activations.files import is_hub_name
from sae_core.activations.language_model.rows import LFS_POINTER
from sae_core.errors import ConfigError, border
from sae_core.files import existing

MODEL_FILES = ("config.json", "*.safetensors", "*.bin")
TOKENIZER_FILES = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges*")
VOCABULARY_FILES = ("tokenizer.json", "vocab*", "merges*", "*.model", "*.tiktoken")
"""Files of which a tokenizer has one at least, but for those of bytes."""
NOT_WEIGHTS = frozenset({"training_args.bin", "optimizer.bin", "scheduler.bin"})
"""What trainers leave beside a model."""

MOST_LAYERS = 1_000
"""More blocks than any model has: building the modules of as many takes minutes."""
LONGEST_CONFIG = 2**20
"""Bytes of a config.json that is longer than any model's."""

NOT_WANTED = re.compile(r"(^|\.)((self_)?(attn|attention)\.(bias|masked_bias)|rotary_emb\.[^.]+|inv_freq|position_ids)$")
"""Buffers that older versions of transformers saved beside the weights: masks and tables that are computed now."""


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Whatever the libraries raise while they read a model becomes one ConfigError, and their reports and progress bars are not shown."""
    local = _directory(name) is not None
    remedy = (
        "Check its files, or give another model."
        if local
        else "Check the name and the network, or download the model and give its directory."
    )
    must = "a readable language model that TransformerLens knows" if local else "a local directory or a reachable Hugging Face Hub name"
    with border(f"`model.name` must be {must}, but got {name!r}", remedy), _quiet():
        yield


def local_or_hub(name: str) -> str:
    """`name` as an absolute path where it is a local directory, else unchanged: a Hub name.

    Raises:
        ConfigError: it is a path, and there is no such directory.
    """
    directory = _directory(name)
    if directory is not None:
        return str(directory)
    if not is_hub_name(name):
        raise ConfigError(f"`model.name` must be an existing directory or a Hugging Face Hub name, but got {name!r}. Correct the path.")
    return name


def model_files(directory: Path) -> list[Path]:
    """Files of a model directory that are loaded, and decide its activations or the tokens it is given."""
    files = {path for pattern in (*MODEL_FILES, *TOKENIZER_FILES) for path in directory.glob(pattern)}
    files = {path for path in files if not path.name.startswith(".") and path.name not in NOT_WEIGHTS and path.is_file()}
    if any(path.suffix == ".safetensors" for path in files):  # then nothing else is loaded
        files = {path for path in files if path.suffix != ".bin"}
    return sorted(files)


def boot(name: str, *, dtype: torch.dtype, device: str, load_weights: bool) -> Any:
    """A TransformerBridge, with weights or without.

    Raises:
        ConfigError: no such model, or none that TransformerLens knows.
    """
    where = local_or_hub(name)
    with reading(name):
        _check_files(_directory(name))
        with _no_garbage_collection():
            from transformer_lens.model_bridge import TransformerBridge
        # Tokens are given as numbers, so that the bridge's tokenizer is never used; a model need not have one.
        return TransformerBridge.boot_transformers(
            where, dtype=dtype, device=device, load_weights=load_weights, tokenizer=_empty_tokenizer()
        )


def check_weights(name: str, model: Any) -> None:
    """Make sure that all weights of a model load. One on the Hub is looked at once it is in the cache, a quantized one is not.

    Args:
        model: the Hugging Face model, with or without weights: its class and config are used.

    Raises:
        ConfigError: weights are missing, left over or of another shape, or a file cannot be read.
    """
    if getattr(model.config, "quantization_config", None) is not None:  # its names and shapes are the quantizer's
        return
    where, is_local = local_or_hub(name), _directory(name) is not None
    options: dict[str, Any] = {"config": copy.deepcopy(model.config), "device_map": "meta", "ignore_mismatched_sizes": True}
    with reading(name):
        try:
            _, info = type(model).from_pretrained(where, output_loading_info=True, local_files_only=not is_local, **options)
        except OSError:
            if is_local:
                raise
            return
    missing, unexpected = sorted(info["missing_keys"]), sorted(key for key in info["unexpected_keys"] if not NOT_WANTED.search(key))
    misshapen = [f"{key} {list(stored)} instead of {list(wanted)}" for key, stored, wanted in sorted(info["mismatched_keys"])]
    problems = [
        f"{len(names)} {what} ({_some(names)})"
        for names, what in ((missing, "missing"), (unexpected, "that the model has no place for"), (misshapen, "of another shape"))
        if names
    ]
    if problems:
        raise ConfigError(
            f"`model.name` must be a model whose weights all load, but got {name!r} with weights {', '.join(problems)}. "
            "Save it again with `save_pretrained`, from the model itself and not from a wrapper that renames its weights."
        )


def tokenizer_or_none(name: str) -> Any | None:
    """The model's tokenizer; None where it has none.

    Raises:
        ConfigError: it cannot be read.
    """
    from transformers import AutoTokenizer

    where, directory = local_or_hub(name), _directory(name)
    _check_files(directory)
    has_files = directory is None or any(True for pattern in VOCABULARY_FILES for _ in directory.glob(pattern))
    try:
        with border(f"`model.name` must have a readable tokenizer, but got {name!r}", "Check its files, or give another model."), _quiet():
            tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=False)
            tokenizer(["some text"], add_special_tokens=False, verbose=False)  # wrong settings show only there
    except ConfigError:
        if has_files:
            raise
        return None
    # Of some families transformers makes one without a vocabulary where files are missing.
    return tokenizer if len(tokenizer) > len(set(tokenizer.all_special_ids)) else None


def _check_files(directory: Path | None) -> None:
    """Say what is wrong with a local model's files where a library would say something that does not help.

    Raises:
        ConfigError: a file is empty or a git-lfs pointer, or config.json is not a model's.
    """
    if directory is None:
        return
    for path in model_files(directory):
        with path.open("rb") as file:
            start = file.read(len(LFS_POINTER))
        if not start or start == LFS_POINTER:
            state = "a git-lfs pointer. Run `git lfs pull` there" if start else "empty. Copy it again"
            raise ConfigError(f"files of a model must be complete, but got {str(path)!r}, which is {state}.")
    adapter = directory / "adapter_config.json"
    if adapter.is_file():
        raise ConfigError(
            f"`model.name` must be a whole model, but got {str(directory)!r} with {adapter.name!r}, whose adapter would not be applied. "
            "Merge it with peft's `merge_and_unload` and save the model, or remove it."
        )
    path = directory / "config.json"
    if not path.is_file():
        raise ConfigError(
            f"`model.name` must be a model in Hugging Face layout, but got {str(directory)!r} without config.json. Correct the path."
        )
    if path.stat().st_size > LONGEST_CONFIG:
        raise ConfigError(f"config.json must be a model's, but got {path.stat().st_size} bytes in {str(path)!r}. Correct it.")
    with border(f"config.json must be a JSON object, but got {str(path)!r}", "Correct it."):
        config = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError(f"it holds {type(config).__name__}")
    names = config.get("architectures")
    if isinstance(names, list) and names and all("MaskedLM" in str(name) for name in names):
        raise ConfigError(
            f"`model.name` must be a model that predicts the next token from those before it, but got {str(names[0])!r} in {str(path)!r}. "
            "Choose a causal language model."
        )
    layers = {key: config[key] for key in ("num_hidden_layers", "n_layer", "n_layers", "num_layers") if key in config}
    for key, value in layers.items():
        if not isinstance(value, int) or not 0 < value <= MOST_LAYERS:
            raise ConfigError(f"`{key}` must be from 1 to {MOST_LAYERS}, but got {value!r} in {str(path)!r}. Correct it.")


def _some(names: Iterable[str], most: int = 3) -> str:
    """The first of these names."""
    names = list(names)
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def _directory(name: str) -> Path | None:
    """The local directory of this name; None where there is none."""
    path = existing(name)
    return path.resolve() if path is not None and path.is_dir() else None


def _empty_tokenizer() -> Any:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = models.WordLevel({"<unk>": 0}, unk_token="<unk>")
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), unk_token="<unk>")


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """For imports: 4,000 modules, all of which stay. Looking among their objects for some that do not takes a quarter of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the reports and progress bars of transformers: what matters of them is in our messages."""
    from transformers.utils import logging as transformers_logging

    bars, verbosity = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
