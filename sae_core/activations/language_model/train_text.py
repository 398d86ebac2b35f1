"""Training text in its windows, for a loss on what the language model makes of reconstructions: KL(clean || spliced), and its gradient.

The gradient of KL with respect to the logits of a splice is q - p, its probabilities less the clean ones. With logits h W_U + b_U that is
W_U q - W_U p with respect to h: W_U p is known from the clean run, and q is never in memory for more than some positions. Where logits are
no such product the last layer is differentiated, for some positions at a time.

Shape letters: W windows, T positions in a window, N tokens of a batch, V vocabulary, D entries of h, d_in width of what is replaced.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_core.activations.language_model.engine import HookedModel
from sae_core.activations.language_model.splice import CleanText, Part, SplicedText
from sae_core.activations.text_batch import TextBatch, TextRows

TextWindows = tuple[Int[Tensor, "_ T"], Bool[Tensor, "_ T"]]
"""Tokens of some windows, and which of their positions are meant."""


def rows_of_windows(tokens: Int[Tensor, "W T"], keep: Bool[Tensor, "W T"], rows: TextRows) -> TextWindows:
    """Of the windows of a shard, those that hold these rows.

    Args:
        keep: positions that count.
    """
    positions = keep.flatten().nonzero().squeeze(1)[rows.start : rows.stop]
    chosen = torch.zeros_like(keep).flatten().index_fill(0, positions, True).view_as(keep)
    first, last = (int(positions[end]) // tokens.shape[1] for end in (0, -1))
    return tokens[first : last + 1], chosen[first : last + 1]


def text_batch(model: HookedModel, windows: Sequence[TextWindows], device: str, *, has_target: bool = False) -> TextBatch:
    """A batch of the chosen positions of some windows, one part after the other.

    Args:
        model: at the places that are read.
        has_target: whether the last of them is that of a target, where reconstructions go; else they go where all are read.
    """
    tokens, keep = (torch.cat(some).to(device) for some in zip(*windows, strict=True))
    clean, n_read = CleanText(model, tokens, keep), len(model.places) - has_target
    read = clean.at(*range(n_read))
    spliced = clean.at(n_read) if has_target else read
    return TextBatch(read.x, lambda x_hat: kl_of(clean, spliced, x_hat), spliced.x if has_target else None)


def kl_of(clean: CleanText, spliced: SplicedText, x_hat: Float[Tensor, "N d_in"]) -> tuple[Float[Tensor, ""], Float[Tensor, "N d_in"]]:
    """KL(clean || spliced) with x_hat at the positions kept, in nats per token, mean over them; and its gradient for each row of x_hat."""
    kls, gradients = [], []
    for part, (rows,) in spliced.parts_of([x_hat]):
        with torch.enable_grad():
            rows = rows.detach().requires_grad_()
            h = clean.kept(part, spliced.above(part, rows))
        kl, d_h = _kl_at(clean, part, h.detach())
        kls.append(kl)
        gradients.append(torch.autograd.grad(h, rows, d_h)[0])
    # Divided only now: gradients per token do not vanish in half precision, as those of a mean would.
    return torch.cat(kls).mean(), torch.cat(gradients) / len(x_hat)


@torch.no_grad()
def _kl_at(clean: CleanText, part: Part, h: Float[Tensor, "N D"]) -> tuple[Float[Tensor, " N"], Float[Tensor, "N D"]]:
    """KL at each position, and its gradient with respect to what enters the unembedding there."""
    columns = []
    for first in range(0, len(h), clean.positions):
        some = slice(first, first + clean.positions)
        columns.append(_by_product(clean, part, some, h[some]) if clean.model.unembedding else _by_model(clean, part, some, h[some]))
    kl, d_h = (torch.cat(column) for column in zip(*columns, strict=True))
    return kl, d_h


def _by_product(clean: CleanText, part: Part, some: slice, h: Float[Tensor, "N D"]) -> tuple[Float[Tensor, " N"], Float[Tensor, "N D"]]:
    unembedding, mean, constant = clean.model.unembedding, part.mean_unembedding, part.constant
    assert unembedding is not None and mean is not None and constant is not None, f"{part=}"
    logits = unembedding.logits(h)
    log_sums = logits.logsumexp(-1)
    kl = constant[some] - torch.linalg.vecdot(h, mean[some]) + log_sums
    return kl, logits.sub_(log_sums[:, None]).exp_() @ unembedding.W_U.T - mean[some]


def _by_model(clean: CleanText, part: Part, some: slice, h: Float[Tensor, "N D"]) -> tuple[Float[Tensor, " N"], Float[Tensor, "N D"]]:
    log_p = clean.model.logits(part.h[some]).log_softmax(-1)
    with torch.enable_grad():
        h = h.detach().requires_grad_()
        log_q = clean.model.logits(h).log_softmax(-1)
        kl = (log_p.exp() * (log_p - log_q)).sum(-1)
        return kl.detach(), torch.autograd.grad(kl.sum(), h)[0]
