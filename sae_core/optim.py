"""Optimizer and learning-rate schedules. Schedules are pure functions of the step, so resuming needs no scheduler state."""

import math
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from sae_core.config import ARCHITECTURES, TrainConfig
from sae_core.sae import SparseAutoencoder
from sae_core.spans import steps_of


def lr_factor(step: int, n_steps: int, config: TrainConfig) -> float:
    """Learning rate of a step, as a fraction of `config.lr`.

    Linear warm-up (step 0 already moves: 1/W of the rate), the schedule's shape, then a linear decay whose last step is 1/D
    of the rate; for W = 4 and D = 4 of 12 steps: .25 .5 .75 1 1 1 1 1 1 .75 .5 .25, as in SAELens.

    Args:
        step: 0-based.
        n_steps: steps of the whole run.
    """
    warm_up = steps_of(config.lr_warm_up, n_steps, config.batch_size)
    decay = steps_of(config.lr_decay, n_steps, config.batch_size)
    ramp = min((step + 1) / warm_up if warm_up else 1.0, (n_steps - step) / decay if decay else 1.0, 1.0)
    if config.lr_schedule == "constant":
        return ramp
    cycles = 1 + (config.n_restarts if config.lr_schedule == "cosine_restarts" else 0)
    # Fraction of the stretch between warm-up and decay that has passed.
    progress = min(max(step - warm_up, 0) / max(n_steps - warm_up - decay, 1), 1.0)
    phase = 1.0 if progress == 1.0 else (progress * cycles) % 1.0
    cosine = config.lr_min_factor + (1 - config.lr_min_factor) * (1 + math.cos(math.pi * phase)) / 2
    return ramp * cosine


@cache
def parameter_names(architecture: str) -> tuple[str, ...]:
    """Names of an architecture's parameters, the keys of `lr_factors`. They do not depend on its config."""
    cls = ARCHITECTURES[architecture]
    with torch.device("meta"):
        sae = cls(cls.Config.example(8, 16), 8)
    return tuple(name for name, _ in sae.named_parameters())


class ClippingAdam(torch.optim.Adam):
    """Adam in one pass over the parameters, which clips the gradients on its way."""

    @torch.no_grad()
    def clip_and_step(self, max_norm: float | None) -> Float[Tensor, ""]:
        """Scale the gradients down to `max_norm`, as `torch.nn.utils.clip_grad_norm_` does, and step.

        Calls the fused kernel itself: what `step` does around it takes as long as the kernel where SAEs are small.

        Returns:
            The norm of all gradients together, before.
        """
        norm = torch.nn.utils.get_total_norm([p.grad for group in self.param_groups for p in group["params"] if p.grad is not None])
        # What a GradScaler gives the kernel: it divides gradients by this as it reads them.
        divisor = None if max_norm is None else ((norm + 1e-6) / max_norm).clamp_min(1.0)
        for group in self.param_groups:
            lists: list[list[Tensor]] = [[], [], [], [], [], []]
            self._init_group(group, *lists)
            parameters, gradients, means, squares, maxima, steps = lists
            if not parameters:
                continue
            torch._foreach_add_(steps, 1)
            torch._fused_adam_(
                _row_by_row(parameters),
                _row_by_row(gradients),
                _row_by_row(means),
                _row_by_row(squares),
                maxima,
                steps,
                lr=group["lr"],
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                amsgrad=False,
                maximize=False,
                grad_scale=divisor,
            )
        return norm


def _row_by_row(tensors: list[Tensor]) -> list[Tensor]:
    """The same, turned where they lie transposed in memory, as W_enc does: the fused kernel would copy these, at seven times its cost."""
    return [t.T if t.ndim == 2 and t.T.is_contiguous() else t for t in tensors]


def make_optimizer(sae: SparseAutoencoder, config: TrainConfig) -> ClippingAdam:
    """Adam without weight decay; parameters named in `sae.lr_factors()` or `config.lr_factors` have a group, and a rate, of their own.

    Named in both, a parameter's factors multiply.
    """
    own, given = sae.lr_factors(), config.lr_factors
    factors = {name: own.get(name, 1.0) * given.get(name, 1.0) for name in own.keys() | given.keys()}
    common = [p for name, p in sae.named_parameters() if name not in factors]
    groups = [{"params": common, "lr_factor": 1.0}]
    groups += [{"params": [p], "lr_factor": factors[name]} for name, p in sae.named_parameters() if name in factors]
    betas = (config.adam_beta1, config.adam_beta2)
    return ClippingAdam(groups, lr=config.lr, betas=betas, eps=config.adam_eps, fused=True)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the rate of every parameter group to `lr` times its factor."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_factor"]
