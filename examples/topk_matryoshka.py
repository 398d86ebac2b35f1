"""A TopK-Matryoshka SAE: nested losses in training, a plain TopK SAE once it is saved.

Prefixes of the latents are to reconstruct on their own: for every inner width, the k largest of the first `width` pre-activations are
kept, and the error of what they decode to is added. SAELens' guide to custom architectures does the same on its TopK class; Bussmann et
al. 2025 (arXiv:2503.17547) select once for all widths, in a batch, which is `matryoshka_batchtopk` here.

    plugins: [examples/topk_matryoshka.py]
    architectures: {topk_matryoshka: {k: 32, inner_widths: [[1024, 4096]]}}
"""

from typing import Annotated, Literal, Self

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from sae_core.architectures.topk import TopK, TopKConfig
from sae_core.architectures.topk_family import TopKFamily, TopKFamilyConfig
from sae_core.config import ARCHITECTURES, Count
from sae_core.errors import ConfigError
from sae_core.sae import LossContext, LossTerms, SparseAutoencoder, mse
from sae_core.sparse.active import ActiveLatents, topk_per_token


class TopKMatryoshkaConfig(TopKFamilyConfig):
    """TopK SAE whose first latents reconstruct on their own."""

    architecture: Literal["topk_matryoshka"] = "topk_matryoshka"
    k: Count
    """Active latents per token, of every prefix."""
    inner_widths: Annotated[tuple[Count, ...], Field(strict=False)]
    """Lengths of the prefixes, from `k` to below `d_sae`."""

    @model_validator(mode="after")
    def _widths_fit(self) -> Self:
        if wrong := [width for width in self.inner_widths if not self.k <= width < self.d_sae]:
            raise ConfigError(f"`inner_widths` must be from k={self.k} to below d_sae={self.d_sae}, but got {wrong}. Leave them out.")
        return self

    @classmethod
    def example(cls, d_in: int, d_sae: int) -> Self:
        return cls(d_sae=d_sae, k=max(1, d_sae // 8), inner_widths=(d_sae // 4, d_sae // 2))


@ARCHITECTURES.register("topk_matryoshka")
class TopKMatryoshka(TopKFamily):
    """latents = relu of the k pre-activations of largest score, zero elsewhere."""

    Config = TopKMatryoshkaConfig
    saelens_architecture = "topk"
    config: TopKMatryoshkaConfig

    def select(self, products: Float[Tensor, "B d_sae"], k: float) -> tuple[ActiveLatents, Float[Tensor, " N"]]:
        return topk_per_token(products, self.b_enc, self.score_factors(), round(k))

    def encode(self, x: Float[Tensor, "B d_in"]) -> Float[Tensor, "B d_sae"]:
        products = self.products(x)
        return (products + self.b_enc).relu() * self.select(products, self.config.k)[0].mask()

    def loss(self, x: Float[Tensor, "B d_in"], ctx: LossContext) -> LossTerms:
        base = super().loss(x, ctx)  # the error of all latents, and of the dead ones
        pre_acts, terms = self.products(x) + self.b_enc, dict(base.terms)
        scores, k = pre_acts.detach() * self.score_factors(), round(self.config.k_at(ctx.progress))
        for width in self.config.inner_widths:
            best = scores[:, :width].topk(min(k, width)).indices
            latents = pre_acts.new_zeros(len(x), width).scatter(1, best, pre_acts.gather(1, best).relu())
            terms[f"inner_mse_loss_{width}"] = mse(latents @ self.W_dec[:width] + self.b_dec, x)
        return LossTerms(torch.stack(list(terms.values())).sum(), terms, base.l0, base.active)

    def to_inference(self) -> SparseAutoencoder:
        sae = TopK(TopKConfig(d_sae=self.d_sae, k=self.config.k, rescale_acts_by_decoder_norm=False), self.d_in)
        sae.load_state_dict(self.folded_weights())
        return sae.to(self.W_dec.device).eval()
