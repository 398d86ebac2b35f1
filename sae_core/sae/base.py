"""SparseAutoencoder: what every architecture shares. A concrete class adds `encode` and `loss`, in one file of `architectures/`.

Shape letters: B tokens in the batch, d_in width of the activations, d_sae latents.
Training works in normalised units (`normalization.py`); `fold` moves an SAE to the units of the model.
"""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, final

import torch
from jaxtyping import Bool, Float
from pydantic import ValidationError
from torch import Tensor, nn

from sae_core.config.run import ARCHITECTURES, ArchitectureConfig
from sae_core.errors import ConfigError, border
from sae_core.notebook import table_of
from sae_core.plugins import defining
from sae_core.plugins import load as load_plugins
from sae_core.sae import saelens_files
from sae_core.sae.normalization import Affine, Normalization, layer_norm
from sae_core.sparse.active import ActiveLatents, active_latents
from sae_core.sparse.kernels.choice import sparse_is_faster
from sae_core.sparse.pre_acts import SPARSE_FRACTION, DensePreActs, PreActs, sparse_decode
from sae_core.validation import first_problem

SEARCH_START_NORM = 0.1
"""Norm of the decoder rows until a search has found a better one."""


@dataclass(frozen=True, slots=True)
class LossContext:
    """What a loss may know beyond the batch."""

    sparsity_scale: float | Float[Tensor, ""] = 1.0
    """Factor on sparsity coefficients: rises from 0 to 1 during the sparsity warm-up, then follows the target L0 where there is one."""
    dead: Bool[Tensor, " d_sae"] | None = None
    """Latents inactive for `dead_after_tokens`; None when there are none."""
    progress: float = 1.0
    """Fraction of the run's steps that has passed, for schedules inside a loss; 1 is the end, where they have their final values."""
    target: Float[Tensor, "B d_out"] | None = None
    """What a transcoder reconstructs, in the units of training; None: the batch itself."""


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
    def of(cls, terms: dict[str, Tensor], latents: Float[Tensor, "*E"], pre_acts: PreActs | None = None) -> "LossTerms":
        """Sum the terms; read sparsity off the latents.

        Args:
            latents: (B, d_sae), or one per value of `pre_acts` where that is given.
        """
        return cls(torch.stack(list(terms.values())).sum(), terms, *(pre_acts or DensePreActs(latents)).sparsity(latents))


