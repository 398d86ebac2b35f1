"""logsumexp of logits: of all that is done to logits, evaluation needs this for every SAE, token and entry of the vocabulary."""

import torch
from jaxtyping import Float
from torch import Tensor

from sae_core.sparse.kernels.choice import has_fast_kernels


def logsumexp(logits: Float[Tensor, "N V"]) -> Float[Tensor, " N"]:
    """log sum exp of each row of logits, by the kernel made for it where there is one."""
    if has_fast_kernels(logits) and logits.device.type == "cpu" and logits.dtype == torch.float32:
        from sae_core.sparse.kernels import cpu_logits

        return cpu_logits.logsumexp(logits)
    return logits.logsumexp(dim=-1)
