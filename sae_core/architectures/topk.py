"""TopK SAE: the k largest pre-activations of every token (Gao et al. 2024, arXiv:2406.04093).

A transcoder of this architecture is exported as JumpReLU, with a threshold calibrated as BatchTopK's, so that its L0 is k on average:
neither SAELens nor the files of circuit-tracer know a transcoder that selects.
"""

from collections.abc import Iterable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from sae_core.architectures.topk_family import TopKFamily, TopKFamilyConfig
from sae_core.config.base import Count
from sae_core.config.run import ARCHITECTURES, TranscoderConfig
from sae_core.sae.base import SparseAutoencoder
from sae_core.sparse.active import ActiveLatents, topk_per_token, without_zeros


class TopKConfig(TopKFamilyConfig, TranscoderConfig):
    """SAE with exactly k active latents per token (fewer where pre-activations are negative)."""

    architecture: Literal["topk"] = "topk"
    k: Count
    """Active latents per token."""
    k_start: Count | None = None
    """Active latents per token at the start of training, from where the number goes to `k`; None: `k` all along."""


@ARCHITECTURES.register("topk")
class TopK(TopKFamily):
    """latents = relu of the k pre-activations of largest score, zero elsewhere."""

    Config = TopKConfig
    relative_cost = 1.1
    saelens_architecture = "topk"
    transcodes = True
    config: TopKConfig
    selection_memory = 3.1, 2.6

    threshold: Tensor | None
    """Of a transcoder: smallest score that counts as active at inference, calibrated after training."""

    def __init__(self, config: TopKConfig, d_in: int, d_out: int | None = None, *, generator: torch.Generator | None = None) -> None:
        super().__init__(config, d_in, d_out, generator=generator)
        self.register_buffer("threshold", None if d_out is None else torch.zeros(()))

    def select(self, products: Float[Tensor, "B d_sae"], k: float) -> tuple[ActiveLatents, Float[Tensor, " N"]]:
        return topk_per_token(products, self.b_enc, self.score_factors(), round(k))

    def encode(self, x: Float[Tensor, "B d_in"]) -> Float[Tensor, "B d_sae"]:
        products = self.products(x)
        return (products + self.b_enc).relu() * self.select(products, self.config.k)[0].mask()

    def encode_sparse(self, x: Float[Tensor, "B d_in"]) -> tuple[ActiveLatents, Float[Tensor, " N"]]:
        active, values = self.select(self.products(x), self.config.k)
        return without_zeros(active, values.relu())

    def calibrate(self, batches: Iterable[Float[Tensor, "B d_in"]], *, autocast: bool = False) -> None:
        """Set the threshold of a transcoder to the mean, over batches, of the score that batch top-k would cut at."""
        if self.threshold is not None:
            self.threshold.copy_(self.mean_cut(batches, autocast=autocast))

    @property
    def inference_architecture(self) -> str:
        return "topk" if self.threshold is None else "jumprelu"

    def inference_weights(self) -> dict[str, Tensor]:
        """Of a JumpReLU transcoder whose thresholds are all the calibrated one."""
        assert self.threshold is not None, "an SAE stays TopK"
        return {**self.folded_weights(), "threshold": self.threshold.expand(self.d_sae)}

    def to_inference(self) -> SparseAutoencoder:
        if self.threshold is not None:
            return super().to_inference()
        folded = TopK(self.config.model_copy(update={"rescale_acts_by_decoder_norm": False}), self.d_in)
        folded.load_state_dict(self.folded_weights())
        return folded.to(self.W_dec.device).eval()

    def saelens_fields(self) -> dict[str, object]:
        return {"k": self.config.k, "rescale_acts_by_decoder_norm": self.config.rescale_acts_by_decoder_norm}
