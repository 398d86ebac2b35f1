"""An SAE with another activation function, in training and at inference: GELU (Hendrycks and Gimpel 2016, arXiv:1606.08415).

GELU alone is 0 nowhere, so that every latent would be active on every token. Here it is cut at 0, which leaves z * Phi(z) for z > 0:
weak latents are shrunk, strong ones are not. No architecture of SAELens computes this, so it is saved under its own name: `sae_core`
loads it, importing this file; SAELens does once it has a class of that name (its `register_sae_class`).

    plugins: [examples/gelu_sae.py]
    architectures: {gelu: {l1_coefficient: [0.5, 1, 2]}}
"""

from typing import Annotated, ClassVar, Literal, Self

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import gelu

from sae_core.config import ARCHITECTURES, ArchitectureConfig
from sae_core.sae import LossContext, LossTerms, SparseAutoencoder, mse


class GeluConfig(ArchitectureConfig):
    """SAE with GELU latents and an L1 penalty."""

    sparsity_parameter: ClassVar[str] = "l1_coefficient"

    architecture: Literal["gelu"] = "gelu"
    l1_coefficient: Annotated[float, Field(ge=0)] = 1.0
    """Multiplies mean_b sum_i latents_i * ||W_dec_i||, in units where E||x|| = sqrt(d_in)."""

    @classmethod
    def example(cls, d_in: int, d_sae: int) -> Self:
        return cls(d_sae=d_sae, l1_coefficient=0.5)


@ARCHITECTURES.register("gelu")
class GeluSAE(SparseAutoencoder):
    """latents = gelu(z) where z > 0, else 0, with z = (x - b_dec) @ W_enc + b_enc."""

    Config = GeluConfig
    config: GeluConfig

    def __init__(self, config: GeluConfig, d_in: int, *, generator: torch.Generator | None = None) -> None:
        super().__init__(config, d_in, generator=generator)
        self.b_enc = nn.Parameter(torch.zeros(self.d_sae))

    def encode(self, x: Float[Tensor, "B d_in"]) -> Float[Tensor, "B d_sae"]:
        return gelu(((x - self.b_dec) @ self.W_enc + self.b_enc).relu())

    def loss(self, x: Float[Tensor, "B d_in"], ctx: LossContext) -> LossTerms:
        latents = self.encode(x)
        penalty = (latents * self.W_dec.norm(dim=1)).sum(dim=1).mean()
        terms = {"mse_loss": mse(self.decode(latents), x), "l1_loss": self.config.l1_coefficient * ctx.sparsity_scale * penalty}
        return LossTerms.of(terms, latents)
