"""sae_core/activations/language_model/loading.py: models whose files are not all there, or not theirs."""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_model import DEMO_MODEL, random_model
from torch import Tensor

from sae_core.activations.language_model import loading
from sae_core.activations.language_model.loading import ModelConfig, check_weights, load_model, placement, tokenizer_or_none
from sae_core.activations.language_model.model_spec import model_spec
from sae_core.errors import ConfigError

pytestmark = pytest.mark.slow

Weights = Mapping[str, Tensor]
FIRST = "transformer.h.0.attn.c_attn.weight"


def with_weights(directory: Path, change: Callable[[Weights], Weights] = lambda weights: weights) -> str:
    """A copy of the demo's model with other weights."""
    shutil.copytree(DEMO_MODEL, directory)
    weights = change(load_file(directory / "model.safetensors"))
    save_file({name: value.clone().contiguous() for name, value in weights.items()}, directory / "model.safetensors", {"format": "pt"})
    return str(directory)


def check(name: str) -> None:
    check_weights(name, model_spec(name).model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: {f"_orig_mod.{name}": value for name, value in weights.items()}, "53 missing .*52|not the model's \\(_orig_mod"),
        (lambda weights: {f"module.{name}": value for name, value in weights.items()}, "missing .*not the model's \\(module"),
        (lambda weights: {name: value for name, value in weights.items() if name != FIRST}, rf"1 missing \({FIRST}\)"),
        (
            lambda weights: {**weights, "transformer.h.9.ln_1.bias": torch.zeros(3)},
            r"1 that are not the model's \(transformer\.h\.9",
        ),
        (
            lambda weights: {**weights, FIRST: weights[FIRST][:, :100]},
            rf"1 of another shape \({FIRST} \[128, 100\] instead of \[128, 384\]",
        ),
    ],
    ids=["compiled", "data-parallel", "one missing", "one too many", "one of another shape"],
)
def test_weights_that_do_not_all_load_are_refused(tmp_path: Path, change: Callable[[Weights], Weights], message: str) -> None:
    name = with_weights(tmp_path / "model", change)
    with pytest.raises(ConfigError, match=f"weights all load, but got '{name}' with weights .*{message}"):
        check(name)
    with pytest.raises(ConfigError, match=f"but got '{name}'"):
        load_model(ModelConfig(name=name, hook_point="hook_embed"))


@pytest.mark.parametrize(
    "change",
    [
        lambda weights: weights,  # lm_head, tied to the embedding, is not among them
        lambda weights: {**weights, "lm_head.weight": weights["transformer.wte.weight"]},
        lambda weights: {name.removeprefix("transformer."): value for name, value in weights.items()},
        lambda weights: {
            **weights,
            "transformer.h.0.attn.bias": torch.ones(1, 1, 128, 128),
            "transformer.h.0.attn.masked_bias": torch.tensor(-1e4),
        },
    ],
    ids=["tied", "tied and stored", "of the base model", "with masks"],
)
def test_weights_that_all_load_are_accepted(tmp_path: Path, change: Callable[[Weights], Weights]) -> None:
    assert "lm_head.weight" not in load_file(Path(DEMO_MODEL) / "model.safetensors")
    name = with_weights(tmp_path / "model", change)
    check(name)
    tokens = torch.arange(8)[None]
    with torch.no_grad():
        logits = [load_model(ModelConfig(name=one, hook_point="hook_embed"))(tokens).logits for one in (name, DEMO_MODEL)]
    assert torch.equal(*logits)


def test_tables_of_rotations_that_older_versions_saved_are_accepted(tmp_path: Path) -> None:
    name = random_model(tmp_path / "model", "llama")
    path = tmp_path / "model/model.safetensors"
    save_file({**load_file(path), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}, path, {"format": "pt"})
    check(name)


