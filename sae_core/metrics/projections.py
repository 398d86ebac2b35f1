"""Is L0 the right one? The decoder-projection proxy of "Sparse but Wrong" (Chanin & Garriga-Alonso 2025, arXiv:2508.16560)."""

import torch
from torch.nn.functional import normalize

from sae_core.metrics.metric import METRICS, Metric, Observation, Sums
from sae_core.records import MetricSpec

TOKENS = 512
"""Tokens whose projections are looked at, evenly over the first chunk of held-out text: the same for every SAE."""


@METRICS.register("decoder_projection")
class DecoderProjection(Metric):
    """Of the projections (x - b_dec) . W_dec_i / ||W_dec_i|| of B tokens on all latents, the (B d_sae / 2)-th largest.

    Where L0 is too low, latents mix features that occur together, and where it is too high, they mix any: either way a token projects on
    latents that have nothing to do with it. Among SAEs of one width on the same tokens, the smallest value is near the right L0.
    """

    spec = MetricSpec("decoder_projection", "Decoder projection at rank d_sae / 2", "activation units", "none")
    first_chunk_only = True

    def sums(self, seen: Observation) -> Sums:
        if seen.index > 0 or seen.b_dec is None or not len(seen.chunk.x):
            return {}
        n_tokens = min(TOKENS, len(seen.chunk.x))
        rows = torch.linspace(0, len(seen.chunk.x) - 1, n_tokens, device=seen.chunk.x.device).round().long()
        projections = ((seen.chunk.x[rows] - seen.b_dec) @ normalize(seen.W_dec).T).flatten()
        rank = n_tokens * (seen.W_dec.shape[0] // 2)
        value = projections.kthvalue(projections.numel() - rank + 1).values if rank else projections.max()
        return {"value": value.double().cpu(), "times_measured": torch.ones((), dtype=torch.float64)}

    def value(self, sums: Sums, n_tokens: int) -> float:
        return float(sums["value"] / sums["times_measured"])
