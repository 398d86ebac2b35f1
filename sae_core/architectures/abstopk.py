"""AbsTopK SAE: the k pre-activations of largest size of every token, with their signs (arXiv:2510.00404).

One latent serves a direction and its opposite. Same formulas as SAELens' `abstopk`.
"""

from typing import Literal

from jaxtyping import Float
from torch import Tensor

from sae_core.architectures.topk_family import TopKFamily, TopKFamilyConfig
from sae_core.config.base import Count
from sae_core.config.run import ARCHITECTURES
from sae_core.sae.base import SparseAutoencoder
from sae_core.sparse.active import ActiveLatents, topk_per_token, without_zeros


class AbsTopKConfig(TopKFamilyConfig):
    """SAE with exactly k active latents per token, of either sign."""

    architecture: Literal["abstopk"] = "abstopk"
    k: Count
    """Active latents per token."""
    k_start: Count | None = None
    """Active latents per token at the start of training, from where the number goes to `k`; None: `k` all along."""


@ARCHITECTURES.register("abstopk")
class AbsTopK(TopKFamily):
    """latents = the k pre-activations of largest |score|, zero elsewhere."""

    Config = AbsTopKConfig
    relative_cost = 1.2
    saelens_architecture = "abstopk"
    config: AbsTopKConfig
    selection_memory = 5.0, 5.0

    def activate(self, values: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
        return values

    def best(
        self, products: Float[Tensor, "B n"], bias: Float[Tensor, " n"], factors: Float[Tensor, " n"], k: int
    ) -> tuple[ActiveLatents, Float[Tensor, " N"]]:
        pre_acts = products + bias
        active, _ = topk_per_token(pre_acts.abs(), bias.new_zeros(bias.shape), factors, k)
        return active, pre_acts[active.tokens, active.indices]

    def select(self, products: Float[Tensor, "B d_sae"], k: float) -> tuple[ActiveLatents, Float[Tensor, " N"]]:
        return self.best(products, self.b_enc, self.score_factors(), round(k))

    def encode(self, x: Float[Tensor, "B d_in"]) -> Float[Tensor, "B d_sae"]:
        products = self.products(x)
        return (products + self.b_enc) * self.select(products, self.config.k)[0].mask()

    def encode_sparse(self, x: Float[Tensor, "B d_in"]) -> tuple[ActiveLatents, Float[Tensor, " N"]]:
        return without_zeros(*self.select(self.products(x), self.config.k))

    def to_inference(self) -> SparseAutoencoder:
        folded = AbsTopK(self.config.model_copy(update={"rescale_acts_by_decoder_norm": False}), self.d_in)
        folded.load_state_dict(self.folded_weights())
        return folded.to(self.W_dec.device).eval()

    def saelens_fields(self) -> dict[str, object]:
        return {"k": self.config.k, "rescale_acts_by_decoder_norm": self.config.rescale_acts_by_decoder_norm}