@dataclass(frozen=True, slots=True)
class StepMemory:
    """What a training step has in memory at its peak, in float32 tensors, beside what its run keeps. Measured: docs/performance.md."""

    latents: float = 8.0
    """Tensors of shape (B, d_sae)."""
    latents_in_bfloat16: float = 8.0
    """The same where training autocasts."""
    inputs: float = 4.0
    """Tensors of shape (B, d_in)."""
    weights: float = 1.0
    """Tensors of the size of all parameters: their gradients, and what is copied of them."""
    listed_latents: float = 0.0
    """Latents per token that are listed (`sparse.active`), instead of standing in a matrix."""


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
    layer_norm: bool = False
    """Whether activations are layer-normed before `encode` and reconstructions brought back after `decode`. Not while training: there
    the stream has done it."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for base in cls.__mro__[1:]:
            if "Config" in base.__dict__:  # concrete: abstract bases only annotate it
                raise TypeError(
                    f"SAE classes must be abstract or final, but {cls.__name__} subclasses {base.__name__}. Share code in an abstract base."
                )
        for name in ("decode", "reconstruct", "forward"):
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
            _draw_rows(W_dec, config, generator)
        self.W_dec = nn.Parameter(W_dec)
        rows = W_dec if config.encoder_init == "transpose" or W_dec.is_meta else _draw_rows(torch.empty_like(W_dec), config, generator)
        # (d_in, d_sae), but latent by latent in memory, like W_dec: sparse gradients are sums of rows.
        self.W_enc = nn.Parameter(rows.clone().T)
        self.b_dec = nn.Parameter(torch.zeros(d_in))

    def extra_repr(self) -> str:
        """Sizes, and the fields of the config that are not its defaults: what `repr` shows."""
        fields = {"d_in": self.d_in, "d_sae": self.d_sae, **self.config.model_dump(exclude_defaults=True, exclude={"architecture"})}
        return ", ".join(f"{name}={value!r}" for name, value in fields.items())

    def _repr_html_(self) -> str:
        facts = {
            "d_in": f"{self.d_in:,}",
            "d_sae": f"{self.d_sae:,}",
            "parameters": f"{sum(parameter.numel() for parameter in self.parameters()):,}",
            "form": "training" if self.training else "inference",
            "activations": "layer-normed first" if self.layer_norm else "",
            **self.config.model_dump(exclude_defaults=True, exclude={"architecture", "d_sae"}),
        }
        return table_of(f"{type(self).__name__} SAE ({self.config.architecture})", facts)

    @abstractmethod
    def encode(self, x: Float[Tensor, "B d_in"]) -> Float[Tensor, "B d_sae"]:
        """Latents of x. In inference mode each row depends on that row of x alone.

        Where `layer_norm` is set, x is what `normalization.layer_norm` makes of an activation; `reconstruct` takes activations as they are.
        """

    @abstractmethod
    def loss(self, x: Float[Tensor, "B d_in"], ctx: LossContext) -> LossTerms:
        """Training loss of a batch, in squared units of the scaled activations."""

    @final
    def decode(self, latents: Float[Tensor, "B d_sae"]) -> Float[Tensor, "B d_in"]:
        """x_hat = latents @ W_dec + b_dec."""
        return latents @ self.W_dec + self.b_dec

    @final
    def check_finite(self) -> None:
        """Make sure that no weight is NaN or infinite: kernels pass over entries that are not numbers, so that outputs need not show it.

        Raises:
            ConfigError: with every tensor that is not finite.
        """
        # A sum is a hundred times as fast to make, and finite only where every number is.
        suspect = {name: tensor for name, tensor in self.state_dict().items() if not bool(tensor.sum().isfinite())}
        broken = {name: count for name, tensor in suspect.items() if (count := int((~tensor.isfinite()).sum()))}
        if broken:
            raise ConfigError(
                f"weights of an SAE must be finite, but got {broken} numbers that are not in one of architecture "
                f"{self.config.architecture!r}. Train it again, with a lower learning rate if training left it so."
            )

    @final
    def forward(self, x: Float[Tensor, "B d_in"]) -> Float[Tensor, "B d_in"]:
        """The reconstruction of x."""
        return self.reconstruct(x)[1]

    @final
    def reconstruct(self, x: Float[Tensor, "B d_in"]) -> tuple[Float[Tensor, "B d_sae"], Float[Tensor, "B d_in"]]:
        """Latents and reconstruction of x, in the units of x, whether or not tokens are layer-normed on the way."""
        y, in_units_of_x = self._normed(x)
        latents = self.encode(y)
        return latents, in_units_of_x(self.decode(latents))

    @final
    @torch.no_grad()
    def reconstruct_sparse(self, x: Float[Tensor, "B d_in"]) -> tuple[ActiveLatents, Float[Tensor, " N"], Float[Tensor, "B d_in"]]:
        """As `reconstruct`, with a list of the latents that are not 0 in place of all; they are decoded from it where that is faster.

        Returns:
            The active latents, how much of its row of W_dec each adds to the reconstruction, and the reconstruction.
        """
        y, in_units_of_x = self._normed(x)
        if not sparse_is_faster(x):
            latents = self.encode(y)
            active, values = active_latents(latents)
            return active, self._added(x, active, values), in_units_of_x(self.decode(latents))
        active, values = self.encode_sparse(y)
        if values.numel() <= SPARSE_FRACTION * len(x) * self.d_sae:
            x_hat = sparse_decode(values, self.W_dec, active) + self.b_dec
        else:
            x_hat = self.decode(active.dense(values))
        return active, self._added(x, active, values), in_units_of_x(x_hat)

    def _added(self, x: Float[Tensor, "B d_in"], active: ActiveLatents, values: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
        """Latents in the units of x."""
        return values * layer_norm(x.to(self.W_dec.dtype))[2].squeeze(1).index_select(0, active.tokens) if self.layer_norm else values

    @final
    @torch.no_grad()
    def active(self, x: Float[Tensor, "B d_in"]) -> tuple[ActiveLatents, Float[Tensor, " N"]]:
        """The latents of activations x that are not 0, and their values; tokens are layer-normed where the SAE is for that."""
        y, _ = self._normed(x)
        return self.encode_sparse(y) if sparse_is_faster(x) else active_latents(self.encode(y))

    def encode_sparse(self, x: Float[Tensor, "B d_in"]) -> tuple[ActiveLatents, Float[Tensor, " N"]]:
        """The latents of `encode` that are not 0, and where. Architectures that find them without the others override this."""
        return active_latents(self.encode(x))

    def _normed(self, x: Float[Tensor, "B d_in"]) -> tuple[Float[Tensor, "B d_in"], Callable[[Tensor], Tensor]]:
        """What `encode` takes for activations x, and what brings reconstructions of that back to the units of x."""
        x = x.to(self.W_dec.dtype)
        if not self.layer_norm:
            return x, lambda y_hat: y_hat
        y, mean, std = layer_norm(x)
        return y, lambda y_hat: y_hat * std + mean

    def initial_values(self) -> dict[str, Float[Tensor, " d_sae"]]:
        """Where the parameters with one number a latent (b_enc, thresholds, ...) start: what a resampled latent gets again.

        Read off a new SAE, so that an architecture needs to say nothing.
        """
        fresh = type(self)(self.config, 1, generator=torch.Generator())  # of width 1, so that no other parameter has this shape
        values = {name: parameter.detach() for name, parameter in fresh.named_parameters() if name != "b_dec"}
        return {name: value.to(self.W_dec.device) for name, value in values.items() if value.shape == (self.d_sae,)}

    @classmethod
    def step_memory(cls, config: ArchitectureConfig, d_in: int) -> StepMemory:
        """What a training step takes, so that groups fit into memory. The default is more than any architecture here needs."""
        return StepMemory()

    @classmethod
    def parameter_names(cls) -> tuple[str, ...]:
        """Names of the parameters, the keys of `lr_factors`. They do not depend on the config."""
        with torch.device("meta"):
            return tuple(name for name, _ in cls(cls.Config.example(8, 16), 8).named_parameters())

    def lr_factors(self) -> dict[str, float]:
        """Parameters whose learning rate differs from the common one: name -> factor."""
        return {}

    def calibrate(self, batches: Iterable[Float[Tensor, "B d_in"]], *, autocast: bool = False) -> None:
        """Set what inference needs from training activations, after the last step. Most architectures need nothing.

        Args:
            autocast: multiply in bfloat16, as in training where it was asked for.
        """

    def to_inference(self) -> "SparseAutoencoder":
        """The equivalent SAE to evaluate and export, of the architecture `saelens_architecture` where there is one. A copy."""
        if self.saelens_architecture in (None, self.config.architecture):
            return copy.deepcopy(self).eval()
        cls = ARCHITECTURES[self.saelens_architecture]
        sae: SparseAutoencoder = cls(cls.Config(d_sae=self.d_sae), self.d_in)
        sae.load_state_dict(self.inference_weights())
        return sae.to(self.W_dec.device).eval()

    def inference_weights(self) -> dict[str, Tensor]:
        """Weights of the inference form, where that is of another architecture."""
        return self.state_dict()

    @torch.no_grad()
    def fold(self, normalization: Normalization) -> None:
        """Make an SAE for activations x out of one trained on y = normalization(x): same latents, x_hat in the units of x. In place.

        Affine, y = (x - mean) @ M: W_enc <- M @ W_enc, W_dec <- W_dec @ M^-1, b_dec <- b_dec @ M^-1 + mean; biases and thresholds of
        latents stay. Layer norm is another map for each token, which no weights do: it stays with the SAE at run time.
        """
        assert not self.layer_norm, "layer norm comes first of all: nothing can be folded in after it"
        if not isinstance(normalization, Affine):
            self.layer_norm = True
            return
        self.W_enc.copy_(normalization.map_encoder(self.W_enc))
        self.W_dec.copy_(normalization.map_decoder(self.W_dec))
        self.b_dec.copy_(normalization.map_decoder(self.b_dec[None])[0])
        if normalization.mean is not None:
            self.b_dec += normalization.mean

    def saelens_fields(self) -> dict[str, Any]:
        """Fields beyond the common ones that SAELens' cfg.json needs for this architecture."""
        return {}

    def save_pretrained(self, directory: str | Path, metadata: dict[str, Any] | None = None) -> None:
        """Write cfg.json and sae_weights.safetensors, which SAELens' `SAE.load_from_disk` reads; it needs to apply nothing more.

        Args:
            metadata: `model_name`, `hook_name`, `context_size`, ... and anything else worth keeping.

        Raises:
            ConfigError: the SAE is in a training form that SAELens does not know, or a weight is not finite.
        """
        architecture = self.saelens_architecture or self.config.architecture
        if architecture != self.config.architecture:
            raise ConfigError(
                f"an SAE must be in inference form to be saved, but got architecture={self.config.architecture!r}. "
                "Save what its `to_inference()` returns."
            )
        self.check_finite()
        normalize_activations = "layer_norm" if self.layer_norm else "none"
        cfg = {"architecture": architecture, "d_in": self.d_in, "d_sae": self.d_sae, "normalize_activations": normalize_activations}
        origin = [plugin.location for plugin in defining([type(self)])]
        metadata = {**(metadata or {}), **({"plugins": origin} if origin else {})}
        saelens_files.write(Path(directory), {**cfg, **self.saelens_fields()}, self.state_dict(), metadata)

    @staticmethod
    def from_pretrained(directory: str | Path, plugins: Iterable[str] = ()) -> "SparseAutoencoder":
        """Load an SAE in inference form from a directory written by `save_pretrained` or by SAELens of any version.

        Args:
            plugins: modules or files to import first. Those that cfg.json names are imported where its architecture is unknown.

        Raises:
            ConfigError: files are missing, damaged, or say something that is not known here. Nothing else is raised.
        """
        with border(
            f"an SAE must be a directory with {saelens_files.CFG} and {saelens_files.WEIGHTS} as SAELens writes them, but got "
            f"{saelens_files.shown(str(directory))}",
            "Correct the path, put back a copy (`git lfs pull`, where files are pointers of Git LFS), or export the SAE again.",
        ):
            load_plugins([*plugins, *saelens_files.plugins_needed(Path(directory), ARCHITECTURES)])
            ours = {name: cls.Config.model_fields for name, cls in ARCHITECTURES.items() if cls.saelens_architecture is None}
            stored = saelens_files.read(Path(directory), ours)
            cls = ARCHITECTURES[stored.architecture]
            try:
                config = cls.Config.model_validate(stored.fields)
            except ValidationError as error:
                raise ConfigError(f"cfg.json of an SAE must be valid, but in {str(directory)!r} {first_problem(error)}.") from error
            with torch.device("meta"):
                sae: SparseAutoencoder = cls(config, stored.d_in)
            wanted, found = ({name: list(tensor.shape) for name, tensor in some.items()} for some in (sae.state_dict(), stored.tensors))
            if found != wanted:
                raise ConfigError(
                    f"tensors of an SAE of architecture {stored.architecture!r} must have the shapes {wanted}, but got {found} in "
                    f"{str(directory)!r}. Put back a copy, or export the SAE again."
                )
            sae.load_state_dict(stored.tensors, assign=True)
            sae.layer_norm = stored.layer_norm
            sae.float().eval().check_finite()
            return sae


def _draw_rows(rows: Float[Tensor, "d_sae d_in"], config: ArchitectureConfig, generator: torch.Generator | None) -> Tensor:
    """kaiming_uniform_, then every row rescaled: SAELens' initialisation. In place."""
    norm = SEARCH_START_NORM if config.decoder_init_norm == "search" else config.decoder_init_norm
    bound = math.sqrt(6 / rows.shape[1])
    rows.uniform_(-bound, bound, generator=generator)
    rows *= norm / rows.norm(dim=1, keepdim=True)
    return rows
