"""SparseAutoencoder: what every architecture shares. A concrete class adds `encode` and `loss`, in one file of `architectures/`.

Shape letters: B tokens in the batch, d_in width of the activations, d_sae latents.
Training works in units where E||x|| = sqrt(d_in); `fold_scale` moves an SAE to the units of the model.
"""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sae_core.config import ArchitectureConfig


@dataclass(frozen=True, slots=True)
class LossContext:
    """What a loss may know beyond the batch."""

    sparsity_scale: float | Float[Tensor, ""] = 1.0
    """Factor on sparsity coefficients: rises from 0 to 1 during the sparsity warm-up, then follows the target L0 where there is one."""
    dead: Bool[Tensor, " d_sae"] | None = None
    """Latents inactive for `dead_after_tokens`; None when there are none."""


@dataclass(frozen=True, slots=True)
class LossTerms:
    """A loss, its named parts, and what the batch showed about sparsity."""

    total: Float[Tensor, ""]
    terms: dict[str, Float[Tensor, ""]]
    """Summands of `total`, coefficients applied."""
    l0: Float[Tensor, ""]
    """Mean number of active latents per token."""
    active: Bool[Tensor, " d_sae"]
    """Latents active for at least one token of the batch."""

    @classmethod
    def of(cls, terms: dict[str, Tensor], latents: Float[Tensor, "B d_sae"]) -> "LossTerms":
        """Sum the terms; read sparsity off dense latents."""
        nonzero = latents.detach() != 0
        return cls(torch.stack(list(terms.values())).sum(), terms, torch.count_nonzero(nonzero) / latents.shape[0], nonzero.any(dim=0))


class SparseAutoencoder(nn.Module, ABC):
    """A sparse autoencoder: x -> latents -> x_hat.

    `self.training` chooses between the training and the inference behaviour of `encode`; there are no twin classes.

    Args:
        config: the architecture's own config.
        d_in: width of the activations.
        generator: decides the initial weights. On the `meta` device nothing is drawn.
    """

    Config: ClassVar[type[ArchitectureConfig]]
    relative_cost: ClassVar[float] = 1.0
    """Time of a training step relative to a standard SAE of the same size; used to balance groups."""
    straight_through: ClassVar[frozenset[str]] = frozenset()
    """Parameters whose gradient is an estimate, not the derivative of the loss; the contract tests leave them out."""
    saelens_architecture: ClassVar[str | None] = None
    """Name under which SAELens loads the inference form; None when only we can."""

    W_enc: nn.Parameter
    W_dec: nn.Parameter
    b_dec: nn.Parameter

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for base in cls.__mro__[1:]:
            if "Config" in base.__dict__:  # concrete: abstract bases only annotate it
                raise TypeError(
                    f"SAE classes must be abstract or final, but {cls.__name__} subclasses {base.__name__}. Share code in an abstract base."
                )
        for name in ("decode", "forward"):
            if name in cls.__dict__:
                raise TypeError(
                    f"`{name}` is the same for every SAE, but {cls.__name__} overrides it. Put the variation in `encode` or `loss`."
                )

    def __init__(self, config: ArchitectureConfig, d_in: int, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        self.d_in = d_in
        self.d_sae = config.d_sae
        W_dec = torch.empty(self.d_sae, d_in)
        if not W_dec.is_meta:
            # kaiming_uniform_, then every row rescaled: SAELens' initialisation.
            W_dec.uniform_(-math.sqrt(6 / d_in), math.sqrt(6 / d_in), generator=generator)
            W_dec *= config.decoder_init_norm / W_dec.norm(dim=1, keepdim=True)
        self.W_dec = nn.Parameter(W_dec)
        self.W_enc = nn.Parameter(W_dec.T.clone(memory_format=torch.contiguous_format))
        self.b_dec = nn.Parameter(torch.zeros(d_in))

    @abstractmethod
    def encode(self, x: Float[Tensor, "B d_in"]) -> Float[Tensor, "B d_sae"]:
        """Latents of x. In inference mode each row depends on that row of x alone."""

    @abstractmethod
    def loss(self, x: Float[Tensor, "B d_in"], ctx: LossContext) -> LossTerms:
        """Training loss of a batch, in squared units of the scaled activations."""

    @final
    def decode(self, latents: Float[Tensor, "B d_sae"]) -> Float[Tensor, "B d_in"]:
        """x_hat = latents @ W_dec + b_dec."""
        return latents @ self.W_dec + self.b_dec

    @final
    def forward(self, x: Float[Tensor, "B d_in"]) -> Float[Tensor, "B d_in"]:
        """The reconstruction of x."""
        return self.decode(self.encode(x))

    def lr_factors(self) -> dict[str, float]:
        """Parameters whose learning rate differs from the common one: name -> factor."""
        return {}

    def calibrate(self, batches: Iterable[Float[Tensor, "B d_in"]]) -> None:
        """Set what inference needs from training activations, after the last step. Most architectures need nothing."""

    def to_inference(self) -> "SparseAutoencoder":
        """The equivalent SAE to evaluate and export: simplest architecture, decoder norms folded. A copy."""
        return copy.deepcopy(self).eval()

    @torch.no_grad()
    def fold_scale(self, scale: float) -> None:
        """Make an SAE for activations x out of one trained on x * scale: same latents, x_hat in the units of x. In place.

        Encoder weights times `scale`, decoder weights and b_dec divided by it; biases and thresholds of latents stay.
        """
        self.W_enc *= scale
        self.W_dec /= scale
        self.b_dec /= scale

    def saelens_fields(self) -> dict[str, Any]:
        """Fields beyond the common ones that SAELens' cfg.json needs for this architecture."""
        return {}

    def save_pretrained(self, directory: str | Path, metadata: dict[str, Any] | None = None) -> None:
        """Write cfg.json and sae_weights.safetensors, which SAELens' `SAE.load_from_disk` reads. See `saelens.save`."""
        from sae_core import saelens

        saelens.save(self, Path(directory), metadata or {})

    @staticmethod
    def from_pretrained(directory: str | Path) -> "SparseAutoencoder":
        """Load an SAE in inference form from a directory written by `save_pretrained` or by SAELens. See `saelens.load`."""
        from sae_core import saelens

        return saelens.load(Path(directory))


def mse(x_hat: Float[Tensor, "B d_in"], x: Float[Tensor, "B d_in"]) -> Float[Tensor, ""]:
    """Mean over tokens of the squared error summed over d_in: the reconstruction term of every loss here."""
    return (x_hat.to(x.dtype) - x).pow(2).sum() / x.shape[0]


def norm_weighted_l1(latents: Float[Tensor, "B d_sae"], W_dec: Float[Tensor, "d_sae d_in"]) -> Float[Tensor, ""]:
    """Mean over tokens of sum_i latents_i * ||W_dec_i||, for latents that are not negative. The norms get gradients too."""
    return (latents @ W_dec.norm(dim=1).to(latents.dtype)).float().mean()
