"""Folders as dictionary_learning, sparsify and Gemma Scope lay them out, with their forward passes written out."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

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
