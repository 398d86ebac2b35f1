"""The windows of a definition as a dataset: tokenized once, for this package and for SAELens.

DIR/train, DIR/heldout   splits as `datasets` saves them: `input_ids` [context_size]; of the held-out text also `documents`
DIR/sae_lens.json        settings as SAELens' PretokenizeRunner writes them
DIR/sae_sweep.json       what is checked when the windows are used: see `pretokenized`
DIR/README.md            which files are which split, for the Hub
"""

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_core.activations.language_model import loading, pretokenized
from sae_core.activations.language_model.source import LanguageModelActivations, LanguageModelSource
from sae_core.activations.language_model.windows import Windows
from sae_core.errors import ConfigError, border
from sweeps.definition.local_data import locate
from sweeps.definition.sweep import Sweep

FORMAT = 1
"""Version of sae_sweep.json."""
SAELENS_VERSION = "6.54.12"
"""Version of SAELens whose sae_lens.json is written."""
README = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: train/*.arrow
- config_name: heldout
  data_files:
  - split: heldout
    path: heldout/*.arrow
---

Windows of {context_size} tokens, made by `sae-sweep pretokenize` with the tokenizer of {tokenizer}. Settings: sae_sweep.json.
"""


@dataclass(frozen=True, slots=True)
class Pretokenized:
    """A dataset of windows."""

    directory: Path
    context_size: int
    train_windows: int
    heldout_windows: int
    n_bytes: int


def pretokenize(sweep: Sweep, directory: str | Path) -> Pretokenized:
    """Write the windows that the runs of a sweep read.

    Raises:
        ConfigError: the sweep reads no text, or several; model or text are not there; or `directory` holds something.
    """
    directory = Path(directory).expanduser().absolute()
    config = _text_of(sweep)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ConfigError(f"`--to` must be a new or empty directory, but got {str(directory)!r}, which holds something. Choose another.")
    with border(f"`--to` must be a directory that can be written, but got {str(directory)!r}", "Choose another, or free space."):
        directory.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        source = LanguageModelSource(LanguageModelActivations.model_validate(locate(config, temporary / "text").model_dump()))
        source.check()
        made = source.windows()
        n_bytes = _write(temporary / "data", made, config, source)
        if directory.exists():
            directory.rmdir()
        (temporary / "data").rename(directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return Pretokenized(directory, config.model.context_size, len(made.train.windows), len(made.heldout.windows), n_bytes)


def _text_of(sweep: Sweep) -> LanguageModelActivations:
    """The activations of a sweep, which must all read the same windows; the first of them."""
    runs = sweep.space().corners if sweep.search else sweep.runs()
    configs = list({run.activations.model_dump_json(): run.activations for run in runs}.values())
    if others := sorted({config.source for config in configs if not isinstance(config, LanguageModelActivations)}):
        raise ConfigError(
            f"text must be read by source 'language_model', but got {', '.join(map(repr, others))}. Give sections `model` and `data`."
        )
    if said := [config.data.in_words for config in configs if isinstance(config, LanguageModelActivations) and config.data.in_words]:
        raise ConfigError(f"`pretokenize` writes tokens without masks, but got {said[0]!r}. Leave that out, or use `sae-sweep harvest`.")
    texts: dict[str, LanguageModelActivations] = {}
    for config in configs:
        assert isinstance(config, LanguageModelActivations), f"{config=}"
        texts.setdefault(json.dumps(_read(config), sort_keys=True), config)
    if len(texts) > 1:
        first, *rest = (_read(config) for config in texts.values())
        differing = sorted(
            f"{name}={[one[name] for one in (first, *rest)]}" for name in first if any(one[name] != first[name] for one in rest)
        )
        raise ConfigError(f"`pretokenize` writes one dataset, but got {', '.join(differing)}. Choose one with `--set`.")
    return next(iter(texts.values()))


def _read(config: LanguageModelActivations) -> dict[str, Any]:
    """What decides the windows, by dotted path."""
    model = config.model.model_dump(include={"name", "context_size", "prepend_bos"})
    data = config.data.model_dump(exclude={"activations_dtype", "streaming", "exclude_high_norm"})
    n_tokens = {"data.train_tokens": config.train_tokens, "data.eval_tokens": config.eval_tokens}
    return {f"model.{name}": value for name, value in model.items()} | {f"data.{name}": value for name, value in data.items()} | n_tokens


def _write(directory: Path, made: Windows, config: LanguageModelActivations, source: LanguageModelSource) -> int:
    """Returns bytes."""
    import datasets
    import pyarrow as pa

    def column(windows: Any) -> pa.Array:
        return pa.FixedSizeListArray.from_arrays(pa.array(windows.numpy().ravel()), windows.shape[1])

    datasets.disable_progress_bars()
    try:
        splits = {
            "train": datasets.Dataset(pa.table({pretokenized.IDS: column(made.train.windows)})),
            "heldout": datasets.Dataset(
                pa.table({pretokenized.IDS: column(made.heldout.windows), pretokenized.DOCUMENTS: column(made.heldout.documents)})
            ),
        }
        for split in splits.values():
            split.set_format(type="torch", columns=[pretokenized.IDS])
        datasets.DatasetDict(splits).save_to_disk(str(directory))
    finally:
        datasets.enable_progress_bars()
    for name, content in _settings(config, source).items():
        (directory / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (directory / "README.md").write_text(
        README.format(context_size=config.model.context_size, tokenizer=config.model.name), encoding="utf-8"
    )
    return sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())


def _settings(config: LanguageModelActivations, source: LanguageModelSource) -> Mapping[str, dict[str, Any]]:
    """Content of the two files of settings."""
    model, data = config.model, config.data
    tokenizer = loading.tokenizer_or_none(source.config.model.name)
    has_bos = tokenizer is not None and tokenizer.bos_token_id is not None
    separator = None if data.tokens_column else "bos" if has_bos else "eos"
    saelens = {
        "sae_lens_version": SAELENS_VERSION,
        "tokenizer_name": model.name,
        "original_dataset": data.dataset,
        "original_dataset_name": data.subset,
        "original_split": data.train_split,
        "original_data_files": None,
        "original_column_name": data.column,
        "context_size": model.context_size,
        "shuffled": False,
        "seed": None,
        "begin_batch_token": "bos" if model.prepend_bos else None,
        "begin_sequence_token": None,
        "sequence_separator_token": separator,
        "disable_concat_sequences": False,
        "use_chat_formatting": False,
    }
    ours = {
        "format": FORMAT,
        "tokenizer_name": model.name,
        "vocabulary": pretokenized.vocabulary_hash(tokenizer) if tokenizer is not None else "",
        "context_size": model.context_size,
        "prepend_bos": model.prepend_bos,
        "train_tokens": config.train_tokens,
        "eval_tokens": config.eval_tokens,
        "data": data.model_dump(mode="json"),
    }
    return {pretokenized.SAELENS: saelens, pretokenized.OURS: ours}
