"""BatchTopK SAE: the k * B largest pre-activations of a batch of B tokens (Bussmann et al. 2024, arXiv:2412.06410).

At inference a token must not depend on its batch: a threshold, calibrated on training activations, takes the place of the
selection, and the SAE is exported as JumpReLU. Differs from SAELens: its threshold is a moving average that starts at zero and
lags behind a short run; ours is measured after the last step.
"""

from collections.abc import Iterable
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from sae_core.architectures.topk_family import TopKFamily, TopKFamilyConfig
from sae_core.config.run import ARCHITECTURES, TranscoderConfig
from sae_core.sparse.active import ActiveLatents


class BatchTopKFamilyConfig(TopKFamilyConfig, TranscoderConfig):
    """Fields of BatchTopK and of its Matryoshka form."""

    k: Annotated[float, Field(gt=0)]
    """Active latents per token, on average over the batch."""


class BatchTopKFamily(TopKFamily):
    """Abstract: selection over the batch, and the threshold that replaces it at inference."""

    config: BatchTopKFamilyConfig
    saelens_architecture = "jumprelu"
    transcodes = True
    selection_memory = 6.2, 5.7  # of the first batch, where half of all scores are positive

    threshold: Tensor
    """Smallest score that counts as active at inference; of the last batch while training, then calibrated."""

    def __init__(
        self, config: BatchTopKFamilyConfig, d_in: int, d_out: int | None = None, *, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(config, d_in, d_out, generator=generator)
        self.register_buffer("threshold", torch.zeros(()))

    def select(self, products: Float[Tensor, "B d_sae"], k: float) -> tuple[ActiveLatents, Float[Tensor, " N"]]:
        active, values, smallest = self.select_in_batch(products, k, self.threshold)
        self.threshold.copy_(smallest)
        return active, values

    def encode(self, x: Float[Tensor, "B d_in"]) -> Float[Tensor, "B d_sae"]:
        products = self.products(x)
        pre_acts = products + self.b_enc
        if self.training:
            return pre_acts * self.select(products, self.config.k)[0].mask()
        return pre_acts.relu() * (pre_acts * self.score_factors() > self.threshold)

    def calibrate(self, batches: Iterable[Float[Tensor, "B d_in"]], *, autocast: bool = False) -> None:
        """Set the threshold to the mean, over batches, of the score that batch top-k would cut at."""
        self.threshold.copy_(self.mean_cut(batches, autocast=autocast))

    def inference_weights(self) -> dict[str, Tensor]:
        """Of a JumpReLU SAE whose thresholds are all the calibrated one."""
        return {**self.folded_weights(), "threshold": self.threshold.expand(self.d_sae)}


class BatchTopKConfig(BatchTopKFamilyConfig):
    """SAE with k active latents per token on average."""

    architecture: Literal["batchtopk"] = "batchtopk"


@ARCHITECTURES.register("batchtopk")
class BatchTopK(BatchTopKFamily):
    """latents = relu of the k * B pre-activations of largest score in the batch, zero elsewhere."""

    Config = BatchTopKConfig
    relative_cost = 1.05
    config: BatchTopKConfig
