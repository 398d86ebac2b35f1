"""What every sparse autoencoder shares; the architectures are in `sae_core.architectures`."""

from sae_core.sae.base import LossContext, LossTerms, SparseAutoencoder
from sae_core.sae.functional import mse

__all__ = ["LossContext", "LossTerms", "SparseAutoencoder", "mse"]