def test_weights_in_the_format_of_pytorch(tmp_path: Path) -> None:
    name = with_weights(tmp_path / "model")
    weights = load_file(tmp_path / "model/model.safetensors")
    (tmp_path / "model/model.safetensors").unlink()
    torch.save(weights, tmp_path / "model/pytorch_model.bin")
    check(name)
    os.truncate(tmp_path / "model/pytorch_model.bin", 100_000)
    with pytest.raises(ConfigError, match=f"readable causal language model.*but got '{name}'"):
        check(name)


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 5\n"


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("model.safetensors", POINTER, "model.safetensors', a git-lfs pointer. Run `git lfs pull`"),
        ("tokenizer.json", POINTER, "tokenizer.json', a git-lfs pointer"),
        ("model.safetensors", "", "but got '.*model': SafetensorError"),
        ("model.safetensors", "no weights", "but got '.*model': SafetensorError"),
        ("model.safetensors", None, "but got '.*model': Error no file named model.safetensors"),
        ("config.json", "", "but got '.*model': .*config.json"),
        ("config.json", "{", "but got '.*model': .*config.json"),
        ("config.json", "[]", "but got '.*model'"),
        ("config.json", "[" * 100_000, "but got '.*model'"),
        ("config.json", '{"model_type": "gpt2", "n_layer": "4"}', "but got '.*model'"),
        ("config.json", '{"model_type": 5}', "but got '.*model'"),
        ("config.json", '{"model_type": "gpt2", "n_embd": -5}', "but got '.*model'"),
        ("config.json", '{"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_embd": 120, "n_layer": 4}', "of another shape"),
        ("config.json", '{"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "vocab_size": 1e400}', "but got '.*model'"),
    ],
)
def test_damaged_files_are_one_message(tmp_path: Path, file: str, content: str | None, message: str) -> None:
    name = with_weights(tmp_path / "model")
    (tmp_path / "model" / file).unlink()
    if content is not None:
        (tmp_path / "model" / file).write_text(content)
    with pytest.raises(ConfigError, match=message) as raised:
        check(name)
    assert "\n" not in str(raised.value)


def test_a_cut_file_of_weights(tmp_path: Path) -> None:
    name = with_weights(tmp_path / "model")
    os.truncate(tmp_path / "model/model.safetensors", 100_000)
    with pytest.raises(ConfigError, match=f"but got '{name}': SafetensorError.*Check its files"):
        check(name)


def test_a_model_without_a_tokenizer(tmp_path: Path) -> None:
    name = with_weights(tmp_path / "model")
    assert tokenizer_or_none(name)("def")["input_ids"]
    (tmp_path / "model/tokenizer.json").unlink()
    assert tokenizer_or_none(name) is None  # transformers makes one without a vocabulary of what is left
    (tmp_path / "model/tokenizer_config.json").unlink()
    assert tokenizer_or_none(name) is None
    check(name)


@pytest.mark.parametrize("content", ["{}", "null", "[]", "[" * 100_000, '{"model": {"type": "BPE", "vocab": {}, "merges": ["a b"]}}', "{"])
def test_a_damaged_tokenizer_is_one_message(tmp_path: Path, content: str) -> None:
    name = with_weights(tmp_path / "model")
    (tmp_path / "model/tokenizer.json").write_text(content)
    with pytest.raises(ConfigError, match=f"`model.name` must have a readable tokenizer, but got '{name}'") as raised:
        tokenizer_or_none(name)
    assert "\n" not in str(raised.value)


def test_a_tokenizer_whose_settings_are_wrong_is_one_message(tmp_path: Path) -> None:
    name = with_weights(tmp_path / "model")
    settings = json.loads((tmp_path / "model/tokenizer_config.json").read_text())
    (tmp_path / "model/tokenizer_config.json").write_text(json.dumps({**settings, "model_max_length": "long"}))
    with pytest.raises(ConfigError, match=f"readable tokenizer, but got '{name}': TypeError"):
        tokenizer_or_none(name)


