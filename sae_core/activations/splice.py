"""A chunk of held-out text, scored with other activations spliced in at the hook point.

Cross-entropy and KL are taken where the *input* token is not special, as SAELens does. Work goes through the vocabulary in
parts that fit the cache (CPU) or the memory (GPU); the clean probabilities are kept, so every splice costs one run of the
blocks above the hook point.
Shape letters: W windows, T positions, N non-special positions, P those with a next token, V vocabulary, d_in width.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_core.activations.hooked_model import CleanRun, HookedModel
from sae_core.activations.source import NextToken

PART_LOGITS = {"cpu": 2**21, "cuda": 2**27}
"""Logits computed at a time: 8 MiB stay in a CPU's cache from one pass over them to the next."""


@dataclass(frozen=True, slots=True)
class _Part:
    """Some windows of the chunk, and what their unchanged run predicted."""

    clean: CleanRun
    keep: Bool[Tensor, "W T"]
    n_kept: int
    p: Float[Tensor, "W T V"]
    """Clean probabilities of the next token."""
    p_log_p: Float[Tensor, "W T"]
    """Sum of p log p over the vocabulary: KL(clean || q) is this minus the sum of p log q."""


class SplicedText:
    """Held-out windows whose activations at the hook point can be replaced.

    Args:
        tokens: on the model's device.
        keep: positions that are not special tokens.
    """

    @torch.no_grad()
    def __init__(self, model: HookedModel, tokens: Int[Tensor, "W T"], keep: Bool[Tensor, "W T"]) -> None:
        self._model = model
        self._parts: list[_Part] = []
        ce = []
        n_windows = max(1, PART_LOGITS[tokens.device.type] // (tokens.shape[1] * model.d_vocab))
        for some_tokens, some_keep in zip(tokens.split(n_windows), keep.split(n_windows), strict=True):
            clean, logits = model.run(some_tokens)
            log_p = logits.float().log_softmax(-1)
            ce.append(_cross_entropy(log_p, some_tokens, some_keep))
            p = log_p.exp()
            self._parts.append(_Part(clean, some_keep, int(some_keep.sum()), p, torch.linalg.vecdot(p, log_p)))
        self.x: Float[Tensor, "N d_in"] = torch.cat([part.clean.x[part.keep] for part in self._parts]).float()
        self.clean = NextToken(torch.cat(ce), torch.zeros_like(self.x[:, 0]))

    @torch.no_grad()
    def splice(self, x_hat: Float[Tensor, "N d_in"]) -> NextToken:
        """Score with `x_hat` at the non-special positions; special ones keep their activations."""
        rows = x_hat.split([part.n_kept for part in self._parts])
        spliced = []
        for part, some in zip(self._parts, rows, strict=True):
            x = part.clean.x.clone()
            x[part.keep] = some.to(x.dtype)
            spliced.append(x)
        return self._score(spliced)

    @torch.no_grad()
    def zero_ablated(self) -> NextToken:
        """Score with 0 at every position, special ones too."""
        return self._score([torch.zeros_like(part.clean.x) for part in self._parts])

    def mean_ablated(self, mean: Float[Tensor, " d_in"]) -> NextToken:
        """Score with `mean` at the non-special positions."""
        return self.splice(mean.to(self.x).expand_as(self.x))

    def _score(self, replacements: list[Tensor]) -> NextToken:
        ce, kl = [], []
        for part, x in zip(self._parts, replacements, strict=True):
            log_q = self._model.run_from(part.clean, x).float().log_softmax(-1)
            ce.append(_cross_entropy(log_q, part.clean.tokens, part.keep))
            kl.append((part.p_log_p - torch.linalg.vecdot(part.p, log_q))[part.keep])
        return NextToken(torch.cat(ce), torch.cat(kl))


def _cross_entropy(log_p: Float[Tensor, "W T V"], tokens: Int[Tensor, "W T"], keep: Bool[Tensor, "W T"]) -> Float[Tensor, " P"]:
    """-log p of the next token, nats, at every kept position that has one."""
    return -log_p[:, :-1].gather(-1, tokens[:, 1:, None].long()).squeeze(-1)[keep[:, :-1]]
