import json
import os
import re
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
from sae_core.sae.saelens import load, save
from sae_core.sparse.active import ActiveLatents

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
        save(random_sae("batchtopk"), tmp_path / "sae", {})
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
    with pytest.raises(ConfigError, match=f"must hold cfg.json and sae_weights.safetensors, but '{tmp_path}' has no {name}"):
        load(tmp_path)


@pytest.mark.parametrize("path", ["nowhere", "~nosuchuser/sae", "a\x00b", "\ud800"])
def test_the_directory_must_exist(path: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"an SAE must be a directory, but got {path!r}, which does not exist")):
        SparseAutoencoder.from_pretrained(path)


def test_a_file_is_no_directory(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"must be a directory, but got '.*cfg\.json', which is a file\. Give the directory"):
        load(exported(tmp_path) / "cfg.json")


def test_what_the_system_refuses_is_one_message() -> None:
    with pytest.raises(ConfigError, match=r"^an SAE directory must hold .* but got 'xxx.*File name too long.* export the SAE again\.$"):
        load("x" * 5_000)


@pytest.mark.parametrize("name", ["cfg.json", "sae_weights.safetensors"])
def test_git_lfs_pointers_are_named(tmp_path: Path, name: str) -> None:
    (exported(tmp_path) / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(ConfigError, match=f"'{tmp_path}/{name}' is a Git LFS pointer. Run `git lfs pull`"):
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
    with pytest.raises(ConfigError, match=rf"'{path}' is damaged: .*checksum does not match.* on purpose, remove its key `checksum`\.$"):
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
    with pytest.raises(ConfigError, match=f"'{path}' is damaged: .*Put back a copy or export the SAE again"):
        load(tmp_path)


@pytest.mark.parametrize("key", ["architecture", "d_in", "d_sae"])
def test_keys_must_be_there(tmp_path: Path, key: str) -> None:
    with pytest.raises(ConfigError, match=rf"^`{key}` of an SAE's cfg.json must .* but got none in '{tmp_path}/cfg.json'"):
        load(changed_cfg(tmp_path, key))


def test_unknown_architectures_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UnknownNameError,
        match=r"of an SAE's cfg.json must be one of .* but got 'transcoder'.*Transcoders and others",
    ):
        load(changed_cfg(tmp_path, architecture="transcoder"))


@pytest.mark.parametrize("name", ["batchtopk", "matryoshka_batchtopk"])
def test_training_forms_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=f"in inference form to be loaded, but got architecture='{name}'.* at inference it is 'jumprelu'"):
        load(changed_cfg(tmp_path, architecture=name))


def test_layer_norm_is_named_and_comes_back(tmp_path: Path) -> None:
    sae = random_sae("standard")
    sae.layer_norm = True
    save(sae, tmp_path, {})
    assert json.loads((tmp_path / "cfg.json").read_text())["normalize_activations"] == "layer_norm"
    loaded, x = load(tmp_path), 3 + 2 * torch.randn(5, 12)
    assert loaded.layer_norm and torch.equal(loaded(x), sae(x))
    assert not torch.equal(loaded(x), loaded.decode(loaded.encode(x)))


@pytest.mark.parametrize(("d_in", "d_sae"), [(13, 40), (12, 41), (40, 12), (2**70, 40), (12, 10**400)])
def test_sizes_must_be_those_of_the_tensors(tmp_path: Path, d_in: int, d_sae: int) -> None:
    with pytest.raises(
        ConfigError, match=rf"'W_dec' .* got one of shape \[40, 12\] in .* and d_sae={str(d_sae)[:9]}.*d_in={str(d_in)[:9]}"
    ):
        load(changed_cfg(tmp_path, d_in=d_in, d_sae=d_sae))


def broken(tensor: Tensor, value: float) -> Tensor:
    return tensor.index_fill(0, torch.tensor([1]), value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {k: v for k, v in t.items() if k != "b_enc"}, r"must hold a tensor 'b_enc' of shape \[40\], but has none"),
        (lambda t: {k: v for k, v in t.items() if k != "W_dec"}, r"'W_dec' of an SAE must .* got none in"),
        (lambda t: t | {"W_skip": torch.zeros(12, 12)}, r"no other tensors than \['W_dec', 'W_enc', 'b_dec', 'b_enc'\], but has 'W_skip'"),
        (lambda t: t | {"W_enc": t["W_enc"].T}, r"'W_enc' of shape \[12, 40\], but it has \[40, 12\], its transpose"),
        (lambda t: t | {"b_dec": t["b_dec"][None]}, r"'b_dec' of shape \[12\], but it has \[1, 12\]"),
        (lambda t: t | {"b_enc": t["b_enc"].int()}, r"'b_enc' in a floating-point precision, but it has torch\.int32"),
        (lambda t: t | {"b_enc": broken(t["b_enc"], torch.nan)}, r"finite numbers, but 1 of 40 in 'b_enc' are not"),
        (lambda t: t | {"W_enc": broken(t["W_enc"], -torch.inf)}, r"finite numbers, but 40 of 480 in 'W_enc' are not"),
        (lambda t: t | {"W_dec": broken(t["W_dec"].double(), 1e300)}, r"finite numbers, but 12 of 480 in 'W_dec' are not \(in float32\)"),
    ],
)
def test_tensors_must_fit(tmp_path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load(changed_weights(tmp_path, change))
    assert f"'{tmp_path}/sae_weights.safetensors'" in str(caught.value)


def test_all_that_is_wrong_with_the_tensors_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"(?s)architecture 'gated' must hold a tensor 'b_gate'.*'b_mag'.*'r_mag'.*but has 'b_enc'"):
        load(changed_cfg(tmp_path, architecture="gated"))


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    sae = random_sae("jumprelu")
    with torch.no_grad():
        sae.W_enc[3, 5] = torch.nan
    with pytest.raises(ConfigError, match=r"weights of an SAE must be finite, but got \{'W_enc': 1\} numbers that are not"):
        save(sae, tmp_path / "sae", {})
    assert not (tmp_path / "sae").exists()


def test_a_topk_in_training_form_comes_back_with_its_norms_folded(tmp_path: Path) -> None:
    sae, x = random_sae("topk"), torch.randn(9, 12)
    save(sae, tmp_path, {})
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
    save(sae, tmp_path, {})
    loaded = load(tmp_path)
    assert loaded.config == sae.config
    torch.testing.assert_close(loaded(x), sae(x))

    cfg = json.loads((tmp_path / "cfg.json").read_text())
    del cfg["checksum"], cfg["k"]
    (tmp_path / "cfg.json").write_text(json.dumps(cfg | {"alpha": "2.5"}))
    with pytest.raises(ConfigError, match=r"(?s)^`k` .*cfg.json': Field required\.\n`alpha` .* but got '2\.5' in .*valid number\.$"):
        load(tmp_path)
