"""Constraints that training holds on the weights: decoder rows of norm 1; and, beside that, a product of 1 with their encoder columns.

Before a step, gradients lose what would leave the constraints (else it would pile up in Adam's moments); after it, the weights move to the
nearest ones that satisfy them. So a constraint costs a few passes over the weights, and neither losses nor files know of it.
Letters: e_i is column i of W_enc, d_i row i of W_dec.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.linalg import vecdot


@torch.no_grad()
def project_to_unit_rows(grad: Float[Tensor, "d_sae d_out"], W_dec: Float[Tensor, "d_sae d_out"]) -> None:
    """Take the part along d_i off the gradient of each decoder row of norm 1, in place.

    Bricken et al. 2023, "Towards Monosemanticity".
    """
    grad.addcmul_(vecdot(grad, W_dec)[:, None], W_dec, value=-1)


@torch.no_grad()
def restore_unit_rows(W_dec: Float[Tensor, "d_sae d_out"]) -> None:
    """Divide each row by its norm, in place; a row of zeros stays."""
    norms = W_dec.norm(dim=1, keepdim=True)
    W_dec /= torch.where(norms > 0, norms, 1.0)


@torch.no_grad()
def project_to_aligned(
    grad_enc: Float[Tensor, "d_sae d_in"],
    grad_dec: Float[Tensor, "d_sae d_in"],
    enc: Float[Tensor, "d_sae d_in"],
    W_dec: Float[Tensor, "d_sae d_in"],
) -> None:
    """Take the part of the gradients that would change e_i . d_i off them, in place, after `project_to_unit_rows`.

    (g_e, g_d) <- (g_e, g_d) - c (d, f) with c = (g_e . d + g_d . f) / (1 + f . f), where f is what e has at right angles to d.

    Args:
        enc: W_enc.T.
    """
    f = enc - vecdot(enc, W_dec)[:, None] * W_dec
    c = (vecdot(grad_enc, W_dec) + vecdot(grad_dec, f)) / (1 + vecdot(f, f))
    grad_enc.addcmul_(c[:, None], W_dec, value=-1)
    grad_dec.addcmul_(c[:, None], f, value=-1)


@torch.no_grad()
def restore_aligned(enc: Float[Tensor, "d_sae d_in"], W_dec: Float[Tensor, "d_sae d_in"]) -> None:
    """Move each encoder column along d_i until e_i . d_i = 1, in place, after `restore_unit_rows`.

    Args:
        enc: W_enc.T.
    """
    enc.addcmul_((1 - vecdot(enc, W_dec))[:, None], W_dec)
