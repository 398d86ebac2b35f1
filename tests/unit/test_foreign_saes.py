"""Folders as dictionary_learning, sparsify and Gemma Scope lay them out, against their forward passes written out."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign_folders import (
    SPARSIFY,
    D,
    Forward,
    K,
    M,
    dictionary_learning,
    jumprelu,
    keep_largest,
    linear,
    random,
    write_dictionary_learning,
    write_gemma_scope,
    write_sparsify,
)
from torch import Tensor

from sae_core.errors import ConfigError
from sae_core.sae.base import SparseAutoencoder


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
