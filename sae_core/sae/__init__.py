"""What every sparse autoencoder shares; the architectures are in `sae_core.architectures`."""

from sae_core.sae.base import SparseAutoencoder
from sae_core.sae.functional import mse
from sae_core.sae.loss import LossContext, LossTerms

__all__ = ["LossContext", "LossTerms", "SparseAutoencoder", "mse"]
