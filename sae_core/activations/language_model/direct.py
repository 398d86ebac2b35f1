"""The direct path: what a vector in the residual stream does to the logits if no block above it reacts.

The final norm divides by a scale that depends on the whole residual stream. Here that scale is held at what it is on some text, which
makes the path linear: the norm's own weights count, and so does its subtraction of the mean where it has one.
Shape letters: W windows, T positions, N vectors, V vocabulary, d_model width of the residual stream.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_core.activations.language_model.model_spec import HookPoint

SCALE = "ln_final.hook_scale"
"""Hook point of the number that the final norm divides by."""


@dataclass(frozen=True, slots=True)
class DirectPath:
    """Vectors of the residual stream -> changes of the logits, with the final norm's scale held."""

    bridge: Any
    scale: float | None
    """What the final norm divides by: the harmonic mean over the tokens of some text; None where the model has no final norm."""

    @property
    def d_vocab(self) -> int:
        """Size of the vocabulary."""
        return int(self.bridge.unembed.W_U.shape[1])

    @torch.no_grad()
    def logits(self, vectors: Float[Tensor, "N d_model"]) -> Float[Tensor, "N V"]:
        """What adding each vector adds to the logits, float32. A cap on logits, as Gemma 2 has one, is left out."""
        W_U = self.bridge.unembed.W_U.detach()
        return self._normed(vectors.to(W_U)).float() @ W_U.float()

    def _normed(self, vectors: Tensor) -> Tensor:
        if self.scale is None:
            return vectors
        norm, held = self.bridge.ln_final, self.scale
        norm.hook_scale.add_hook(lambda value, hook: torch.full_like(value, held))
        try:  # with a constant scale the norm is affine: what it makes of 0 is its bias
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # TransformerLens warns that it computes this norm itself
                both = norm(torch.cat([vectors, torch.zeros_like(vectors[:1])])[None])[0]
        finally:
            norm.hook_scale.remove_hooks()
        return both[:-1] - both[-1]


@torch.no_grad()
def direct_path(bridge: Any, where: HookPoint, windows: Int[Tensor, "W T"]) -> DirectPath | None:
    """The direct path from a hook point; None where its vectors are not added to the residual stream as they are.

    Args:
        windows: text that the scale of the final norm is taken from.
    """
    normed_after = any(hasattr(bridge.blocks[0], name) for name in ("ln1_post", "ln2_post"))  # outputs of attention and MLP, in Gemma 2
    if not (where.is_stream or (where.adds_to_stream and not normed_after)):
        return None
    if not hasattr(bridge, "ln_final"):
        return DirectPath(bridge, None)
    if SCALE not in bridge.hook_dict:
        return None
    scales: list[Tensor] = []
    bridge.run_with_hooks(windows, fwd_hooks=[(SCALE, lambda value, hook: scales.append(value))], return_type=None, use_cache=False)
    return DirectPath(bridge, 1 / float(scales[0].float().reciprocal().mean())) if scales else None
