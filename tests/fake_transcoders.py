"""Made-up results of transcoders of every layer of a model: records, and SAEs in folders as SAELens has them."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from fake_results import metrics_at, record_of, write_sweep
from safetensors.torch import save_file
from tiny_model import DEMO_MODEL
from torch import Tensor

from sae_core.config.run import RunConfig
from sae_core.records import RunRecord

D, D_SAE, N_LAYERS = 128, 24, 4
"""Sizes of the demo model, and latents."""


def run_id(layer: int, k: int) -> str:
    """Id of the made-up run of a layer with this k, which is its L0."""
    return f"topk-l{layer}-k{k}"


def record(
    layer: int, k: int, *, hooks: tuple[str, str | None] = ("mlp.hook_in", "hook_mlp_out"), name: str = DEMO_MODEL, **changes: Any
) -> RunRecord:
    """A finished run; with no second hook it is an SAE. Paths of modules are taken as they are."""

    def place(hook: str) -> str:
        return hook.format(layer=layer) if hook.startswith("transformer.") else f"blocks.{layer}.{hook}"

    model = {"name": name, "hook_point": place(hooks[0]), **({"hook_out": place(hooks[1])} if hooks[1] else {})}
    config = {
        "activations": {"source": "language_model", "model": model, "data": {"dataset": "demo"}, "train_tokens": 1000, "eval_tokens": 1000},
        "sae": {"architecture": "topk", "d_sae": D_SAE, "k": k},
        "train": {"lr": 1e-3, "batch_size": 100},
        "seed": 0,
    }
    dumped = RunConfig.model_validate(config).model_dump(mode="json")
    return dataclasses.replace(record_of("topk", k, metrics_at(k, 1 / k, 0.1), config=dumped), **{"run_id": run_id(layer, k), **changes})


def tensors_of(layer: int, *, has_skip: bool = False, has_threshold: bool = True, d: int = D) -> dict[str, Tensor]:
    """A random transcoder; a third of its thresholds are below 0."""
    generator = torch.Generator().manual_seed(layer)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    tensors = {"W_enc": randn(d, D_SAE) / d**0.5, "b_enc": randn(D_SAE), "W_dec": randn(D_SAE, d), "b_dec": randn(d)}
    tensors |= {"threshold": randn(D_SAE) + 0.4} if has_threshold else {}
    return tensors | ({"W_skip": randn(d, d) / d**0.5} if has_skip else {})


def write_transcoder(folder: Path, tensors: dict[str, Tensor], **changes: Any) -> None:
    """The folder of a transcoder, as SAELens writes it."""
    name = "_".join([*(["jumprelu"] if "threshold" in tensors else []), *(["skip"] if "W_skip" in tensors else []), "transcoder"])
    d = len(tensors["b_dec"])
    cfg = {"architecture": name, "d_in": d, "d_sae": D_SAE, "d_out": d, "dtype": "float32", "device": "cpu"}
    cfg |= {"apply_b_dec_to_input": False, "normalize_activations": "none", "reshape_activations": "none"}
    folder.mkdir(parents=True)
    (folder / "cfg.json").write_text(json.dumps({**cfg, "metadata": {"sae_lens_version": "6.54.12"}, **changes}))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "sae_weights.safetensors")


def write_results(
    directory: Path, *, ks: tuple[int, ...] = (8, 16), name: str = DEMO_MODEL, n_layers: int = N_LAYERS, **tensors: Any
) -> Path:
    """A sweep with transcoders of every layer.

    Args:
        tensors: what `tensors_of` takes.
    """
    write_sweep(directory, [record(layer, k, name=name) for layer in range(n_layers) for k in ks])
    for layer in range(n_layers):
        for k in ks:
            write_transcoder(directory / "runs" / run_id(layer, k) / "sae", tensors_of(layer, **tensors))
    return directory
