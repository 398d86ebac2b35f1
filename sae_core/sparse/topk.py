"""Selecting the largest pre-activations: per token (TopK) and over the whole batch (BatchTopK).

Both return the indices of the selected entries in token order; values are gathered by the caller, so that gradients flow
through the caller's own graph. Shape letters: B tokens in the batch, d_sae latents, N selected entries.
"""

from jaxtyping import Float, Int
from torch import Tensor


def topk_rows(scores: Float[Tensor, "B d_sae"], k: int) -> Int[Tensor, "B k"]:
    """The k largest entries of every row, indices ascending within the row."""
    return scores.topk(k, dim=-1, sorted=False).indices.sort(dim=-1).values


def topk_batch(scores: Float[Tensor, "B d_sae"], n: int, hint: float = 0.0) -> tuple[Int[Tensor, " N"], float]:
    """The n largest positive entries of the whole batch, as ascending positions in the flattened batch.

    Sorting all B * d_sae entries is the slow part of BatchTopK. Only entries above `hint` are looked at; where that
    leaves fewer than n, all positive ones are. The result does not depend on the hint. Entries equal to the smallest
    selected one are all selected, so N can exceed n when values tie.

    Args:
        hint: a guess somewhat below the n-th largest value, e.g. from the previous batch; at least 0.

    Returns:
        The positions, and the smallest selected value (0.0 when nothing is positive).
    """
    flat = scores.detach().flatten()
    positions = (flat > hint).nonzero().squeeze(1)
    if positions.numel() < n and hint > 0:
        positions = (flat > 0).nonzero().squeeze(1)
    if positions.numel() == 0:
        return positions, 0.0
    candidates = flat[positions]
    if positions.numel() > n:
        smallest = candidates.kthvalue(candidates.numel() - n + 1).values
        keep = candidates >= smallest
        positions, candidates = positions[keep], candidates[keep]
        return positions, float(smallest)
    return positions, float(candidates.min())
