"""A chunk of held-out text, scored with other activations spliced in at the hook point.

Cross-entropy and KL are taken where the *input* token is not special, as SAELens does. A splice runs the blocks above the hook
point, then goes through the vocabulary once, in parts that fit the cache (CPU) or the memory (GPU). With logits L = h W_U + b_U and
p the clean probabilities, sum_v p_v L_v = h . (W_U p) + p . b_U needs no further pass: W_U p is computed once, and

    KL(clean || spliced) = (h_clean - h_spliced) . (W_U p) - logsumexp(L_clean) + logsumexp(L_spliced)

Where logits are not such a product (`HookedModel.unembedding` is None) the same holds with h = L and the unit matrix for W_U.

Shape letters: W windows, T positions, N non-special positions, P those with a next token, V vocabulary, d_in width, D entries of h.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_core.activations.language_model.engine import CleanRun, HookedModel
from sae_core.activations.source import NextToken

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
        self._unembedding = model.unembedding
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
    def splice(self, x_hats: Sequence[Float[Tensor, "N d_in"]]) -> list[NextToken]:
        """Score with each x_hat at the non-special positions; special ones keep their activations."""
        by_part = []
        for part, rows in self._parts_of(x_hats):
            by_part.append([self._scores(part, self._above(part, some)) for some in rows])
        return [_joined(scores) for scores in zip(*by_part, strict=True)]

    @torch.no_grad()
    def zero_ablated(self) -> NextToken:
        """Score with 0 at every position, special ones too."""
        return _joined([self._scores(part, self._run_from(part, torch.zeros_like(part.clean.x))) for part in self._parts])

    @torch.no_grad()
    def mean_ablated(self, mean: Float[Tensor, " d_in"]) -> NextToken:
        """Score with `mean` at the non-special positions."""
        x = mean.to(self.x).expand_as(self.x)
        return _joined([self._scores(part, self._above(part, rows)) for part, (rows,) in self._parts_of([x])])

    def _parts_of(self, x_hats: Sequence[Tensor]) -> Iterator[tuple[_Part, list[Tensor]]]:
        """Each part with its rows of each x_hat."""
        sizes = [len(part.kept) for part in self._parts]
        rows = zip(*(x_hat.split(sizes) for x_hat in x_hats), strict=True)
        yield from ((part, list(some)) for part, some in zip(self._parts, rows, strict=True))

    def _above(self, part: _Part, rows: Float[Tensor, "N d_in"]) -> Float[Tensor, "N D"]:
        """What enters the unembedding with these rows at the positions kept."""
        x = part.clean.x.clone(memory_format=torch.contiguous_format)
        x.flatten(0, 1).index_copy_(0, part.kept, rows.to(x.dtype))
        return self._run_from(part, x)

    def _run_from(self, part: _Part, x: Float[Tensor, "W T d_in"]) -> Float[Tensor, "N D"]:
        with self._ending_early():
            return _rows(self._model.run_from(part.clean, x), part.kept)

    def _scores(self, part: _Part, h: Float[Tensor, "N D"]) -> NextToken:
        """The predictions from h."""
        rows = [(next_logits, log_sums) for _, next_logits, log_sums in self._logits(h, part.next_tokens)]
        next_logits, log_sums = (torch.cat(column) for column in zip(*rows, strict=True))
        kl = part.constant - torch.linalg.vecdot(h, part.mean_unembedding) + log_sums
        return NextToken((log_sums - next_logits)[part.has_next], kl)

    def _ending_early(self) -> AbstractContextManager[None]:
        return self._model.before_unembedding() if self._unembedding else nullcontext()

    def _clean_part(self, clean: CleanRun, keep: Bool[Tensor, "W T"], outputs: Float[Tensor, "W T D"]) -> tuple[_Part, Float[Tensor, " P"]]:
        """What splices are compared with, and the cross-entropy of the unchanged run."""
        kept = keep.flatten().nonzero().squeeze(1)
        h = _rows(outputs, kept)
        next_tokens = clean.tokens.roll(-1, dims=1).flatten()[kept].long()
        has_next = torch.ones_like(keep)
        has_next[:, -1] = False
        has_next = has_next.flatten()[kept]
        unembedding = self._unembedding
        columns = []
        for logits, next_logits, log_sums in self._logits(h, next_tokens):
            p = logits.sub(log_sums[:, None]).exp_()
            columns.append((next_logits, log_sums, p @ unembedding.W_U.T if unembedding else p))
        next_logits, log_sums, mean = (torch.cat(column) for column in zip(*columns, strict=True))
        constant = torch.linalg.vecdot(h, mean) - log_sums
        return _Part(clean, kept, next_tokens, has_next, mean, constant), (log_sums - next_logits)[has_next]

    def _logits(
        self, h: Float[Tensor, "N D"], next_tokens: Int[Tensor, " N"]
    ) -> Iterator[tuple[Float[Tensor, "_ V"], Float[Tensor, " _"], Float[Tensor, " _"]]]:
        """For some positions at a time: logits, that of the next token, and logsumexp of the logits."""
        for some, ids in zip(h.split(self._positions), next_tokens[:, None].split(self._positions), strict=True):
            logits = self._unembedding.logits(some) if self._unembedding else some
            yield logits, logits.gather(-1, ids).squeeze(-1), logits.logsumexp(-1)


def _rows(values: Float[Tensor, "W T D"], kept: Int[Tensor, " N"]) -> Float[Tensor, "N D"]:
    """The vectors at some positions, windows one after the other."""
    return values.flatten(0, 1).index_select(0, kept).float()


def _joined(scores: Sequence[NextToken]) -> NextToken:
    """Those of parts, one after the other."""
    return NextToken(torch.cat([one.ce for one in scores]), torch.cat([one.kl for one in scores]))
