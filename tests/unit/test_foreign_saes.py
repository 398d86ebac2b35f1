"""Folders as dictionary_learning, sparsify and Gemma Scope lay them out, against their forward passes written out."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from sae_core.errors import ConfigError
from sae_core.sae.base import SparseAutoencoder

D, M, K = 12, 40, 5
Forward = Callable[[Tensor], tuple[Tensor, Tensor]]
Tensors = dict[str, Any]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def linear(decoder_bias: str, d: int = D, m: int = M) -> Tensors:
    encoder = {"encoder.weight": random(m, d, seed=1), "encoder.bias": random(m, seed=2)}
    return {**encoder, "decoder.weight": random(d, m, seed=3), decoder_bias: random(d, seed=4)}


def matrices(d: int = D, m: int = M) -> Tensors:
    return {"W_enc": random(d, m, seed=1), "b_enc": random(m, seed=2), "W_dec": random(m, d, seed=3), "b_dec": random(d, seed=4)}


def keep_largest(z: Tensor, k: int) -> Tensor:
    values, indices = z.topk(k, dim=1)
    return torch.zeros_like(z).scatter(1, indices, values)


def dictionary_learning(kind: str, d: int = D, m: int = M) -> tuple[Tensors, Forward]:
    """State dict and forward pass of one class."""
    match kind:
        case "AutoEncoder" | "AutoEncoderNew":
            name = "bias" if kind == "AutoEncoder" else "decoder.bias"
            t = linear(name, d, m)
            shift = t[name] if kind == "AutoEncoder" else 0

            def encode(x: Tensor) -> Tensor:
                return ((x - shift) @ t["encoder.weight"].T + t["encoder.bias"]).relu()
        case "GatedAutoEncoder":
            name = "decoder_bias"
            t = linear(name, d, m) | {"r_mag": random(m, seed=5) / 5, "gate_bias": random(m, seed=6), "mag_bias": random(m, seed=7)}
            del t["encoder.bias"]

            def encode(x: Tensor) -> Tensor:
                u = (x - t[name]) @ t["encoder.weight"].T
                return (u + t["gate_bias"] > 0) * (t["r_mag"].exp() * u + t["mag_bias"]).relu()
        case "JumpReluAutoEncoder":
            name, t = "b_dec", matrices(d, m) | {"threshold": random(m, seed=5).abs()}

            def encode(x: Tensor) -> Tensor:
                z = x @ t["W_enc"] + t["b_enc"]
                return z.relu() * (z > t["threshold"])
        case "AutoEncoderTopK":
            name, t = "b_dec", linear("b_dec", d, m) | {"k": torch.tensor(K), "threshold": torch.tensor(-1.0)}

            def encode(x: Tensor) -> Tensor:
                return keep_largest(((x - t[name]) @ t["encoder.weight"].T + t["encoder.bias"]).relu(), K)
        case "BatchTopKSAE":
            name, t = "b_dec", linear("b_dec", d, m) | {"k": torch.tensor(K), "threshold": torch.tensor(2.5)}

            def encode(x: Tensor) -> Tensor:
                z = ((x - t[name]) @ t["encoder.weight"].T + t["encoder.bias"]).relu()
                return z * (z > 2.5)
        case _:
            groups = {"k": torch.tensor(K), "threshold": torch.tensor(2.5), "group_sizes": torch.tensor([m // 4, m - m // 4])}
            name, t = "b_dec", matrices(d, m) | groups

            def encode(x: Tensor) -> Tensor:
                z = ((x - t[name]) @ t["W_enc"] + t["b_enc"]).relu()
                return z * (z > 2.5)

    rows = t["decoder.weight"].T if "decoder.weight" in t else t["W_dec"]
    return t, lambda x: (encode(x), encode(x) @ rows + t[name])


def write_dictionary_learning(folder: Path, kind: str, tensors: Tensors, d: int = D, m: int = M, **trainer: Any) -> Path:
    folder.mkdir(exist_ok=True)
    torch.save(tensors, folder / "ae.pt")
    config = {"dict_class": kind, "activation_dim": d, "dict_size": m, "k": 9 * K, "layer": 3, **trainer}
    (folder / "config.json").write_text(json.dumps({"trainer": config, "buffer": {"d_submodule": d, "io": "out", "n_ctxs": 10}}))
    return folder


SPARSIFY = {"activation": "topk", "expansion_factor": 32, "normalize_decoder": True, "num_latents": M, "k": K, "multi_topk": False}
SPARSIFY |= {"skip_connection": False, "transcode": False, "d_in": D}


def write_sparsify(folder: Path, tensors: Tensors | None = None, **changed: Any) -> Path:
    folder.mkdir(exist_ok=True)
    t = linear("b_dec") if tensors is None else tensors
    save_file({("W_dec" if name == "decoder.weight" else name): tensor.T.contiguous() if name == "decoder.weight" else tensor
               for name, tensor in t.items()}, folder / "sae.safetensors")  # fmt: skip
    (folder / "cfg.json").write_text(json.dumps(SPARSIFY | changed))
    return folder


def write_gemma_scope(folder: Path, version: int, tensors: Tensors, **changed: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    if version == 1:
        np.savez(folder / "params.npz", **{name: tensor.numpy() for name, tensor in tensors.items()})
        return folder
    save_file({name.lower() if name.startswith("W") else name: tensor for name, tensor in tensors.items()}, folder / "params.safetensors")
    config = {"architecture": "jump_relu", "hf_hook_point_in": "model.layers.9.output", "hf_hook_point_out": "model.layers.9.output"}
    (folder / "config.json").write_text(json.dumps(config | {"affine_connection": False, "model_name": "gemma"} | changed))
    return folder


def jumprelu(d: int = D, m: int = M) -> Tensors:
    return matrices(d, m) | {"threshold": random(m, seed=5).abs()}


def agrees(folder: Path, forward: Forward, d: int = D) -> SparseAutoencoder:
    sae, x = SparseAutoencoder.from_pretrained(folder), random(64, d, seed=9)
    with torch.no_grad():
        latents, x_hat = sae.reconstruct(x)
    expected = forward(x)
    assert 1 < float((latents != 0).sum(dim=1).float().mean()) < 35
    torch.testing.assert_close(latents, expected[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(x_hat, expected[1], rtol=1e-4, atol=1e-4)
    return sae


CLASSES = ["AutoEncoder", "AutoEncoderNew", "GatedAutoEncoder", "JumpReluAutoEncoder", "AutoEncoderTopK", "BatchTopKSAE"]
CLASSES += ["MatryoshkaBatchTopKSAE"]


@pytest.mark.parametrize("m", [M, D])  # as many latents as inputs: shapes alone do not tell a matrix from its transpose
@pytest.mark.parametrize("kind", CLASSES)
def test_dictionary_learning_computes_here_what_it_computes_there(tmp_path: Path, kind: str, m: int) -> None:
    tensors, forward = dictionary_learning(kind, D, m)
    agrees(write_dictionary_learning(tmp_path, kind, tensors, D, m), forward)


def test_k_of_dictionary_learning_is_the_one_of_the_tensors(tmp_path: Path) -> None:
    sae = SparseAutoencoder.from_pretrained(
        write_dictionary_learning(tmp_path, "AutoEncoderTopK", dictionary_learning("AutoEncoderTopK")[0])
    )
    assert sae.saelens_fields()["k"] == K


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_gemma_scope_does_not_subtract_b_dec(tmp_path: Path, version: int, dtype: torch.dtype) -> None:
    stored = {name: tensor.to(dtype) for name, tensor in jumprelu().items()}
    t = {name: tensor.float() for name, tensor in stored.items()}

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        z = x @ t["W_enc"] + t["b_enc"]
        latents = z * (z > t["threshold"])
        return latents, latents @ t["W_dec"] + t["b_dec"]

    agrees(write_gemma_scope(tmp_path, version, stored), forward)


def test_sparsify_computes_here_what_it_computes_there(tmp_path: Path) -> None:
    t = linear("b_dec")

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        latents = keep_largest(((x - t["b_dec"]) @ t["encoder.weight"].T + t["encoder.bias"]).relu(), K)
        return latents, latents @ t["decoder.weight"].T + t["b_dec"]

    agrees(write_sparsify(tmp_path), forward)


def test_width_of_sparsify_by_its_expansion_factor(tmp_path: Path) -> None:
    folder = write_sparsify(tmp_path, linear("b_dec", D, 4 * D), num_latents=0, expansion_factor=4)
    assert SparseAutoencoder.from_pretrained(folder).d_sae == 4 * D


def test_what_is_read_is_saved_in_our_format_and_the_same(tmp_path: Path) -> None:
    sae, x = SparseAutoencoder.from_pretrained(write_gemma_scope(tmp_path / "a", 1, jumprelu())), random(64, D)
    sae.save_pretrained(tmp_path / "b")
    assert torch.equal(SparseAutoencoder.from_pretrained(tmp_path / "b").encode(x), sae.encode(x))


def refused(folder: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        SparseAutoencoder.from_pretrained(folder)
    return str(caught.value)


def test_thresholds_below_zero_are_refused(tmp_path: Path) -> None:
    tensors = dictionary_learning("BatchTopKSAE")[0] | {"threshold": torch.tensor(-1.0)}
    assert "at least 0, but got -1" in refused(write_dictionary_learning(tmp_path, "BatchTopKSAE", tensors))
    assert "at least 0" in refused(write_gemma_scope(tmp_path / "a", 1, jumprelu() | {"threshold": -random(M).abs()}))


@pytest.mark.parametrize(
    ("kind", "tensors", "trainer", "said"),
    [
        ("SomeAutoEncoder", "AutoEncoder", {}, "'SomeAutoEncoder'"),
        ("AutoEncoderTopK", "AutoEncoder", {}, "names and shapes"),
        ("AutoEncoder", "AutoEncoder", {"dict_size": M + 1}, "names and shapes"),
        ("AutoEncoder", "AutoEncoder", {"dict_size": None}, "whole numbers"),
    ],
)
def test_other_classes_and_shapes_are_refused(tmp_path: Path, kind: str, tensors: str, trainer: dict[str, Any], said: str) -> None:
    assert said in refused(write_dictionary_learning(tmp_path, kind, dictionary_learning(tensors)[0], **trainer))


def test_the_backup_of_a_running_training_is_refused(tmp_path: Path) -> None:
    tensors = {"step": 3, "ae": dictionary_learning("AutoEncoder")[0], "optimizer": {}, "config": {}, "norm_factor": torch.tensor(2.0)}
    assert "backup of a running one" in refused(write_dictionary_learning(tmp_path, "AutoEncoder", tensors))


def test_transcoders_of_gemma_scope(tmp_path: Path) -> None:
    t = jumprelu()
    t |= {"W_dec": random(M, D + 1), "b_dec": random(D + 1), "affine_skip_connection": random(D, D + 1)}

    def forward(x: Tensor, skip: float = 0.0) -> tuple[Tensor, Tensor]:
        z = x @ t["W_enc"] + t["b_enc"]
        latents = z * (z > t["threshold"])
        return latents, latents @ t["W_dec"] + t["b_dec"] + skip * (x @ t["affine_skip_connection"])

    out = {"hf_hook_point_out": "model.layers.9.mlp.output"}
    plain = {name: tensor for name, tensor in t.items() if name != "affine_skip_connection"}
    agrees(write_gemma_scope(tmp_path / "google--gemma-scope-2b-pt-transcoders" / "layer_3", 1, plain), forward)
    agrees(write_gemma_scope(tmp_path / "a", 2, plain, **out), forward)
    sae = agrees(write_gemma_scope(tmp_path / "b", 2, t, affine_connection=True, **out), lambda x: forward(x, 1.0))
    assert sae.d_out == D + 1
    sae.save_pretrained(tmp_path / "c")
    agrees(tmp_path / "c", lambda x: forward(x, 1.0))


def test_what_is_neither_an_sae_nor_a_transcoder_that_we_have_is_refused(tmp_path: Path) -> None:
    assert "transcode" in refused(write_sparsify(tmp_path / "a", transcode=True))
    skip = {"affine_skip_connection": random(D, D)}
    assert "affine" in refused(write_gemma_scope(tmp_path / "b", 2, jumprelu() | skip))
    assert "affine" in refused(write_gemma_scope(tmp_path / "c", 2, jumprelu(), affine_connection=True, hf_hook_point_out="other"))
    assert "one hook point" in refused(write_gemma_scope(tmp_path / "d", 2, jumprelu(), hf_hook_point_in=["a", "b"]))
    assert "embeddings" in refused(write_gemma_scope(tmp_path / "embedding" / "width_4k", 1, jumprelu()))


def test_topk_of_dictionary_learning_before_it_kept_k_and_threshold(tmp_path: Path) -> None:
    tensors, forward = dictionary_learning("AutoEncoderTopK")
    first = {name: tensor for name, tensor in tensors.items() if name not in ("k", "threshold")}
    agrees(write_dictionary_learning(tmp_path / "a", "AutoEncoderTopK", first, k=K), forward)
    assert "k" in refused(write_dictionary_learning(tmp_path / "b", "AutoEncoderTopK", first, k=None))
    batch = {name: tensor for name, tensor in dictionary_learning("BatchTopKSAE")[0].items() if name not in ("k", "threshold")}
    assert "names and shapes" in refused(write_dictionary_learning(tmp_path / "c", "BatchTopKSAE", batch))


@pytest.mark.parametrize("changed", [{"activation": "groupmax"}, {"signed": True}, {"new_key": 1}, {"k": None}])
def test_what_sparsify_has_and_we_do_not_is_refused_by_name(tmp_path: Path, changed: dict[str, Any]) -> None:
    assert next(iter(changed)) in refused(write_sparsify(tmp_path, **changed))


@pytest.mark.parametrize("version", [1, 2])
def test_a_square_encoder_without_a_config_of_its_shape_is_refused(tmp_path: Path, version: int) -> None:
    assert "either way round" in refused(write_gemma_scope(tmp_path, version, jumprelu(D, D)))


def test_a_folder_of_two_formats_is_refused(tmp_path: Path) -> None:
    write_sparsify(tmp_path)
    assert "several formats" in refused(write_gemma_scope(tmp_path, 1, jumprelu()))


@pytest.mark.parametrize("name", ["ae.pt", "sae.safetensors", "params.npz", "params.safetensors"])
@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\n", b"PK\x03\x04damaged"])
def test_damaged_weights_are_one_message(tmp_path: Path, name: str, content: bytes) -> None:
    write_dictionary_learning(tmp_path, "AutoEncoder", {})
    (tmp_path / "ae.pt").unlink()
    (tmp_path / "cfg.json").write_text(json.dumps(SPARSIFY))
    (tmp_path / name).write_bytes(content)
    assert refused(tmp_path)
