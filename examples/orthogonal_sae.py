"""A standard SAE with a further penalty, whose coefficient has a warm-up of its own: decoder rows are kept from pointing the same way.

The penalty is the mean squared cosine of two different decoder rows. It comes late, when rows have found their directions: the sparsity
penalty rises over `train.sparsity_warm_up`, this one over `orthogonality_warm_up`. It is saved as a standard SAE.

    plugins: [examples/orthogonal_sae.py]
    architectures: {orthogonal: {l1_coefficient: [1, 2, 4], orthogonality_coefficient: [0, 10, 100], orthogonality_warm_up: 50%}}
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from sae_core.config import ARCHITECTURES, ArchitectureConfig, Coefficient, Span
from sae_core.sae import LossContext, LossTerms, SparseAutoencoder, mse


class OrthogonalConfig(ArchitectureConfig):
    """ReLU SAE with an L1 penalty and one on the cosines of decoder rows."""

    sparsity_parameter: ClassVar[str] = "l1_coefficient"

    architecture: Literal["orthogonal"] = "orthogonal"
    l1_coefficient: Annotated[float, Field(ge=0)] = 1.0
    """Multiplies mean_b sum_i latents_i * ||W_dec_i||, in units where E||x|| = sqrt(d_in)."""
    orthogonality_coefficient: Annotated[float, Field(ge=0)] = 10.0
    """Multiplies the mean of cos(W_dec_i, W_dec_j)^2 over i != j."""
    orthogonality_warm_up: Span = 0.5
    """How long it rises from 0."""

    @property
    def coefficients(self) -> Mapping[str, Coefficient]:
        return {"orthogonality": Coefficient(self.orthogonality_coefficient, self.orthogonality_warm_up)}

    @classmethod
    def example(cls, d_in: int, d_sae: int) -> Self:
        return cls(d_sae=d_sae, l1_coefficient=0.5)


@ARCHITECTURES.register("orthogonal")
class OrthogonalSAE(SparseAutoencoder):
    """latents = relu((x - b_dec) @ W_enc + b_enc)."""

    Config = OrthogonalConfig
    saelens_architecture = "standard"
    config: OrthogonalConfig

    def __init__(self, config: OrthogonalConfig, d_in: int, *, generator: torch.Generator | None = None) -> None:
        super().__init__(config, d_in, generator=generator)
        self.b_enc = nn.Parameter(torch.zeros(self.d_sae))

    def encode(self, x: Float[Tensor, "B d_in"]) -> Float[Tensor, "B d_sae"]:
        return ((x - self.b_dec) @ self.W_enc + self.b_enc).relu()

    def mean_squared_cosine(self) -> Float[Tensor, ""]:
        """Of two different decoder rows. ||R @ R.T||^2 = ||R.T @ R||^2, and that of the d_in columns is the smaller one."""
        rows = self.W_dec / self.W_dec.norm(dim=1, keepdim=True)
        return ((rows.T @ rows).square().sum() - self.d_sae) / (self.d_sae * (self.d_sae - 1))

    def loss(self, x: Float[Tensor, "B d_in"], ctx: LossContext) -> LossTerms:
        latents = self.encode(x)
        penalty = (latents * self.W_dec.norm(dim=1)).sum(dim=1).mean()
        terms = {
            "mse_loss": mse(self.decode(latents), x),
            "l1_loss": self.config.l1_coefficient * ctx.sparsity_scale * penalty,
            "orthogonality_loss": ctx.coefficients["orthogonality"] * self.mean_squared_cosine(),
        }
        return LossTerms.of(terms, latents)
