"""The direct path: what a vector in the residual stream does to the logits if no block above it reacts.

The final norm maps x to weight * C(x) / s(x) + bias, where C subtracts the mean or not, and s(x) = sqrt(mean(C(x)^2) + eps). Here s is
held at what it is on some text, which makes the path linear. Weight, bias and C are read off what the norm makes of three vectors.
Shape letters: W windows, T positions, N vectors, V vocabulary, d_model width of the residual stream.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

LARGE = 1e3
"""Root mean square of vectors beside which the epsilon of a norm does not count."""
TOLERANCE = 0.02
"""Largest difference allowed between a norm and the formula above, as a fraction of the largest value: what half precision needs."""


@dataclass(frozen=True, slots=True)
class DirectPath:
    """Vectors of the residual stream -> changes of the logits, with the final norm's scale held."""

    W_U: Float[Tensor, "d_model V"]
    gain: Float[Tensor, " d_model"] | None
    """The final norm's weight, over the harmonic mean of its scale over the tokens of some text; None where there is no norm."""
    is_centered: bool
    """Whether the norm subtracts the mean."""

    @property
    def d_vocab(self) -> int:
        """Size of the vocabulary."""
        return int(self.W_U.shape[1])

    @torch.no_grad()
    def logits(self, vectors: Float[Tensor, "N d_model"]) -> Float[Tensor, "N V"]:
        """What adding each vector adds to the logits, float32. A cap on logits, as Gemma 2 has one, is left out."""
        vectors = vectors.to(self.W_U.device, torch.float32)
        if self.gain is not None:
            vectors = _centered(vectors, self.is_centered) * self.gain
        return vectors @ self.W_U.float()


@torch.no_grad()
def direct_path(model: Any, norm: nn.Module | None, stream: Float[Tensor, "W T d_model"]) -> DirectPath | None:
    """The direct path of a model; None where its final norm is of another form.

    Args:
        norm: the final norm, where there is one.
        stream: residual stream that enters the norm, on some text.
    """
    W_U = model.get_output_embeddings().weight.detach().T
    if norm is None:
        return DirectPath(W_U, None, is_centered=False)
    x = stream.flatten(0, 1)
    bias = norm(torch.zeros_like(x[:1])).float()
    signs = torch.ones(x.shape[1]).to(x)
    signs[1::2] = -1
    weight = (norm(signs[None] * LARGE).float() - bias) * signs.float()
    is_centered = bool((norm(torch.full_like(x[:1], LARGE)).float() - bias).abs().max() < 0.1 * weight.abs().max())
    eps = getattr(norm, "eps", getattr(norm, "variance_epsilon", 0.0))
    centered, normed = _centered(x.float(), is_centered), norm(x).float() - bias
    factors = (centered.square().mean(dim=1) + eps).rsqrt()
    if x.shape[1] % 2 or not bool((centered * weight * factors[:, None] - normed).abs().max() <= TOLERANCE * normed.abs().max()):
        return None
    return DirectPath(W_U, weight[0] * factors.mean(), is_centered)


def _centered(vectors: Tensor, is_centered: bool) -> Tensor:
    return vectors - vectors.mean(dim=-1, keepdim=True) if is_centered else vectors
