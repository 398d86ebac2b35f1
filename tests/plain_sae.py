"""A plugin file with an architecture as simple as its formula."""

PLUGIN = """
from typing import Annotated, ClassVar, Literal
from pydantic import Field
from sae_core.config import ARCHITECTURES, ArchitectureConfig
from sae_core.sae import LossTerms, SparseAutoencoder, mse

class PlainConfig(ArchitectureConfig):
    sparsity_parameter: ClassVar[str] = "l1_coefficient"
    architecture: Literal["plain"] = "plain"
    l1_coefficient: Annotated[float, Field(ge=0)] = 1.0

@ARCHITECTURES.register("plain")
class Plain(SparseAutoencoder):
    Config = PlainConfig
    def encode(self, x):
        return ((x - self.b_dec) @ self.W_enc).relu()
    def loss(self, x, ctx):
        latents = self.encode(x)
        l1 = self.config.l1_coefficient * ctx.sparsity_scale * latents.sum(dim=-1).mean()
        return LossTerms.of({"mse_loss": mse(self.decode(latents), x), "l1_loss": l1}, latents)
"""
