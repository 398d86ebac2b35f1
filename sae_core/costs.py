"""What training an SAE costs, from its sizes alone: floating-point operations and parameters. No torch: tables compute with it too."""

FLOPS_PER_WEIGHT = 6
"""Per token and matrix product: 2 for the forward pass, 4 for the backward pass."""
_PRODUCTS = {"gated": 3}
"""Matrix products with d_in x d_sae weights, where there are more than encoder and decoder: Gated decodes its gate too."""
_TOPK = ("topk", "abstopk", "hierarchical_topk", "batchtopk", "matryoshka_batchtopk")
_VECTORS = {"standard": 1, "p_anneal": 1, "gated": 3, "jumprelu": 2, **dict.fromkeys(_TOPK, 1)}
"""Parameters per latent beside encoder and decoder: biases, thresholds, scales."""
_TIED = ("matching_pursuit",)
"""Architectures whose encoder is their decoder's transpose."""


def training_flops(architecture: str, d_in: int, d_sae: int, tokens: int, *, d_out: int | None = None, skips: bool = False) -> float:
    """Floating-point operations of training, as if all matrix products were dense: 12 d_in d_sae per token, 18 for Gated; of a transcoder
    6 (d_in + d_out) d_sae, and 6 d_in d_out for a skip connection.

    What an architecture does beside them, such as selecting the k largest, one by one in matching pursuit, or reviving dead latents, is
    not counted, nor that sparse
    products are cheaper: the number is a size, not a time.
    """
    if d_out is None:
        return float(FLOPS_PER_WEIGHT * _PRODUCTS.get(architecture, 2) * d_in * d_sae * tokens)
    weights = (d_in + (_PRODUCTS.get(architecture, 2) - 1) * d_out) * d_sae + (d_in * d_out if skips else 0)
    return float(FLOPS_PER_WEIGHT * weights * tokens)


def n_parameters(architecture: str, d_in: int, d_sae: int, *, d_out: int | None = None, skips: bool = False) -> int | None:
    """Parameters in training; None for an architecture of a plugin, whose parameters are not known here."""
    vectors, width = _VECTORS.get(architecture), d_out or d_in
    if architecture in _TIED:
        return d_sae * d_in + d_in
    return None if vectors is None else (d_in + width + vectors) * d_sae + width + (d_in * width if skips else 0)
