"""Matryoshka BatchTopK SAE: nested prefixes of the latents each reconstruct x (Bussmann et al. 2025, arXiv:2503.17547).

Selection and inference are BatchTopK's. The loss adds, for every prefix width, the error of reconstructing with the latents of
that prefix alone; the widths are summed without weights, as in SAELens.
"""

import dataclasses
from typing import Annotated, Any, Literal, Self

from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from sae_core.architectures.batchtopk import BatchTopKFamily, BatchTopKFamilyConfig
from sae_core.config.base import Count
from sae_core.config.run import ARCHITECTURES
from sae_core.errors import ConfigError
from sae_core.sae.functional import mse
from sae_core.sae.loss import StepMemory
from sae_core.sparse.pre_acts import SparsePreActs, sparse_decode

DEFAULT_FRACTIONS = (1 / 16, 1 / 8, 1 / 4, 1 / 2)
"""Prefixes of the paper, beside the whole width."""


class MatryoshkaBatchTopKConfig(BatchTopKFamilyConfig):
    """BatchTopK whose first latents also have to reconstruct alone."""

    architecture: Literal["matryoshka_batchtopk"] = "matryoshka_batchtopk"
    matryoshka_widths: Annotated[tuple[Count, ...], Field(strict=False)] | None = None
    """Inner prefix widths, increasing and below d_sae; None: d_sae times 1/16, 1/8, 1/4, 1/2."""

    @model_validator(mode="after")
    def _widths_nest(self) -> Self:
        widths = self.matryoshka_widths
        if widths is not None and list(widths) != sorted({w for w in widths if w < self.d_sae}):
            raise ConfigError(
                f"`matryoshka_widths` must be increasing and below d_sae, but got {list(widths)} and d_sae={self.d_sae}. "
                "Leave out d_sae itself and sort the rest."
            )
        return self

    @property
    def inner_widths(self) -> tuple[int, ...]:
        """Prefix widths below d_sae."""
        if self.matryoshka_widths is not None:
            return self.matryoshka_widths
        return tuple(sorted({int(self.d_sae * fraction) for fraction in DEFAULT_FRACTIONS} - {0}))

    @classmethod
    def example(cls, d_in: int, d_sae: int) -> Self:
        return cls(d_sae=d_sae, k=max(1, d_sae // 8), matryoshka_widths=(max(1, d_sae // 4),))


@ARCHITECTURES.register("matryoshka_batchtopk")
class MatryoshkaBatchTopK(BatchTopKFamily):
    """BatchTopK with nested reconstructions."""

    Config = MatryoshkaBatchTopKConfig
    relative_cost = 1.5
    config: MatryoshkaBatchTopKConfig

    @classmethod
    def step_memory(cls, config: Any, d_in: int) -> StepMemory:
        widths = len(config.inner_widths) + 1  # each has its reconstruction, and the error of that
        return dataclasses.replace(super().step_memory(config, d_in), inputs=2.0 * widths)

    def reconstruction_terms(
        self, pre_acts: SparsePreActs, latents: Float[Tensor, " N"], offset: Float[Tensor, "*B d_out"], target: Float[Tensor, "B d_out"]
    ) -> tuple[Float[Tensor, "B d_out"], dict[str, Tensor]]:
        """Decode group by group (the latents between two widths) and add up, so that every latent is decoded once."""
        widths = (*self.config.inner_widths, self.d_sae)
        decoded = sparse_decode(latents, self.W_dec, pre_acts.active.groups(widths))
        terms: dict[str, Tensor] = {}
        x_hat = offset.expand_as(target)
        for width, group in zip(widths, decoded.view(len(target), len(widths), -1).unbind(1), strict=True):
            x_hat = x_hat + group
            terms["mse_loss" if width == self.d_sae else f"inner_mse_loss_{width}"] = mse(x_hat, target)
        return x_hat, terms
