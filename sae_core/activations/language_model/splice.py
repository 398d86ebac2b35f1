"""A chunk of held-out text, scored with other activations spliced in at hook points, one or several at once.

Cross-entropy and KL are taken where the *input* token is not special, as SAELens does. The unchanged model runs once, for all hook points.
A splice runs the blocks above its hook point, then goes through the vocabulary once, in parts that fit the cache (CPU) or the memory
(GPU). With logits L = h W_U + b_U and p the clean probabilities, sum_v p_v L_v = h . (W_U p) + p . b_U needs no further pass: W_U p is
computed once, and

    KL(clean || spliced) = (h_clean - h_spliced) . (W_U p) - logsumexp(L_clean) + logsumexp(L_spliced)

Where logits are not such a product (`HookedModel.unembedding` is None) the clean ones are computed again beside those of each splice:
they would take the memory of a whole vocabulary per position.

Shape letters: W windows, T positions, N non-special positions, P those with a next token, V vocabulary, d_in width, D entries of h.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_core.activations.language_model.engine import CleanRun, HookedModel
from sae_core.activations.source import NextToken

RUN_TOKENS = {"cpu": 2**12, "cuda": 2**15}
"""Tokens the model runs on at a time, up to the unembedding."""
PART_LOGITS = {"cpu": 2**19, "cuda": 2**27}
"""Logits computed at a time from what enters the unembedding: 2 MiB stay in a CPU's cache from one pass over them to the next."""
PART_POSITIONS = 128
"""Positions at a time, however large the vocabulary: W_U is read once for all of them."""


@dataclass(frozen=True, slots=True)
class Part:
    """Some windows of the text, and what their unchanged run predicted at the N positions kept."""

    clean: list[CleanRun]
    """At each hook point."""
    kept: Int[Tensor, " N"]
    """Their numbers, windows one after the other."""
    next_tokens: Int[Tensor, " N"]
    has_next: Bool[Tensor, " N"]
    h: Float[Tensor, "N D"]
    """What enters the unembedding."""
    mean_unembedding: Float[Tensor, "N D"] | None
    """W_U p, the mean of the tokens' columns of W_U under the clean probabilities; None where logits are no such product."""
    constant: Float[Tensor, " N"] | None
    """h_clean . W_U p - logsumexp(L_clean)."""


