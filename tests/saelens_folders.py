"""Folders as SAELens' versions and other programs write them, for the tests of reading them; `SAELENS` reads each the same way."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

D_IN, D_OUT, D_SAE = 12, 9, 40
V6 = {"metadata": {"sae_lens_version": "6.54.12", "hook_name": "blocks.1.hook_resid_post"}}
V5 = {"sae_lens_training_version": "5.10.0", "hook_name": "blocks.1.hook_resid_post", "hook_layer": 1, "activation_fn_str": "relu"}


def weights(architecture: str) -> dict[str, Tensor]:
    """Random tensors; decoder rows of norms from 0.3 to 3, about a quarter of the thresholds below 0; transcoders write D_OUT values."""
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    width = D_OUT if "transcoder" in architecture else D_IN
    W_dec = torch.nn.functional.normalize(randn(D_SAE, width)) * (0.3 + 2.7 * torch.rand(D_SAE, 1, generator=generator))
    tensors = {"W_enc": randn(D_IN, D_SAE), "W_dec": W_dec, "b_dec": randn(width)}
    if architecture == "matching_pursuit":
        return {"W_dec": torch.nn.functional.normalize(W_dec), "b_dec": randn(width)}
    tensors |= {"W_skip": randn(D_OUT, D_IN)} if "skip" in architecture else {}
    if architecture == "gated":
        return tensors | {"b_gate": randn(D_SAE), "b_mag": randn(D_SAE), "r_mag": 0.3 * randn(D_SAE)}
    return tensors | {"b_enc": randn(D_SAE)} | ({"threshold": randn(D_SAE) + 0.7} if "jumprelu" in architecture else {})


def transcoder_cfg(architecture: str) -> dict[str, Any]:
    """As SAELens writes it: two hooks, and nothing is subtracted from the input."""
    hooks = {"hook_name": "blocks.1.hook_mlp_in", "hook_name_out": "blocks.1.hook_mlp_out"}
    cfg = {"architecture": architecture, "d_out": D_OUT, "apply_b_dec_to_input": False}
    return V6 | cfg | {"metadata": {"sae_lens_version": "6.54.12", **hooks}}


def write(folder: Path, cfg: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Path:
    """A folder with these files; `d_in`, `d_sae` and `dtype` are added where the cfg has none."""
    folder.mkdir(parents=True)
    sizes = {"d_in": D_IN, "d_sae": D_SAE, "dtype": "float32", "device": "cpu"}
    (folder / "cfg.json").write_text(json.dumps(sizes | dict(cfg)))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "sae_weights.safetensors")
    return folder


def of_their_time() -> dict[str, tuple[dict[str, Any], dict[str, Tensor]]]:
    """What versions 2 to 5 wrote, key by key: version 2 its whole runner config."""
    hook = "blocks.1.hook_resid_post"
    model = {"model_name": "gpt2-small", "model_class_name": "HookedTransformer", "dataset_path": "Skylion007/openwebtext"}
    v2 = (
        model
        | {"hook_point": hook, "hook_point_eval": "blocks.{layer}.attn.pattern", "hook_point_layer": 1}
        | {"hook_point_head_index": None, "streaming": True, "is_dataset_tokenized": False, "context_size": 128}
        | {"use_cached_activations": False, "cached_activations_path": None, "expansion_factor": 4, "b_dec_init_method": "geometric_median"}
        | {"n_batches_in_buffer": 64, "store_batch_size": 32, "train_batch_size": 4096, "normalize_activations": False, "seed": 42}
        | {"dtype": "torch.float32", "prepend_bos": True, "apply_b_dec_to_input": True, "decoder_orthogonal_init": False}
        | {"normalize_sae_decoder": True, "noise_scale": 0.0, "l1_coefficient": 1e-3, "lp_norm": 1.0, "lr": 4e-4, "lr_end": 4e-5}
        | {"lr_scheduler_name": "constant", "lr_warm_up_steps": 500, "lr_decay_steps": 0, "n_restart_cycles": 1, "adam_beta1": 0.0}
        | {"adam_beta2": 0.999, "mse_loss_normalization": None, "l1_warm_up_steps": 0, "use_ghost_grads": False, "log_to_wandb": True}
        | {"feature_sampling_window": 1000, "dead_feature_window": 1000, "dead_feature_threshold": 1e-6, "wandb_project": "saes"}
        | {"n_eval_batches": 10, "n_checkpoints": 0, "checkpoint_path": "checkpoints/x", "verbose": True, "training_tokens": 300_000_000}
        | {"finetuning_tokens": 0}
    )
    v3 = (
        model
        | {"hook_name": hook, "hook_layer": 1, "hook_head_index": None, "activation_fn_str": "relu", "apply_b_dec_to_input": True}
        | {"finetuning_scaling_factor": False, "sae_lens_training_version": "3.0.0", "prepend_bos": True, "context_size": 128}
        | {"normalize_activations": False}
    )
    v4 = v3 | {"architecture": "gated", "normalize_activations": "none", "sae_lens_training_version": "3.9.2", "activation_fn_kwargs": {}}
    v5 = v4 | {"neuronpedia_id": None, "dataset_trust_remote_code": True, "model_from_pretrained_kwargs": {"center_writing_weights": True}}
    v5 |= {"sae_lens_training_version": "5.11.0", "seqpos_slice": [None], "architecture": "jumprelu"}
    ones = {"scaling_factor": torch.ones(D_SAE)}
    return {
        "of-version-2": (v2, weights("standard") | ones),
        "of-version-3.0": (v3, weights("standard") | ones),
        "of-version-3.9": (v4, weights("gated")),
        "of-version-5": (v5, weights("jumprelu")),
        "of-version-5-layer-norm": (v5 | {"normalize_activations": "layer_norm"}, weights("jumprelu")),
        "of-version-5-topk": (
            v5 | {"architecture": "topk", "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 5}},
            weights("topk"),
        ),
    }


def foreign() -> dict[str, tuple[dict[str, Any], dict[str, Tensor]]]:
    """What SAELens 6.54.12 reads, by name: a cfg without sizes, and tensors."""
    ones = {"scaling_factor": torch.ones(D_SAE)}
    cfgs: dict[str, tuple[dict[str, Any], dict[str, Tensor]]] = {
        "standard-v2": (
            {"hook_point": "blocks.1.hook_resid_post", "hook_point_layer": 1, "l1_coefficient": 1e-3},
            weights("standard") | ones,
        ),
        "standard-v3": (V5 | {"normalize_activations": False, "apply_b_dec_to_input": True}, weights("standard")),
        "topk-as-standard": (
            V5 | {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 5}, "architecture": "standard"},
            weights("topk"),
        ),
        "topk-v5": (V5 | {"architecture": "topk", "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 5}}, weights("topk")),
        "topk-without-rescale": (V6 | {"architecture": "topk", "k": 5}, weights("topk")),
        "topk-rescaled": (V6 | {"architecture": "topk", "k": 5, "rescale_acts_by_decoder_norm": True}, weights("topk")),
        "jumprelu-v5": (V5 | {"architecture": "jumprelu", "activation_fn_kwargs": {}}, weights("jumprelu")),
    }
    for name in ("standard", "gated", "jumprelu", "topk"):
        cfg = V6 | {"architecture": name, "apply_b_dec_to_input": False} | ({"k": 5} if name == "topk" else {})
        cfgs[f"{name}-b_dec-not-applied"] = cfg, weights(name)
        cfgs[f"{name}-b_dec-not-applied-layer_norm"] = cfg | {"normalize_activations": "layer_norm"}, weights(name)
    cfgs["abstopk-plain"] = V6 | {"architecture": "abstopk", "k": 5}, weights("topk")
    cfgs["abstopk-plain-layer_norm"] = V6 | {"architecture": "abstopk", "k": 5, "normalize_activations": "layer_norm"}, weights("topk")
    mp = V6 | {"architecture": "matching_pursuit"}
    cfgs |= {
        "matching_pursuit": (mp, weights("matching_pursuit")),
        "matching_pursuit-4": (
            mp | {"max_iterations": 4, "residual_threshold": 0, "stop_on_duplicate_support": False},
            weights("matching_pursuit"),
        ),
        "matching_pursuit-threshold": (mp | {"max_iterations": None, "residual_threshold": 2.0}, weights("matching_pursuit")),
        "matching_pursuit-b_dec-not-applied": (mp | {"apply_b_dec_to_input": False}, weights("matching_pursuit")),
        "matching_pursuit-layer_norm": (mp | {"normalize_activations": "layer_norm"}, weights("matching_pursuit")),
    }
    for name in ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder"):
        cfgs[name] = transcoder_cfg(name), weights(name)
    return cfgs | of_their_time()
