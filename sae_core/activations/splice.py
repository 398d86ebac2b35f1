"""A chunk of held-out text, scored with other activations spliced in at the hook point.

Cross-entropy and KL are taken where the *input* token is not special, as SAELens does. A splice runs the blocks above the hook
point, then goes through the vocabulary once, in parts that fit the cache (CPU) or the memory (GPU). With logits L = h W_U + b_U and
p the clean probabilities, sum_v p_v L_v = h . (W_U p) + p . b_U needs no further pass: W_U p is computed once, and

    KL(clean || spliced) = (h_clean - h_spliced) . (W_U p) - logsumexp(L_clean) + logsumexp(L_spliced)

Where logits are not such a product (`HookedModel.unembedding` is None) the same holds with h = L and the unit matrix for W_U.
Shape letters: W windows, T positions, N non-special positions, P those with a next token, V vocabulary, d_in width, D entries of h.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_core.activations.hooked_model import CleanRun, HookedModel
from sae_core.activations.source import NextToken
from sae_core.sparse.logits import logsumexp

RUN_TOKENS = {"cpu": 2**12, "cuda": 2**15}
"""Tokens the model runs on at a time, up to the unembedding."""
RUN_LOGITS = {"cpu": 2**21, "cuda": 2**27}
"""Most logits that a run of several windows returns, where the model computes them."""
PART_LOGITS = {"cpu": 2**19, "cuda": 2**27}
"""Logits computed at a time from what enters the unembedding: 2 MiB stay in a CPU's cache from one pass over them to the next."""
PART_POSITIONS = 128
"""Positions at a time, however large the vocabulary: W_U is read once for all of them."""


@dataclass(frozen=True, slots=True)
class _Part:
    """Some windows of the chunk, and what their unchanged run predicted at the N positions kept."""

    clean: CleanRun
    kept: Int[Tensor, " N"]
    """Their numbers, windows one after the other."""
    next_tokens: Int[Tensor, " N"]
    has_next: Bool[Tensor, " N"]
    mean_unembedding: Float[Tensor, "N D"]
    """W_U p, the mean of the tokens' columns of W_U under the clean probabilities."""
    constant: Float[Tensor, " N"]
    """h_clean . W_U p - logsumexp(L_clean)."""


class SplicedText:
    """Held-out windows whose activations at the hook point can be replaced.

    Args:
        tokens: on the model's device.
        keep: positions that are not special tokens.
    """

    @torch.no_grad()
    def __init__(self, model: HookedModel, tokens: Int[Tensor, "W T"], keep: Bool[Tensor, "W T"]) -> None:
        self._model = model
        self._unembedding = model.unembedding(tokens[:1])
        device, length = tokens.device.type, tokens.shape[1]
        self._positions = max(PART_POSITIONS, PART_LOGITS[device] // model.d_vocab)
        n_windows = RUN_TOKENS[device] // length if self._unembedding else RUN_LOGITS[device] // (length * model.d_vocab)
        self._parts: list[_Part] = []
        ce = []
        for some_tokens, some_keep in zip(tokens.split(max(1, n_windows)), keep.split(max(1, n_windows)), strict=True):
            with self._ending_early():
                clean, outputs = model.run(some_tokens)
            part, some_ce = self._clean_part(clean, some_keep, outputs)
            self._parts.append(part)
            ce.append(some_ce)
        self.x: Float[Tensor, "N d_in"] = torch.cat([_rows(part.clean.x, part.kept) for part in self._parts])
        self.clean = NextToken(torch.cat(ce), torch.zeros_like(self.x[:, 0]))

    @torch.no_grad()
    def splice(self, x_hat: Float[Tensor, "N d_in"]) -> NextToken:
        """Score with `x_hat` at the non-special positions; special ones keep their activations."""
        rows = x_hat.split([len(part.constant) for part in self._parts])
        spliced = []
        for part, some in zip(self._parts, rows, strict=True):
            x = part.clean.x.clone(memory_format=torch.contiguous_format)
            x.flatten(0, 1).index_copy_(0, part.kept, some.to(x.dtype))
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
            with self._ending_early():
                h = _rows(self._model.run_from(part.clean, x), part.kept)
            rows = [(log_q_next, log_sum) for _, log_q_next, log_sum in self._logits(h, part.next_tokens)]
            log_q, log_sum = (torch.cat(column) for column in zip(*rows, strict=True))
            ce.append(-log_q[part.has_next])
            kl.append(part.constant - torch.linalg.vecdot(h, part.mean_unembedding) + log_sum)
        return NextToken(torch.cat(ce), torch.cat(kl))

    def _ending_early(self) -> AbstractContextManager[None]:
        return self._model.before_unembedding() if self._unembedding else nullcontext()

    def _clean_part(self, clean: CleanRun, keep: Bool[Tensor, "W T"], outputs: Float[Tensor, "W T D"]) -> tuple[_Part, Float[Tensor, " P"]]:
        """What splices are compared with, and the cross-entropy of the unchanged run."""
        kept = keep.flatten().nonzero().squeeze(1)
        h = _rows(outputs, kept)
        next_tokens = clean.tokens.roll(-1, dims=1).flatten()[kept].long()
        has_next = torch.ones_like(keep)
        has_next[:, -1] = False
        log_p, log_sum, mean_unembedding = [], [], []
        for logits, some_log_p, some_log_sum in self._logits(h, next_tokens):
            p = logits.sub(some_log_sum[:, None]).exp_()
            log_p.append(some_log_p)
            log_sum.append(some_log_sum)
            mean_unembedding.append(p @ self._unembedding.W_U.T if self._unembedding else p)
        mean = torch.cat(mean_unembedding)
        part = _Part(clean, kept, next_tokens, has_next.flatten()[kept], mean, torch.linalg.vecdot(h, mean) - torch.cat(log_sum))
        return part, -torch.cat(log_p)[part.has_next]

    def _logits(
        self, h: Float[Tensor, "N D"], next_tokens: Int[Tensor, " N"]
    ) -> Iterator[tuple[Float[Tensor, "_ V"], Float[Tensor, " _"], Float[Tensor, " _"]]]:
        """For some positions at a time: logits, log-probability of the next token, and logsumexp of the logits."""
        for some, ids in zip(h.split(self._positions), next_tokens[:, None].split(self._positions), strict=True):
            logits = self._unembedding.logits(some) if self._unembedding else some
            log_sum = logsumexp(logits)
            yield logits, logits.gather(-1, ids).squeeze(-1) - log_sum, log_sum


def _rows(values: Float[Tensor, "W T D"], kept: Int[Tensor, " N"]) -> Float[Tensor, "N D"]:
    """The vectors at some positions, windows one after the other."""
    return values.flatten(0, 1).index_select(0, kept).float()
