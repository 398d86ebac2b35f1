import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_runs import random_sae
from torch import Tensor

from sae_core.architectures.topk_family import TopKFamily, TopKFamilyConfig
from sae_core.config.run import ARCHITECTURES
from sae_core.errors import ConfigError, UnknownNameError
from sae_core.sae.base import SparseAutoencoder
from sae_core.sparse.active import ActiveLatents

load = SparseAutoencoder.from_pretrained
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
    random_sae(name).to_inference().save_pretrained(directory, {"model_name": "demo"})
    return directory


def changed_cfg(directory: Path, *without: str, **changes: Any) -> Path:
    """An exported SAE whose cfg.json was edited on purpose."""
    path = exported(directory) / "cfg.json"
    cfg = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in cfg.items() if key not in (*without, "checksum")}))
    return directory


def changed_weights(directory: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]], name: str = "standard") -> Path:
    """An exported SAE whose tensors another program wrote again."""
    path = exported(directory, name) / "sae_weights.safetensors"
    save_file({key: value.contiguous() for key, value in change(load_file(path)).items()}, path)
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
    assert len(cfg.pop("checksum")) == 32
    assert cfg.pop("metadata") == {"sae_lens_version": "6.54.12", "model_name": "demo"}
    assert cfg == {"architecture": saved_as, **COMMON, **extra}
    tensors = load_file(tmp_path / "sae_weights.safetensors")
    assert tensors.keys() == TENSORS[saved_as]
    assert tensors["W_enc"].shape == (12, 40) and tensors["W_dec"].shape == (40, 12)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cfg.json", "sae_weights.safetensors"]


def test_a_training_form_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="must be in inference form to be saved, but got architecture='batchtopk'"):
        random_sae("batchtopk").save_pretrained(tmp_path / "sae", {})
    assert not (tmp_path / "sae").exists()


def test_the_configuration_comes_back(tmp_path: Path) -> None:
    sae = load(exported(tmp_path, "topk"))
    assert isinstance(sae, ARCHITECTURES["topk"])
    assert sae.config == ARCHITECTURES["topk"].Config(d_sae=40, k=5, rescale_acts_by_decoder_norm=False)
    assert sae.d_in == 12 and not sae.training


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_files_in_other_precisions_become_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    changed_weights(tmp_path, lambda tensors: {key: value.to(dtype) for key, value in tensors.items()})
    sae, x = load(tmp_path), torch.randn(2, 12)
    assert sae.encode(x).dtype == torch.float32
    torch.testing.assert_close(sae(x), random_sae("standard")(x), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("name", ["cfg.json", "sae_weights.safetensors"])
def test_both_files_must_be_there(tmp_path: Path, name: str) -> None:
    (exported(tmp_path) / name).unlink()
    with pytest.raises(ConfigError, match=rf"must be a directory with cfg.json and sae_weights.safetensors .* No such file.*{name}"):
        load(tmp_path)


@pytest.mark.parametrize("path", ["nowhere", "a\x00b", "\ud800", "x" * 5_000, __file__])
def test_what_is_no_directory_of_an_sae_is_one_message(path: str) -> None:
    with pytest.raises(ConfigError, match=r"^(an SAE must be a directory with|a file must be unchanged since it was written, but) .*\.$"):
        load(path)


@pytest.mark.parametrize("name", ["cfg.json", "sae_weights.safetensors"])
def test_git_lfs_pointers_are_damaged_files(tmp_path: Path, name: str) -> None:
    (exported(tmp_path) / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(ConfigError, match=f"'{tmp_path}/{name}' is damaged"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "JSONDecodeError"),
        (b"[]", "it holds list, not an object"),
        (b"\xff\xfe", "UnicodeDecodeError"),
        (b"[" * 100_000, "RecursionError"),
        (b'{"d_in": 1' + b"0" * 5_000 + b"}", "ValueError"),
    ],
)
def test_a_cfg_that_is_no_object_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    (exported(tmp_path) / "cfg.json").write_bytes(content)
    with pytest.raises(ConfigError, match=rf"'{tmp_path}/cfg\.json' is damaged: .*{reason}"):
        load(tmp_path)


def test_a_cfg_that_was_changed_is_refused_and_says_what_to_do(tmp_path: Path) -> None:
    path = exported(tmp_path, "topk") / "cfg.json"
    path.write_text(path.read_text().replace('"k": 5', '"k": 4'))
    with pytest.raises(ConfigError, match=rf"'{path}' is damaged: .*checksum does not match"):
        load(tmp_path)
    cfg = json.loads(path.read_text())
    del cfg["checksum"]
    path.write_text(json.dumps(cfg))
    config = load(tmp_path).config
    assert isinstance(config, ARCHITECTURES["topk"].Config) and config.sparsity_value == 4


@pytest.mark.parametrize("keep", [0, 1, 100, -1])
def test_weights_that_are_cut_off_are_refused(tmp_path: Path, keep: int) -> None:
    path = exported(tmp_path) / "sae_weights.safetensors"
    os.truncate(path, keep if keep >= 0 else path.stat().st_size + keep)
    with pytest.raises(ConfigError, match=f"'{path}' is damaged"):
        load(tmp_path)


@pytest.mark.parametrize("key", ["architecture", "d_in", "d_sae"])
def test_keys_must_be_there(tmp_path: Path, key: str) -> None:
    with pytest.raises(ConfigError, match=f"{key}|'None'"):
        load(changed_cfg(tmp_path, key))


