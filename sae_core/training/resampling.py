"""Resampling of dead latents: they are made anew, from tokens that are badly reconstructed.

Bricken et al. 2023, "Towards Monosemanticity", appendix "Neuron Resampling". Differs from the paper: tokens are chosen from the
current batch, with probability proportional to their squared error (the paper: a large sample, and the loss squared); and decoder rows,
whose norms are free here and 1 there, get the mean norm of the alive ones, so that a new latent is as strong as the others, which is
what norm 1 means in the paper.
Shape letters: B tokens in the batch, d_in width of the activations, d_sae latents.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_core.sae.base import SparseAutoencoder
from sae_core.training.optim import Adam

ENCODER_SCALE = 0.2
"""Norm of a new encoder column, relative to the mean of the alive ones: the paper's."""


@torch.no_grad()
def resample(sae: SparseAutoencoder, optimizer: Adam, dead: Bool[Tensor, " d_sae"], x: Float[Tensor, "B d_in"], *, seed: int) -> None:
    """Make the dead latents anew, in place: weights, biases and thresholds, and their moments in Adam.

    Nothing happens where the batch is reconstructed without error, or an error is not finite: that run is about to fail.

    Args:
        dead: at least one.
        seed: decides which tokens are chosen.
    """
    errors = (x - sae(x)).pow(2).sum(dim=1).double().cpu()
    if not errors.any() or not errors.isfinite().all():
        return
    n_dead = int(dead.sum())
    chosen = torch.multinomial(
        errors, n_dead, replacement=n_dead > int(errors.count_nonzero()), generator=torch.Generator().manual_seed(seed)
    )
    directions = torch.nn.functional.normalize(x[chosen.to(x.device)] - sae.b_dec)
    alive = dead if bool(dead.all()) else ~dead
    new = {name: values[dead] for name, values in sae.initial_values().items()}
    new["W_dec"] = directions * sae.W_dec[alive].norm(dim=1).mean()
    if not sae.config.is_tied:
        new["W_enc"] = (directions * ENCODER_SCALE * sae.W_enc[:, alive].norm(dim=0).mean()).T
    parameters = dict(sae.named_parameters())
    for name, values in new.items():
        index = (slice(None), dead) if name == "W_enc" else (dead,)
        parameters[name][index] = values
        optimizer.forget(name, index)
