"""What a metric sees of an SAE on held-out tokens, made up: with or without a language model behind it, and known features."""

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from sae_core.activations.source import EvalChunk, GroundTruth, NextToken
from sae_core.evaluation import ChunkSums, Measured, SaeSums, measured
from sae_core.latents import TIMES_ACTIVE
from sae_core.metrics.metric import METRICS, Observation, Sums
from sae_core.metrics.per_document import ChunkDocuments, terms_of
from sae_core.sparse.active import active_latents


@dataclass(frozen=True)
class Evaluated:
    """Held-out tokens, one a row; every position has a next token."""

    W_dec: Tensor
    directions: Tensor
    active: Tensor
    x: Tensor
    x_hat: Tensor
    latents: Tensor
    ce_clean: Tensor
    ce_spliced: Tensor
    ce_zero_ablated: Tensor
    ce_mean_ablated: Tensor
    kl: Tensor

    def rows(self, index: Tensor | slice) -> "Evaluated":
        per_token = {field.name: getattr(self, field.name)[index] for field in fields(self) if field.name not in ("W_dec", "directions")}
        return replace(self, **per_token)

    def observation(self, bare: bool = False, index: int = 0, documents: Tensor | None = None) -> Observation:
        """`bare`: without a language model or known features. `documents`: the number of that of each token."""
        b_dec = torch.zeros_like(self.x[:1]).sum(dim=0)
        if bare:
            return Observation(EvalChunk(self.x), active_latents(self.latents)[0], self.x_hat, None, self.W_dec, index, b_dec)
        nothing = torch.zeros_like(self.kl)
        chunk = EvalChunk(
            self.x,
            clean=NextToken(self.ce_clean, nothing),
            zero_ablated=NextToken(self.ce_zero_ablated, nothing),
            mean_ablated=NextToken(self.ce_mean_ablated, nothing),
            ground_truth=GroundTruth(self.directions, self.active),
            documents=documents,
        )
        return Observation(
            chunk,
            active_latents(self.latents)[0],
            self.x_hat,
            NextToken(self.ce_spliced, self.kl),
            self.W_dec,
            index,
            b_dec,
            without_latents=self.x_hat / 2,
        )


def made_up(n_tokens: int = 60, d_in: int = 5, d_sae: int = 12, *, error: float = 0.5, seed: int = 0) -> Evaluated:
    """An SAE whose every aspect gets worse with `error`, between 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n_tokens, d_in, generator=generator) + 1
    noise = torch.randn(n_tokens, d_in, generator=generator)
    draws = torch.rand(n_tokens, d_sae, generator=generator)
    latents = draws * (draws < 0.2 + 0.5 * error)
    latents[:, : round(6 * error)] = 0  # dead
    directions = torch.randn(d_sae, d_in, generator=generator)  # latent i is to be feature i
    noise_of_rows = torch.randn(d_sae, d_in, generator=generator)
    flipped = torch.rand(n_tokens, d_sae, generator=generator) < 0.5 * error
    ce = 2 + torch.rand(n_tokens, generator=generator)
    return Evaluated(
        W_dec=directions + 2 * error * noise_of_rows,
        directions=directions,
        active=(latents != 0) ^ flipped,
        x=x,
        x_hat=x + error * noise,
        latents=latents,
        ce_clean=ce,
        ce_spliced=ce + error,
        ce_zero_ablated=ce + 4,
        ce_mean_ablated=ce + 3,
        kl=torch.full((n_tokens,), error),
    )


def value(name: str, *parts: Evaluated, bare: bool = False) -> float | None:
    """A metric over chunks of text, added up as `evaluation.combine` does."""
    metric = METRICS[name]()
    total: Sums = {}
    for index, part in enumerate(parts):
        for key, term in metric.sums(part.observation(bare, index)).items():
            total[key] = total[key] + term if key in total else term
    return metric.value(total, sum(len(part.x) for part in parts)) if total else None


def added(*parts: tuple[Evaluated, Tensor | None]) -> Measured:
    """Everything that is kept of some chunks of text, each with the documents of its tokens, added up as an evaluation does."""
    chunks = []
    for index, (part, documents) in enumerate(parts):
        seen = part.observation(index=index, documents=documents)
        of_chunk = ChunkDocuments.of(seen.chunk)
        metrics = {name: METRICS[name]().sums(seen) for name in METRICS}
        sums = SaeSums(metrics, of_chunk.sums(terms_of(seen)), {TIMES_ACTIVE: seen.times_active})
        chunks.append(ChunkSums(index, len(part.x), of_chunk, {"run": sums}))
    return measured(chunks)["run"]