def test_unknown_architectures_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UnknownNameError,
        match=r"of an SAE's cfg.json must be one of .* but got 'temporal'.*",
    ):
        load(changed_cfg(tmp_path, architecture="temporal"))


@pytest.mark.parametrize("name", ["batchtopk", "matryoshka_batchtopk"])
def test_training_forms_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UnknownNameError, match=f"but got '{name}'.* Export the inference form"):
        load(changed_cfg(tmp_path, architecture=name))


def test_layer_norm_is_named_and_comes_back(tmp_path: Path) -> None:
    sae = random_sae("standard")
    sae.layer_norm = True
    sae.save_pretrained(tmp_path, {})
    assert json.loads((tmp_path / "cfg.json").read_text())["normalize_activations"] == "layer_norm"
    loaded, x = load(tmp_path), 3 + 2 * torch.randn(5, 12)
    assert loaded.layer_norm and torch.equal(loaded(x), sae(x))
    assert not torch.equal(loaded(x), loaded.decode(loaded.encode(x)))


@pytest.mark.parametrize(("d_in", "d_sae"), [(13, 40), (12, 41), (40, 12), (2**70, 40), (12, 10**400), (True, 40), (12, "40"), (0, 40)])
def test_sizes_must_be_those_of_the_tensors(tmp_path: Path, d_in: Any, d_sae: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        load(changed_cfg(tmp_path, d_in=d_in, d_sae=d_sae))
    assert str(tmp_path) in str(caught.value) and len(str(caught.value)) < 1_000


def broken(tensor: Tensor, value: float) -> Tensor:
    return tensor.index_fill(0, torch.tensor([1]), value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {k: v for k, v in t.items() if k != "b_enc"}, r"have the shapes \{.*'b_enc': \[40\].*\}, but got \{"),
        (lambda t: t | {"W_skip": torch.zeros(12, 12)}, r"but got .*'W_skip': \[12, 12\]"),
        (lambda t: t | {"W_enc": t["W_enc"].T}, r"'W_enc': \[12, 40\].*, but got .*'W_enc': \[40, 12\]"),
        (lambda t: t | {"b_dec": t["b_dec"][None]}, r"but got .*'b_dec': \[1, 12\]"),
        (lambda t: t | {"b_enc": t["b_enc"].int()}, r"floating-point numbers, .* but got others in \['b_enc'\]"),
        (lambda t: t | {"b_enc": broken(t["b_enc"], torch.nan)}, r"finite .* but got others in \['b_enc'\]"),
        (lambda t: t | {"W_dec": broken(t["W_dec"].double(), 1e300)}, r"in float32 too, but got others in \['W_dec'\]"),
    ],
)
def test_tensors_must_fit(tmp_path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load(changed_weights(tmp_path, change))
    assert f"'{tmp_path}'" in str(caught.value)


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    sae = random_sae("jumprelu")
    with torch.no_grad():
        sae.W_enc[3, 5] = torch.nan
    with pytest.raises(ConfigError, match=r"weights of an SAE must be finite, but got \{'W_enc': 1\} numbers that are not"):
        sae.save_pretrained(tmp_path / "sae", {})
    assert not (tmp_path / "sae").exists()


def test_a_topk_in_training_form_comes_back_with_its_norms_folded(tmp_path: Path) -> None:
    sae, x = random_sae("topk"), torch.randn(9, 12)
    sae.save_pretrained(tmp_path, {})
    loaded = load(tmp_path)
    assert json.loads((tmp_path / "cfg.json").read_text())["rescale_acts_by_decoder_norm"] is True
    assert loaded.config == sae.to_inference().config
    torch.testing.assert_close(loaded(x), sae.eval()(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(loaded.encode(x), sae.to_inference().encode(x), rtol=1e-4, atol=1e-5)


def test_an_architecture_that_only_we_know_keeps_its_fields(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class OfOurs(TopKFamilyConfig):
        sparsity_parameter: ClassVar[str] = "k"

        architecture: Literal["ours"] = "ours"
        k: int
        alpha: float = 1.0

    class Ours(TopKFamily):
        Config = OfOurs
        config: OfOurs

        def select(self, products: Tensor, k: float) -> tuple[ActiveLatents, Tensor]:
            raise NotImplementedError

        def encode(self, x: Tensor) -> Tensor:
            return self.config.alpha * self.products(x).relu()

        def saelens_fields(self) -> dict[str, object]:
            return {"k": self.config.k, "alpha": self.config.alpha}

    monkeypatch.setitem(ARCHITECTURES._entries, "ours", Ours)
    sae, x = Ours(OfOurs(d_sae=40, k=3, alpha=2.5), 12), torch.randn(3, 12)
    sae.save_pretrained(tmp_path, {})
    loaded = load(tmp_path)
    assert loaded.config == sae.config
    torch.testing.assert_close(loaded(x), sae(x))

    cfg = json.loads((tmp_path / "cfg.json").read_text())
    del cfg["checksum"], cfg["k"]
    (tmp_path / "cfg.json").write_text(json.dumps(cfg | {"alpha": "2.5"}))
    with pytest.raises(ConfigError, match=r"must be valid, but in '.*' `k` cannot be .*: Field required"):
        load(tmp_path)
