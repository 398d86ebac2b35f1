"""A small language model and text for tests: the embedded demo model, tiny random models of other families, and made-up code."""

import json
from pathlib import Path
from typing import Any

from sae_core.activations.language_model.engine import HookedModel
from sae_core.activations.language_model.loading import ModelConfig, load_model
from sae_core.activations.language_model.model_spec import model_spec
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
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    common = {"vocab_size": 4096, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0, "hidden_size": 32, "max_position_embeddings": 64}
    usual = {**common, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    grouped = {**usual, "num_key_value_heads": 2}
    kind, options = {
        "gpt_neo": ("GPTNeo", {**common, "num_layers": 3, "num_heads": 4, "attention_types": [[["global"], 3]]}),
        "gpt_neox": ("GPTNeoX", usual),
        "gemma2": ("Gemma2", {**grouped, "head_dim": 8}),
        "llama": ("Llama", grouped),
        "qwen3": ("Qwen3", {**grouped, "head_dim": 8}),
        "mixtral": ("Mixtral", {**grouped, "num_local_experts": 4}),
        "qwen3_moe": ("Qwen3Moe", {**grouped, "head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}),
    }[family]
    config = getattr(transformers, f"{kind}Config")(**options)
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    AutoTokenizer.from_pretrained(DEMO_MODEL).save_pretrained(directory)
    return str(directory)


def hooked_model(name: str, *hook_points: str, **fields: Any) -> HookedModel:
    """A model with its weights, at some hook points."""
    spec = model_spec(name)
    model = load_model(ModelConfig.model_validate({"name": name, "hook_point": hook_points[0], **fields}))
    return HookedModel(model, spec.layout, *map(spec.place, hook_points))
