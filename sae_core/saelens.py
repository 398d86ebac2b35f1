"""To and from SAELens' files: `cfg.json` and `sae_weights.safetensors` in its inference layout.

`save` takes an SAE in inference form (`to_inference`, then `normalisation.build_into`), so that whoever loads the files applies nothing
more. An affine normalisation is in the weights. Layer norm is named in cfg.json: SAELens applies it in `encode`, undoes it in `decode`.
Format facts: sae-lens 6.54.12 reads `dtype`, `architecture` and `metadata.sae_lens_version` as mandatory, and tensor names exactly.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from sae_core.config import ARCHITECTURES
from sae_core.errors import ConfigError
from sae_core.files import write_json, written_whole
from sae_core.sae import SparseAutoencoder

FORMAT_VERSION = "6.54.12"
"""SAELens version whose format is written; below 6.0.0 its loader drops the metadata."""

WEIGHTS = "sae_weights.safetensors"


def save(sae: SparseAutoencoder, directory: Path, metadata: dict[str, Any]) -> None:
    """Write an SAE in inference form.

    Args:
        metadata: `model_name`, `hook_name`, `context_size`, ... and anything else worth keeping; SAELens accepts any key.

    Raises:
        ConfigError: the SAE is in a training form that SAELens does not know.
    """
    if sae.saelens_architecture not in (None, sae.config.architecture):
        raise ConfigError(
            f"an SAE must be in inference form to be saved, but got architecture={sae.config.architecture!r}. "
            "Save what its `to_inference()` returns."
        )
    directory.mkdir(parents=True, exist_ok=True)
    cfg = {
        "architecture": sae.saelens_architecture or sae.config.architecture,
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "layer_norm" if sae.layer_norm else "none",
        # SAELens flattens (heads, d_head) itself, when told to; our activations are flat already.
        "reshape_activations": "hook_z" if str(metadata.get("hook_name", "")).endswith("hook_z") else "none",
        **sae.saelens_fields(),
        "metadata": {"sae_lens_version": FORMAT_VERSION, **metadata},
    }
    tensors = {name: tensor.detach().float().cpu().contiguous() for name, tensor in sae.state_dict().items()}
    with written_whole(directory / WEIGHTS) as temporary:
        save_file(tensors, temporary)
    write_json(directory / "cfg.json", cfg)


def load(directory: Path) -> SparseAutoencoder:
    """Read an SAE in inference form, from `save` or from SAELens.

    Raises:
        ConfigError: files or keys are missing, the architecture is unknown, or tensors do not fit it.
    """
    for name in ("cfg.json", WEIGHTS):
        if not (directory / name).is_file():
            raise ConfigError(f"an SAE directory must hold cfg.json and {WEIGHTS}, but {directory} has no {name}.")
    cfg = json.loads((directory / "cfg.json").read_text())
    missing = [key for key in ("architecture", "d_in", "d_sae") if key not in cfg]
    if missing:
        raise ConfigError(f"an SAE's cfg.json must have `architecture`, `d_in` and `d_sae`, but {directory}/cfg.json lacks {missing}.")
    normalize_activations = cfg.get("normalize_activations", "none")
    if normalize_activations not in ("none", "layer_norm") or not cfg.get("apply_b_dec_to_input", True):
        raise ConfigError(
            "an SAE must have its normalisation folded (or layer_norm) and b_dec subtracted from its input, but got "
            f"{normalize_activations=} and apply_b_dec_to_input={cfg.get('apply_b_dec_to_input')} "
            f"in {directory}/cfg.json. Fold them before loading."
        )
    cls = ARCHITECTURES[cfg["architecture"]]
    known = {key: cfg[key] for key in cls.Config.model_fields if key in cfg}
    with torch.device("meta"):
        sae = cls(cls.Config.model_validate(known), cfg["d_in"])
    try:
        sae.load_state_dict(load_file(directory / WEIGHTS), strict=True, assign=True)
    except RuntimeError as error:
        raise ConfigError(f"tensors must fit architecture {cfg['architecture']!r}, but {directory}/{WEIGHTS} does not: {error}") from error
    sae.layer_norm = normalize_activations == "layer_norm"
    return sae.float().eval()
