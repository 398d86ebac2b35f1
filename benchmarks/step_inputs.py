"""What a training step is timed on: activations of known features, and weights in two states, the same for every program.

Activations: sums of about 32 of d_sae random unit directions, Zipf-distributed, scaled so that E||x|| = sqrt(d_in).
- initial: weights as every SAE here and in SAELens starts: random decoder rows of norm 0.1, their transpose as encoder, zeros as biases,
  0.01 as threshold of a JumpReLU SAE. Half of the latents are active then, whatever the architecture does not limit.
- sparse: decoder rows and encoder columns are the features' directions, as after training, and one number is set for all latents so that
  `l0` of them are active on a token: b_enc of a standard SAE, b_gate of a gated one, the threshold of a JumpReLU one. TopK and its kin
  need none: k is their L0.
The learning rate is 1e-6, so that a state stays as it is while its steps are timed.
"""

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from sae_core.activations.synthetic import SyntheticActivations, SyntheticSource
from sae_core.config.run import ARCHITECTURES

SHIFTED = {"standard": "b_enc", "p_anneal": "b_enc", "gated": "b_gate", "jumprelu": "threshold"}
"""Architectures whose sparsity a coefficient sets -> the parameter that sets their L0 here."""
INITIAL_NORM, INITIAL_THRESHOLD = 0.1, 0.01


def activations(d_in: int, n_features: int, *, l0: float, n_tokens: int) -> tuple[Tensor, Tensor]:
    """x [n_tokens, d_in], and the directions of its features [n_features, d_in]."""
    config = SyntheticActivations(d_in=d_in, n_features=n_features, n_active=min(l0, n_features / 4), train_tokens=n_tokens, eval_tokens=1)
    source = SyntheticSource(config)
    x = torch.cat([source.shard(Path(), index) for index in range(source.n_shards(Path()))])
    return x * (math.sqrt(d_in) / x.norm(dim=1).mean()), source.features


def initial_state(architecture: str, d_in: int, d_sae: int) -> dict[str, Tensor]:
    """Weights at the start of training."""
    rows = torch.nn.functional.normalize(torch.randn(d_sae, d_in, generator=torch.Generator().manual_seed(0)))
    return _weights(architecture, INITIAL_NORM * rows, at=INITIAL_THRESHOLD if architecture == "jumprelu" else 0.0)


def sparse_state(architecture: str, features: Tensor, x: Tensor, *, l0: float) -> dict[str, Tensor]:
    """Weights that know the features, with `l0` active latents per token of x."""
    n_kept = round(l0 * len(x))
    at = (x @ features.T).flatten().topk(n_kept, sorted=False).values.min()
    return _weights(architecture, features, at=float(at) if architecture in SHIFTED else 0.0)


def _weights(architecture: str, W_dec: Tensor, *, at: float) -> dict[str, Tensor]:
    """Every parameter of an architecture; a latent becomes active where x @ W_dec_i exceeds `at`."""
    d_sae, d_in = W_dec.shape
    biases = {"gated": ("b_gate", "r_mag", "b_mag"), "jumprelu": ("b_enc", "threshold")}.get(architecture, ("b_enc",))
    state = {"W_dec": W_dec, "b_dec": torch.zeros(d_in)}
    if ARCHITECTURES[architecture].Config.is_tied:
        return state
    state |= {"W_enc": W_dec.T.contiguous()} | {name: torch.zeros(d_sae) for name in biases}
    if shifted := SHIFTED.get(architecture):
        state[shifted] += at if shifted == "threshold" else -at
    return state


def save(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors to where every program reads them."""
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path)
