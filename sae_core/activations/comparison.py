"""Stored activations, compared with the same ones made again: a cache holds what its source says, whoever made it and where."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from sae_core.activations.files import open_tensors
from sae_core.activations.shards import shard_path
from sae_core.activations.source import ActivationSource

SAME_ROW = 0.05
"""Largest difference between a row made twice, relative to its norm: processors differ in the last digits, which a language model in 16
bits amplifies to a few percent."""


@torch.no_grad()
def differences(sources: Sequence[tuple[ActivationSource, Path]], index: int) -> list[float]:
    """How far each source's stored shard is from the shard made again: the largest distance between two rows, relative to the stored
    one's norm, or to the median norm where that is larger. Infinite where there are not as many rows. 0 on the processor that made it.

    Args:
        sources: with one `pass_key`; each with its cache.
        index: of a shard that all of them store.
    """
    first, directory = sources[0]
    again = first.shards(directory, index, [source for source, _ in sources])
    return [_difference(shard_path(cache, index), rows) for rows, (_, cache) in zip(again, sources, strict=True)]


def _difference(path: Path, again: Float[Tensor, "N width"]) -> float:
    with open_tensors(path) as file:
        stored: Tensor = file.get_tensor("x")
    if stored.shape != again.shape:
        return math.inf
    rows = stored.float()
    norms = rows.norm(dim=1)
    distances = (again.to(stored.dtype).float() - rows).norm(dim=1)
    return float((distances / norms.clamp(min=norms.median().clamp(min=torch.finfo(torch.float32).tiny))).max())