def test_reports_of_transformers_are_not_shown(tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    name = with_weights(tmp_path / "model", lambda weights: {name: value for name, value in weights.items() if name != FIRST})
    with pytest.raises(ConfigError, match="1 missing"):
        check(name)
    assert "MISSING" not in capfd.readouterr().err + caplog.text
    from transformers.utils import logging

    assert logging.get_verbosity() < 50  # as before


def test_settings_of_generation_do_not_matter(tmp_path: Path) -> None:
    name = with_weights(tmp_path / "model")
    settings: dict[str, Any] = {"temperature": -1, "do_sample": False}
    (tmp_path / "model/generation_config.json").write_text(json.dumps(settings))
    check(name)


def test_code_that_comes_with_a_model_is_not_run(tmp_path: Path) -> None:
    name = with_weights(tmp_path / "model")
    config = json.loads((tmp_path / "model/config.json").read_text())
    own = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel", "AutoTokenizer": ["own.OwnTokenizer", None]}
    (tmp_path / "model/own.py").write_text("raise SystemExit('it ran')")
    (tmp_path / "model/config.json").write_text(json.dumps({**config, "model_type": "own", "auto_map": own}))
    with pytest.raises(ConfigError, match=f"but got '{name}': ValueError: .*custom code"):
        model_spec(name)
    (tmp_path / "model/tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "OwnTokenizer", "auto_map": own}))
    with pytest.raises(ConfigError, match=f"readable tokenizer, but got '{name}': ValueError: .*custom code"):
        tokenizer_or_none(name)


def test_an_adapter_that_would_not_be_applied_is_refused(tmp_path: Path) -> None:
    name = with_weights(tmp_path / "model")
    (tmp_path / "model" / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match=f"complete model, but got '{name}' with 'adapter_config.json', whose adapter would not"):
        model_spec(name)


def test_a_model_that_sees_what_follows_is_refused(tmp_path: Path) -> None:
    from transformers import BertConfig, BertForMaskedLM

    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 300}
    BertForMaskedLM(BertConfig(**size)).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=f"predicts the next token from those before it, but got 'BertForMaskedLM' in '{tmp_path}'"):
        model_spec(str(tmp_path))


@pytest.mark.parametrize(
    ("device", "n_gpus", "fields", "placed"),
    [
        ("cuda:0", 2, {}, {"device_map": "balanced", "max_memory": {0: 90, 1: 90}}),
        ("cuda:0", 1, {}, {}),
        ("cuda:0", 0, {}, {}),
        ("cpu", 2, {}, {}),
        ("cuda:0", 1, {"device_map": "auto"}, {"device_map": "auto", "max_memory": {0: 90, "cpu": 7}}),
        ("cpu", 0, {"device_map": "auto"}, {"device_map": "auto"}),
        ("cuda:0", 1, {"quantization": "8bit"}, {"device_map": {"": "cuda:0"}}),
    ],
)
def test_a_model_is_spread_over_the_gpus_of_a_slot(
    monkeypatch: pytest.MonkeyPatch, device: str, n_gpus: int, fields: Any, placed: Any
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(total_memory=100))
    monkeypatch.setattr(loading, "_memory", lambda: 7)
    assert placement(ModelConfig(name=DEMO_MODEL, hook_point="hook_embed", **fields), device, n_gpus) == placed


def test_a_model_is_placed_as_its_config_says() -> None:
    model = load_model(ModelConfig(name=DEMO_MODEL, hook_point="hook_embed", device_map="auto"))
    assert {weight.device.type for weight in model.parameters()} == {"cpu"}


@pytest.mark.parametrize(
    ("field", "value", "missing"),
    [("quantization", "8bit", "bitsandbytes"), ("quantization", "4bit", "accelerate"), ("device_map", "auto", "accelerate")],
)
def test_a_package_that_a_setting_needs_is_named(monkeypatch: pytest.MonkeyPatch, field: str, value: str, missing: str) -> None:
    monkeypatch.setattr(loading.importlib.util, "find_spec", lambda package: None if package == missing else object())
    config = ModelConfig.model_validate({"name": DEMO_MODEL, "hook_point": "hook_embed", field: value})
    with pytest.raises(ConfigError, match=f"`model.{field}` needs the package '{missing}', but got '{value}'.*pip install {missing}"):
        load_model(config)


def test_quantized_weights_are_what_transformers_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def refuse(name: str, **options: Any) -> None:
        asked.update(options)
        raise RuntimeError("no GPU")

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", refuse)
    monkeypatch.setattr(loading.importlib.util, "find_spec", lambda package: object())
    with pytest.raises(ConfigError, match="no GPU"):
        load_model(ModelConfig(name=DEMO_MODEL, hook_point="hook_embed", quantization="4bit", dtype="bfloat16"))
    assert asked["quantization_config"].load_in_4bit and asked["quantization_config"].bnb_4bit_compute_dtype == torch.bfloat16


def test_settings_that_are_not_given_are_no_part_of_an_identity() -> None:
    config = ModelConfig(name=DEMO_MODEL, hook_point="hook_embed")
    assert set(config.model_dump()) == {"name", "hook_point", "context_size", "dtype", "prepend_bos"}
    spread = ModelConfig(name=DEMO_MODEL, hook_point="hook_embed", quantization="8bit")
    assert spread.model_dump()["quantization"] == "8bit"
    assert ModelConfig.model_validate(spread.model_dump()) == spread