class CleanText:
    """Windows, read at the places of a model, and what it predicts there when nothing is changed.

    Args:
        tokens: on the model's device.
        keep: positions that count: those that are not special tokens, or some of them.
    """

    @torch.no_grad()
    def __init__(self, model: HookedModel, tokens: Int[Tensor, "W T"], keep: Bool[Tensor, "W T"]) -> None:
        self.model = model
        device, length = tokens.device.type, tokens.shape[1]
        self.positions = max(PART_POSITIONS, PART_LOGITS[device] // model.d_vocab)
        n_windows = max(1, RUN_TOKENS[device] // length)
        self.parts: list[Part] = []
        ce = []
        for some_tokens, some_keep in zip(tokens.split(n_windows), keep.split(n_windows), strict=True):
            part, some_ce = self._part(*model.run(some_tokens), some_tokens, some_keep)
            self.parts.append(part)
            ce.append(some_ce)
        n_kept = sum(len(part.kept) for part in self.parts)
        self.scores = NextToken(torch.cat(ce), torch.zeros(n_kept, dtype=torch.float32, device=tokens.device))

    def at(self, *numbers: int) -> "SplicedText":
        """The text at some of the model's places, by their numbers; by default at the first."""
        return SplicedText(self, numbers or (0,))

    def _part(
        self, clean: list[CleanRun], outputs: Float[Tensor, "W T D"], tokens: Int[Tensor, "W T"], keep: Bool[Tensor, "W T"]
    ) -> tuple[Part, Float[Tensor, " P"]]:
        """What splices are compared with, and the cross-entropy of the unchanged run."""
        unembedding = self.model.unembedding
        kept = keep.flatten().nonzero().squeeze(1)
        next_tokens = tokens.roll(-1, dims=1).flatten()[kept].long()
        has_next = torch.ones_like(keep)
        has_next[:, -1] = False
        has_next = has_next.flatten()[kept]
        h = outputs.flatten(0, 1).index_select(0, kept)
        h = h.float() if unembedding else h
        columns = []
        for some, ids in zip(h.split(self.positions), next_tokens.split(self.positions), strict=True):
            logits = self.logits(some)
            log_sums = logits.logsumexp(-1)
            mean = logits.sub(log_sums[:, None]).exp_() @ unembedding.W_U.T if unembedding else log_sums.new_empty(len(some), 0)
            columns.append((log_sums - logits.gather(-1, ids[:, None]).squeeze(-1), log_sums, mean))
        ce, log_sums, mean = (torch.cat(column) for column in zip(*columns, strict=True))
        constant = torch.linalg.vecdot(h, mean) - log_sums if unembedding else None
        return Part(clean, kept, next_tokens, has_next, h, mean if unembedding else None, constant), ce[has_next]

    def logits(self, h: Float[Tensor, "N D"]) -> Float[Tensor, "N V"]:
        """Logits of some positions, float32."""
        return self.model.unembedding.logits(h) if self.model.unembedding else self.model.logits(h)

    def scored(self, part: Part, outputs: Sequence[Float[Tensor, "W T D"]]) -> list[NextToken]:
        """The predictions from what enters the unembedding in several runs of one part."""
        hs = [self.kept(part, one) for one in outputs]
        if part.mean_unembedding is None:
            return self._scored_beside_clean(part, hs)
        return [self._scored(part, h) for h in hs]

    def kept(self, part: Part, output: Float[Tensor, "W T D"]) -> Float[Tensor, "N D"]:
        """What enters the unembedding at the positions kept; float32 where logits are a product."""
        h = output.flatten(0, 1).index_select(0, part.kept)
        return h.float() if self.model.unembedding else h

    def _scored(self, part: Part, h: Float[Tensor, "N D"]) -> NextToken:
        assert part.mean_unembedding is not None and part.constant is not None
        rows = []
        for some, ids in zip(h.split(self.positions), part.next_tokens[:, None].split(self.positions), strict=True):
            logits = self.logits(some)
            rows.append((logits.gather(-1, ids).squeeze(-1), logits.logsumexp(-1)))
        next_logits, log_sums = (torch.cat(column) for column in zip(*rows, strict=True))
        kl = part.constant - torch.linalg.vecdot(h, part.mean_unembedding) + log_sums
        return NextToken((log_sums - next_logits)[part.has_next], kl)

    def _scored_beside_clean(self, part: Part, hs: Sequence[Float[Tensor, "N D"]]) -> list[NextToken]:
        rows: list[list[tuple[Tensor, Tensor]]] = [[] for _ in hs]
        for first in range(0, len(part.kept), self.positions):
            some = slice(first, first + self.positions)
            clean = self.logits(part.h[some]).log_softmax(-1)
            p, ids = clean.exp(), part.next_tokens[some, None]
            for row, h in zip(rows, hs, strict=True):
                log_q = self.logits(h[some]).log_softmax(-1)
                row.append((-log_q.gather(-1, ids).squeeze(-1), (p * (clean - log_q)).sum(-1)))
        columns = ([torch.cat(column) for column in zip(*row, strict=True)] for row in rows)
        return [NextToken(ce[part.has_next], kl) for ce, kl in columns]


class SplicedText:
    """Held-out windows whose activations at one place, or at several at once, can be replaced.

    Those of several are side by side: d_in is the sum of their widths.
    """

    def __init__(self, text: CleanText, numbers: Sequence[int]) -> None:
        self._text = text
        self._numbers = numbers
        at_each = [
            torch.cat([part.clean[number].x.flatten(0, 1).index_select(0, part.kept).float() for part in text.parts]) for number in numbers
        ]
        self._widths = [x.shape[1] for x in at_each]
        self.x: Float[Tensor, "N d_in"] = at_each[0] if len(at_each) == 1 else torch.cat(at_each, dim=1)
        self.clean = text.scores

    @torch.no_grad()
    def splice(self, x_hats: Sequence[Float[Tensor, "N d_in"]]) -> list[NextToken]:
        """Score with each x_hat at the non-special positions; special ones keep their activations."""
        by_part = []
        for part, rows in self.parts_of(x_hats):
            by_part.append(self._text.scored(part, [self.above(part, some) for some in rows]))
        return [_joined(scores) for scores in zip(*by_part, strict=True)]

    @torch.no_grad()
    def zero_ablated(self) -> NextToken:
        """Score with 0 at every position, special ones too."""
        scores = []
        for part in self._text.parts:
            zeros = [torch.zeros_like(x) for x in self._clean(part)]
            scores += self._text.scored(part, [self._run_from(part, zeros)])
        return _joined(scores)

    @torch.no_grad()
    def mean_ablated(self, mean: Float[Tensor, " d_in"]) -> NextToken:
        """Score with `mean` at the non-special positions."""
        (scores,) = self.splice([mean.to(self.x).expand_as(self.x)])
        return scores

    def _clean(self, part: Part) -> list[Float[Tensor, "W T _"]]:
        """Activations at each place."""
        return [part.clean[number].x for number in self._numbers]

    def parts_of(self, x_hats: Sequence[Tensor]) -> Iterator[tuple[Part, list[Tensor]]]:
        """Each part with its rows of each x_hat."""
        sizes = [len(part.kept) for part in self._text.parts]
        rows = zip(*(x_hat.split(sizes) for x_hat in x_hats), strict=True)
        yield from ((part, list(some)) for part, some in zip(self._text.parts, rows, strict=True))

    def above(self, part: Part, rows: Float[Tensor, "N d_in"]) -> Float[Tensor, "W T D"]:
        """What enters the unembedding with these rows at the positions kept; with a gradient where they require one."""
        xs = []
        for clean, some in zip(self._clean(part), rows.split(self._widths, dim=1), strict=True):
            x = clean.clone(memory_format=torch.contiguous_format)
            x.flatten(0, 1).index_copy_(0, part.kept, some.to(x.dtype))
            xs.append(x)
        return self._run_from(part, xs)

    def _run_from(self, part: Part, xs: Sequence[Float[Tensor, "W T _"]]) -> Float[Tensor, "W T D"]:
        return self._text.model.run_from_all([part.clean[number] for number in self._numbers], xs)


def _joined(scores: Sequence[NextToken]) -> NextToken:
    """Those of parts, one after the other."""
    return NextToken(torch.cat([one.ce for one in scores]), torch.cat([one.kl for one in scores]))
