import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_runs import random_sae

from sae_core.config import ARCHITECTURES
from sae_core.errors import ConfigError, UnknownNameError
from sae_core.saelens import load, save

COMMON = {
    "d_in": 12,
    "d_sae": 40,
    "dtype": "float32",
    "device": "cpu",
    "apply_b_dec_to_input": True,
    "normalize_activations": "none",
    "reshape_activations": "none",
}
TENSORS = {
    "standard": {"W_enc", "W_dec", "b_enc", "b_dec"},
    "topk": {"W_enc", "W_dec", "b_enc", "b_dec"},
    "jumprelu": {"W_enc", "W_dec", "b_enc", "b_dec", "threshold"},
    "gated": {"W_enc", "W_dec", "b_dec", "b_gate", "b_mag", "r_mag"},
}
"""SAELens' tensor names, exactly: its loader refuses any other."""


def exported(directory: Path, name: str = "standard") -> Path:
    save(random_sae(name).to_inference(), directory, {"model_name": "demo"})
    return directory


def changed_cfg(directory: Path, *without: str, **changes: Any) -> Path:
    """An exported SAE whose cfg.json was edited."""
    path = exported(directory) / "cfg.json"
    cfg = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in cfg.items() if key not in without}))
    return directory


@pytest.mark.parametrize(
    ("name", "saved_as", "extra"),
    [
        ("standard", "standard", {}),
        ("gated", "gated", {}),
        ("topk", "topk", {"k": 5, "rescale_acts_by_decoder_norm": False}),
        ("jumprelu", "jumprelu", {}),
        ("batchtopk", "jumprelu", {}),
        ("matryoshka_batchtopk", "jumprelu", {}),
    ],
)
def test_files_have_saelens_keys_and_tensors(tmp_path: Path, name: str, saved_as: str, extra: dict[str, Any]) -> None:
    exported(tmp_path, name)
    cfg = json.loads((tmp_path / "cfg.json").read_text())
    assert cfg.pop("metadata") == {"sae_lens_version": "6.54.12", "model_name": "demo"}
    assert cfg == {"architecture": saved_as, **COMMON, **extra}
    tensors = load_file(tmp_path / "sae_weights.safetensors")
    assert tensors.keys() == TENSORS[saved_as]
    assert tensors["W_enc"].shape == (12, 40) and tensors["W_dec"].shape == (40, 12)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cfg.json", "sae_weights.safetensors"]


def test_a_training_form_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="must be in inference form to be saved, but got architecture='batchtopk'"):
        save(random_sae("batchtopk"), tmp_path / "sae", {})
    assert not (tmp_path / "sae").exists()


def test_the_configuration_comes_back(tmp_path: Path) -> None:
    sae = load(exported(tmp_path, "topk"))
    assert isinstance(sae, ARCHITECTURES["topk"])
    assert sae.config == ARCHITECTURES["topk"].Config(d_sae=40, k=5, rescale_acts_by_decoder_norm=False)
    assert sae.d_in == 12 and not sae.training


def test_files_of_saelens_in_half_precision_become_float32(tmp_path: Path) -> None:
    exported(tmp_path)
    weights = tmp_path / "sae_weights.safetensors"
    save_file({key: value.bfloat16() for key, value in load_file(weights).items()}, weights)
    assert load(tmp_path).encode(torch.ones(2, 12)).dtype == torch.float32


@pytest.mark.parametrize("name", ["cfg.json", "sae_weights.safetensors"])
def test_both_files_must_be_there(tmp_path: Path, name: str) -> None:
    (exported(tmp_path) / name).unlink()
    with pytest.raises(ConfigError, match=f"must hold cfg.json and sae_weights.safetensors, but {tmp_path} has no {name}"):
        load(tmp_path)


@pytest.mark.parametrize("key", ["architecture", "d_in", "d_sae"])
def test_keys_must_be_there(tmp_path: Path, key: str) -> None:
    with pytest.raises(ConfigError, match=rf"must have `architecture`, `d_in` and `d_sae`, but .* lacks \['{key}'\]"):
        load(changed_cfg(tmp_path, key))


def test_unknown_architectures_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"architecture must be one of .* but got 'transcoder'"):
        load(changed_cfg(tmp_path, architecture="transcoder"))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("normalize_activations", "expected_average_only_in"),
        ("apply_b_dec_to_input", False),
        ("normalize_activations", "constant_norm_rescale"),
    ],
)
def test_what_is_not_folded_is_refused(tmp_path: Path, key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"normalisation folded .* and b_dec subtracted from its input, but got .*{key}='?{value}"):
        load(changed_cfg(tmp_path, **{key: value}))


def test_layer_norm_is_named_and_comes_back(tmp_path: Path) -> None:
    sae = random_sae("standard")
    sae.layer_norm = True
    save(sae, tmp_path, {})
    assert json.loads((tmp_path / "cfg.json").read_text())["normalize_activations"] == "layer_norm"
    loaded, x = load(tmp_path), 3 + 2 * torch.randn(5, 12)
    assert loaded.layer_norm and torch.equal(loaded(x), sae(x))
    assert not torch.equal(loaded(x), loaded.decode(loaded.encode(x)))


def test_tensors_must_fit(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"(?s)tensors must fit architecture 'gated', but .*b_gate"):
        load(changed_cfg(tmp_path / "names", architecture="gated"))
    with pytest.raises(ConfigError, match=r"(?s)tensors must fit architecture 'standard', but .*\[12, 41\]"):
        load(changed_cfg(tmp_path / "shapes", d_sae=41))
