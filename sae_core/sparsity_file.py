"""`sparsity.safetensors` beside an exported SAE, as SAELens has it: how often each latent is active. No torch."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_core.files import CHECKSUM, NO_CHECKSUM_YET, seal_tensors, written_whole
from sae_core.layout import SPARSITY

NEVER = 1e-10
"""Added to every share of tokens, so that a latent that is never active has a logarithm: -10."""


def write_sparsity(sae: Path, times_active: NDArray[Any], n_tokens: int) -> None:
    """Write log10(times_active / n_tokens + 1e-10), float32 [d_sae], as the tensor `sparsity`, atomically.

    Args:
        sae: directory of the exported SAE.
        times_active: held-out tokens that each latent is active on, [d_sae].
        n_tokens: held-out tokens.
    """
    from safetensors.numpy import save_file

    sparsity = np.log10(times_active.astype(np.float64) / n_tokens + NEVER).astype(np.float32)
    with written_whole(sae / SPARSITY) as temporary:
        save_file({"sparsity": sparsity}, temporary, metadata={CHECKSUM: NO_CHECKSUM_YET})
        seal_tensors(temporary)
