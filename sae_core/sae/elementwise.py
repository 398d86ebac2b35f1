"""SAEs whose latents are functions of one pre-activation each. The encoder is written once, as `activate`.

Inference and losses run it on the pre-activations that can be active, where they are few: that is faster, and gives the same.
Shape letters: B tokens in the batch, N active latents, E either (N) or (B, d_sae), d_in, d_sae.
"""

from abc import abstractmethod

from jaxtyping import Float
from torch import Tensor, nn

from sae_core.sae.base import SparseAutoencoder
from sae_core.sparse.active import ActiveLatents, active_latents, without_zeros
from sae_core.sparse.pre_acts import PreActs, SparsePreActs, pre_acts_above


class ElementwiseSAE(SparseAutoencoder):
    """Abstract: latents = activate((x - input_bias) @ W_enc + bias)."""

    b_enc: nn.Parameter

    @abstractmethod
    def activate(self, pre_acts: PreActs) -> Float[Tensor, "*E"]:
        """The latents at these pre-activations."""

    @abstractmethod
    def bound(self) -> Float[Tensor, " d_sae"]:
        """Per latent, what a pre-activation must exceed to be active, or more cautiously, to have a gradient. Without gradient."""

    def bias(self) -> Float[Tensor, " d_sae"] | None:
        """Part of the pre-activations; None where `activate` adds biases of its own."""
        return self.b_enc

    def pre_acts(self, x: Float[Tensor, "B d_in"]) -> PreActs:
        """Those above the bound where they are few, else all."""
        return pre_acts_above(self.bound(), x, self.input_bias, self.W_enc, self.bias())

    def all_pre_acts(self, x: Float[Tensor, "B d_in"]) -> PreActs:
        return pre_acts_above(None, x, self.input_bias, self.W_enc, self.bias())

    def encode(self, x: Float[Tensor, "B d_in"]) -> Float[Tensor, "B d_sae"]:
        return self.activate(self.all_pre_acts(x))

    def encode_sparse(self, x: Float[Tensor, "B d_in"]) -> tuple[ActiveLatents, Float[Tensor, " N"]]:
        pre_acts = self.pre_acts(x)
        latents = self.activate(pre_acts)
        return without_zeros(pre_acts.active, latents) if isinstance(pre_acts, SparsePreActs) else active_latents(latents)
