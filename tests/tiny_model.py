"""A small language model and text for tests: the embedded demo model, tiny random models of other families, and made-up code."""

import json
from pathlib import Path
from typing import Any

from sae_core.activations.language_model.source import LanguageModelActivations
from sweeps.demo.corpus import model_directory

DEMO_MODEL = str(model_directory())


def documents(n: int, *, first: int = 0) -> list[str]:
    """`n` different pieces of code, of some 400 tokens each."""
    return ["".join(f"def f_{i}_{j}(x, y={j}):\n    return x * {i + j} - y\n\n" for j in range(20)) for i in range(first, first + n)]


def write_text(path: Path, *, n_train: int = 12, n_heldout: int = 6) -> Path:
    """A JSON-lines file with columns `text` and `split`."""
    rows = [{"text": text, "split": "train"} for text in documents(n_train)]
    rows += [{"text": text, "split": "heldout"} for text in documents(n_heldout, first=n_train)]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def language_model_config(directory: Path, **changes: Any) -> LanguageModelActivations:
    """A config for the demo model on made-up code in `directory`; keys of `model`, `data` or the config itself may be changed."""
    model = {"name": DEMO_MODEL, "hook_point": "blocks.2.hook_resid_post"}
    data = {"dataset": str(directory / "text.jsonl")}
    top = {"train_tokens": 2_000, "eval_tokens": 1_000}
    for key, value in changes.items():
        section = next((fields for fields in (top, model, data) if key in fields), None)
        if section is None:
            section = data if key in DATA_FIELDS else model
        section[key] = value
    if not (directory / "text.jsonl").exists():
        write_text(directory / "text.jsonl")
    return LanguageModelActivations.model_validate({"model": model, "data": data, **top})


DATA_FIELDS = frozenset(LanguageModelActivations.model_fields["data"].annotation.model_fields)  # type: ignore[union-attr]


def random_model(directory: Path, family: str) -> str:
    """Write a random 3-layer model of another family, with the demo's tokenizer, in Hugging Face layout."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma2Config, GPTNeoConfig, GPTNeoXConfig, LlamaConfig

    common = {"vocab_size": 4096, "bos_token_id": 0, "eos_token_id": 0, "hidden_size": 32, "max_position_embeddings": 64}
    usual = {"intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = {
        "gpt_neo": lambda: GPTNeoConfig(num_layers=3, num_heads=4, attention_types=[[["global"], 3]], **common),
        "gpt_neox": lambda: GPTNeoXConfig(**usual, **common),
        "gemma2": lambda: Gemma2Config(num_key_value_heads=2, head_dim=8, pad_token_id=0, **usual, **common),
        "llama": lambda: LlamaConfig(num_key_value_heads=2, pad_token_id=0, **usual, **common),
    }[family]()
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    AutoTokenizer.from_pretrained(DEMO_MODEL).save_pretrained(directory)
    return str(directory)
