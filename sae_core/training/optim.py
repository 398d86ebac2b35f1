"""Optimizer and learning-rate schedules. Schedules are pure functions of the step, so resuming needs no scheduler state."""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sae_core.config.run import TrainConfig
from sae_core.config.spans import steps_of
from sae_core.sae.base import SparseAutoencoder


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


class Adam:
    """Adam (Kingma & Ba 2015, arXiv:1412.6980, algorithm 1), in one pass over the parameters, which clips the gradients on its way.

    PyTorch's fused kernel, which has no public name, without `torch.optim` around it: that imports a compiler, more than a second of every
    process that trains, and takes as long as the kernel where SAEs are small.

    Args:
        sae: whose parameters to train. Those named in `sae.lr_factors()` or `config.lr_factors` have a rate of their own; named in both,
            their factors multiply.
    """

    def __init__(self, sae: SparseAutoencoder, config: TrainConfig) -> None:
        self.betas, self.eps = (config.adam_beta1, config.adam_beta2), config.adam_eps
        self.parameters = dict(sae.named_parameters())
        own, given = sae.lr_factors(), config.lr_factors
        self.lr_factors = {name: own.get(name, 1.0) * given.get(name, 1.0) for name in self.parameters}
        self.exp_avg = {name: torch.zeros_like(parameter) for name, parameter in self.parameters.items()}
        """Moving averages of the gradients; in memory like the parameters, as are those of their squares."""
        self.exp_avg_sq = {name: torch.zeros_like(parameter) for name, parameter in self.parameters.items()}
        self.n_steps = torch.zeros((), device=sae.b_dec.device)
        tensors = zip(self.parameters.values(), self.exp_avg.values(), self.exp_avg_sq.values(), strict=True)
        self._rows = {name: [_row_by_row(one.detach()) for one in some] for name, some in zip(self.parameters, tensors, strict=True)}

    @torch.no_grad()
    def step(self, lr: float, max_norm: float | None) -> Float[Tensor, ""]:
        """One step with the gradients scaled down to `max_norm`, as `torch.nn.utils.clip_grad_norm_` does. Takes the gradients away.

        Returns:
            The norm of all gradients together, before.
        """
        gradients = {name: parameter.grad for name, parameter in self.parameters.items() if parameter.grad is not None}
        norm = torch.nn.utils.get_total_norm(list(gradients.values()))
        # What a GradScaler gives the kernel: it divides gradients by this as it reads them.
        divisor = None if max_norm is None else ((norm + 1e-6) / max_norm).clamp_min(1.0)
        self.n_steps += 1
        for factor in {self.lr_factors[name] for name in gradients}:
            names = [name for name in gradients if self.lr_factors[name] == factor]
            parameters, exp_avg, exp_avg_sq = (list(some) for some in zip(*(self._rows[name] for name in names), strict=True))
            torch._fused_adam_(
                parameters,
                [_row_by_row(gradients[name]) for name in names],
                exp_avg,
                exp_avg_sq,
                [],
                [self.n_steps] * len(names),
                lr=lr * factor,
                beta1=self.betas[0],
                beta2=self.betas[1],
                weight_decay=0.0,
                eps=self.eps,
                amsgrad=False,
                maximize=False,
                grad_scale=divisor,
            )
        for parameter in self.parameters.values():
            parameter.grad = None
        return norm

    def forget(self, name: str, index: Any) -> None:
        """Set the moments of some elements of a parameter to 0."""
        self.exp_avg[name][index] = 0
        self.exp_avg_sq[name][index] = 0

    def state(self) -> dict[str, Tensor]:
        """The tensors that a checkpoint keeps."""
        moments = {"exp_avg": self.exp_avg, "exp_avg_sq": self.exp_avg_sq}
        return {"n_steps": self.n_steps} | {f"{kind}/{name}": tensor for kind, of in moments.items() for name, tensor in of.items()}


def _row_by_row(tensor: Tensor) -> Tensor:
    """The same, turned if it lies transposed in memory, as W_enc does: the fused kernel would copy it, at seven times its cost."""
    return tensor.T if tensor.ndim == 2 and tensor.T.is_contiguous() else tensor
