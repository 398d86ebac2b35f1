"""Is L0 the right one? The two proxies of "Sparse but Wrong" (Chanin & Garriga-Alonso 2025, arXiv:2508.16560).

Where L0 is too low, latents mix features that occur together; where it is too high, they mix any. Either way decoder rows resemble one
another more, and a token projects on latents that have nothing to do with it.
"""

import torch
from torch.nn.functional import normalize

from sae_core.metrics.metric import METRICS, Metric, Observation, Sums
from sae_core.records import MetricSpec

TOKENS = 512
"""Tokens whose projections are looked at, evenly over the first chunk of held-out text: the same for every SAE."""

LATENTS = 4096
"""Decoder rows that are compared with one another, evenly over all of them."""


@METRICS.register("decoder_cosine")
class DecoderCosine(Metric):
    """Mean |cos| over the pairs of decoder rows; smallest near the right L0, among SAEs of one width."""

    spec = MetricSpec("decoder_cosine", "Mean |cos| between decoder rows", "", "none")

    def sums(self, seen: Observation) -> Sums:
        n_latents = min(LATENTS, seen.W_dec.shape[0])
        if seen.index > 0 or n_latents < 2:
            return {}
        chosen = torch.linspace(0, seen.W_dec.shape[0] - 1, n_latents, device=seen.W_dec.device).round().long()
        rows = normalize(seen.W_dec[chosen])
        cosines = (rows @ rows.T).abs().fill_diagonal_(0).sum(dtype=torch.float64)
        return {"value": cosines / (n_latents * (n_latents - 1)), "times_measured": torch.ones((), dtype=torch.float64)}

    def value(self, sums: Sums, n_tokens: int) -> float:
        return float(sums["value"] / sums["times_measured"])


@METRICS.register("decoder_projection")
class DecoderProjection(Metric):
    """Of the projections (y - b_dec) . W_dec_i / ||W_dec_i|| of B tokens on all latents, the (B d_sae / 2)-th largest.

    y is what is to be reconstructed: x itself, of a transcoder its target, less what a skip connection makes of x.

    Comparable among SAEs of one width on the same tokens.
    """

    spec = MetricSpec("decoder_projection", "Decoder projection at rank d_sae / 2", "activation units", "none")
    first_chunk_only = True

    def sums(self, seen: Observation) -> Sums:
        if seen.index > 0 or seen.b_dec is None or not len(seen.chunk.x):
            return {}
        n_tokens = min(TOKENS, len(seen.chunk.x))
        rows = torch.linspace(0, len(seen.chunk.x) - 1, n_tokens, device=seen.chunk.x.device).round().long()
        offset = seen.b_dec if seen.without_latents is None else seen.without_latents[rows]
        projections = ((seen.chunk.y[rows] - offset) @ normalize(seen.W_dec).T).flatten()
        rank = n_tokens * (seen.W_dec.shape[0] // 2)
        value = projections.kthvalue(projections.numel() - rank + 1).values if rank else projections.max()
        return {"value": value.double().cpu(), "times_measured": torch.ones((), dtype=torch.float64)}

    def value(self, sums: Sums, n_tokens: int) -> float:
        return float(sums["value"] / sums["times_measured"])
