"""Files of SAEs with known latents, beside the records of a made-up sweep."""

from pathlib import Path

import numpy as np
import torch

from sae_core.activations.files import save_tensors


def write_sae(run: Path, W_dec: np.ndarray, times_active: np.ndarray, explained: np.ndarray | None = None) -> None:
    """Decoder [d_sae, d_in], and what each latent does on held-out text."""
    save_tensors(run / "sae" / "sae_weights.safetensors", {"W_dec": torch.tensor(W_dec, dtype=torch.float32)})
    latents = {"times_active": torch.tensor(times_active, dtype=torch.int32)}
    if explained is not None:
        latents["explained"] = torch.tensor(explained, dtype=torch.float32)
    save_tensors(run / "latents.safetensors", latents)
