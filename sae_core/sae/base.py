"""SparseAutoencoder: what every architecture shares. A concrete class adds `encode` and `loss`, in one file of `architectures/`.

A transcoder is one with a width of its output, `d_out`: it reads the activations of one place and reconstructs those of another.

Shape letters: B tokens in the batch, d_in width of the activations, d_out of what is reconstructed (d_in, for an SAE), d_sae latents.
Training works in normalised units (`normalization.py`); `fold` moves an SAE to the units of the model.
"""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from pydantic import ValidationError
from torch import Tensor, nn

from sae_core.config.run import ARCHITECTURES, ArchitectureConfig
from sae_core.errors import ConfigError, border
from sae_core.layout import CFG, WEIGHTS
from sae_core.notebook import table_of
from sae_core.plugins import defining
from sae_core.sae import formats, saelens_files
from sae_core.sae.loss import LossContext, LossTerms, StepMemory
from sae_core.sae.normalization import Affine, Normalization, PairNormalization, layer_norm
from sae_core.sparse.active import ActiveLatents, active_latents
from sae_core.sparse.kernels.choice import sparse_is_faster
from sae_core.sparse.pre_acts import SPARSE_FRACTION, sparse_decode
from sae_core.validation import first_problem

SEARCH_START_NORM = 0.1
"""Norm of the decoder rows until a search has found a better one."""


class SparseAutoencoder(nn.Module, ABC):
    """A sparse autoencoder, x -> latents -> x_hat; or a transcoder, x -> latents -> y_hat, where `d_out` is given.

    `self.training` chooses between the training and the inference behaviour of `encode`; there are no twin classes.
    A transcoder subtracts nothing from x, and b_dec belongs to the output alone (Dunefsky et al. 2024, arXiv:2406.11944; as in SAELens and
    circuit-tracer). With `skip_connection` it adds x @ W_skip.T to the output (Paulo et al. 2025, arXiv:2501.18823).

    Args:
        config: the architecture's own config.
        d_in: width of the activations.
        d_out: width of what is reconstructed from them; None for an SAE, which reconstructs x.
        generator: decides the initial weights. On the `meta` device nothing is drawn.
    """

    Config: ClassVar[type[ArchitectureConfig]]
    relative_cost: ClassVar[float] = 1.0
    """Time of a training step relative to a standard SAE of the same size; used to balance groups."""
    straight_through: ClassVar[frozenset[str]] = frozenset()
    """Parameters whose gradient is an estimate, not the derivative of the loss; the contract tests leave them out."""
    saelens_architecture: ClassVar[str | None] = None
    """Name under which SAELens loads the inference form; None when only we can."""
    transcodes: ClassVar[bool] = False
    """Whether it can be a transcoder: its pre-activations are (x - input_bias) @ W_enc + b_enc, its loss compares `output_offset(x)` plus
    what latents add with `ctx.target_of(x)`, and its constructor takes `d_out`."""

    W_enc: nn.Parameter
    W_dec: nn.Parameter
    b_dec: nn.Parameter
    b_enc: nn.Parameter
    """[d_sae]; only some architectures have it, among them all that transcode."""
    W_skip: nn.Parameter | None
    """[d_out, d_in]; None but for transcoders with a skip connection."""
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

    def __init__(
        self, config: ArchitectureConfig, d_in: int, d_out: int | None = None, *, generator: torch.Generator | None = None
    ) -> None:
        self.check_d_out(config, d_out)
        super().__init__()
        self.config = config
        self.d_in = d_in
        self.d_out = d_out
        self.d_sae = config.d_sae
        width = d_in if d_out is None else d_out
        W_dec = _drawn_rows(self.d_sae, width, config, generator)
        self.W_dec = nn.Parameter(W_dec)
        is_transpose = d_out is None and config.encoder_init == "transpose"
        rows = W_dec.clone() if is_transpose else _drawn_rows(self.d_sae, d_in, config, generator)
        # (d_in, d_sae), but latent by latent in memory, like W_dec: sparse gradients are sums of rows.
        self.W_enc = nn.Parameter(rows.T)
        self.b_dec = nn.Parameter(torch.zeros(width))
        self.register_parameter("W_skip", nn.Parameter(torch.zeros(width, d_in)) if config.skips else None)

    @classmethod
    def check_d_out(cls, config: ArchitectureConfig, d_out: int | None) -> None:
        """Make sure that this architecture can be what is asked for, an SAE (`d_out` is None) or a transcoder.

        Raises:
            ConfigError: a transcoder of an architecture that is for SAEs alone, or a skip connection in an SAE.
        """
        if d_out is not None and not cls.transcodes:
            able = [name for name, other in ARCHITECTURES.items() if other.transcodes]
            rule = f"`architecture` of a transcoder must be one of {able}, but got {config.architecture!r}"
            raise ConfigError(f"{rule}. Choose one of them, or leave out `hook_out`, to train SAEs.")
        if d_out is None and config.skips:
            rule = "`skip_connection` must be left to transcoders, but got skip_connection=True for an SAE, which would learn to copy"
            raise ConfigError(f"{rule}. Leave it out, or give `hook_out`, where a transcoder writes.")

    @property
    def sizes(self) -> tuple[int, ...]:
        """What the constructor takes beside the config: d_in, and d_out where it is a transcoder."""
        return (self.d_in,) if self.d_out is None else (self.d_in, self.d_out)

    @property
    def input_bias(self) -> Float[Tensor, " d_in"]:
        """What is subtracted from x before W_enc: b_dec, and zeros in a transcoder."""
        return self.b_dec if self.d_out is None else self.W_enc.new_zeros(self.d_in)

    def output_offset(self, x: Float[Tensor, "B d_in"]) -> Float[Tensor, "*B d_out"]:
        """What is reconstructed of x without any latent: b_dec, and x @ W_skip.T where there is a skip connection."""
        return self.b_dec if self.W_skip is None else x @ self.W_skip.T + self.b_dec

    def extra_repr(self) -> str:
        """Sizes, and the fields of the config that are not its defaults: what `repr` shows."""
        sizes = dict(zip(("d_in", "d_out"), self.sizes, strict=False))
        fields = {**sizes, "d_sae": self.d_sae, **self.config.model_dump(exclude_defaults=True, exclude={"architecture"})}
        return ", ".join(f"{name}={value!r}" for name, value in fields.items())

    def _repr_html_(self) -> str:
        facts = {
            "d_in": f"{self.d_in:,}",
            "d_out": "" if self.d_out is None else f"{self.d_out:,}",
            "d_sae": f"{self.d_sae:,}",
            "parameters": f"{sum(parameter.numel() for parameter in self.parameters()):,}",
            "form": "training" if self.training else "inference",
            "activations": "layer-normed first" if self.layer_norm else "",
            **self.config.model_dump(exclude_defaults=True, exclude={"architecture", "d_sae"}),
        }
        kind = "SAE" if self.d_out is None else "transcoder"
        return table_of(f"{type(self).__name__} {kind} ({self.config.architecture})", facts)

    @abstractmethod
    def encode(self, x: Float[Tensor, "B d_in"]) -> Float[Tensor, "B d_sae"]:
        """Latents of x. In inference mode each row depends on that row of x alone.

        Where `layer_norm` is set, x is what `normalization.layer_norm` makes of an activation; `reconstruct` takes activations as they are.
        """

    @abstractmethod
    def loss(self, x: Float[Tensor, "B d_in"], ctx: LossContext) -> LossTerms:
        """Training loss of a batch, in squared units of the scaled activations."""

    @final
    def decode(self, latents: Float[Tensor, "B d_sae"]) -> Float[Tensor, "B d_out"]:
        """latents @ W_dec + b_dec: the reconstruction, but for what a skip connection adds (`reconstruct`)."""
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
    def forward(self, x: Float[Tensor, "B d_in"]) -> Float[Tensor, "B d_out"]:
        """The reconstruction of x, or what a transcoder makes of it."""
        return self.reconstruct(x)[1]

    @final
    def reconstruct(self, x: Float[Tensor, "B d_in"]) -> tuple[Float[Tensor, "B d_sae"], Float[Tensor, "B d_out"]]:
        """Latents and reconstruction of x, in the units of x, whether or not tokens are layer-normed on the way.

        Of a transcoder: latents and output, the skip connection's part too, in the units of what it reconstructs.
        """
        y, in_units_of_x = self._normed(x)
        latents = self.encode(y)
        return latents, in_units_of_x(self._with_skip(y, self.decode(latents)))

    def _with_skip(self, x: Float[Tensor, "B d_in"], decoded: Float[Tensor, "B d_out"]) -> Float[Tensor, "B d_out"]:
        return decoded if self.W_skip is None else decoded + x @ self.W_skip.T

    @final
    @torch.no_grad()
    def reconstruct_sparse(self, x: Float[Tensor, "B d_in"]) -> tuple[ActiveLatents, Float[Tensor, " N"], Float[Tensor, "B d_out"]]:
        """As `reconstruct`, with a list of the latents that are not 0 in place of all; they are decoded from it where that is faster.

        Returns:
            The active latents, how much of its row of W_dec each adds to the reconstruction, and the reconstruction.
        """
        y, in_units_of_x = self._normed(x)
        if not sparse_is_faster(x):
            latents = self.encode(y)
            active, values = active_latents(latents)
            return active, self._added(x, active, values), in_units_of_x(self._with_skip(y, self.decode(latents)))
        active, values = self.encode_sparse(y)
        if values.numel() <= SPARSE_FRACTION * len(x) * self.d_sae:
            x_hat = sparse_decode(values, self.W_dec, active) + self.b_dec
        else:
            x_hat = self.decode(active.dense(values))
        return active, self._added(x, active, values), in_units_of_x(self._with_skip(y, x_hat))

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
        fresh = type(self)(self.config, *(1 for _ in self.sizes), generator=torch.Generator())  # so that no matrix has this shape
        values = {name: parameter.detach() for name, parameter in fresh.named_parameters() if name != "b_dec"}
        return {name: value.to(self.W_dec.device) for name, value in values.items() if value.shape == (self.d_sae,)}

    @classmethod
    def step_memory(cls, config: ArchitectureConfig, d_in: int) -> StepMemory:
        """What a training step takes, so that groups fit into memory. The default is more than any architecture here needs."""
        return StepMemory()

    @classmethod
    def parameter_names(cls, config: ArchitectureConfig) -> tuple[str, ...]:
        """Names of the parameters, the keys of `lr_factors`. They depend on nothing but whether there is a skip connection."""
        with torch.device("meta"):
            return tuple(name for name, _ in cls(config, 8, *([8] if config.skips else [])).named_parameters())

    def lr_factors(self) -> dict[str, float]:
        """Parameters whose learning rate differs from the common one: name -> factor."""
        return {}

    def calibrate(self, batches: Iterable[Float[Tensor, "B d_in"]], *, autocast: bool = False) -> None:
        """Set what inference needs from training activations, after the last step. Most architectures need nothing.

        Args:
            autocast: multiply in bfloat16, as in training where it was asked for.
        """

    @property
    def inference_architecture(self) -> str:
        """Architecture, one of those registered here, of the inference form."""
        return self.saelens_architecture or self.config.architecture

    def to_inference(self) -> "SparseAutoencoder":
        """The equivalent SAE to evaluate and export, of the architecture `inference_architecture`. A copy."""
        if self.inference_architecture == self.config.architecture:
            return copy.deepcopy(self).eval()
        cls = ARCHITECTURES[self.inference_architecture]
        skip = {"skip_connection": True} if self.config.skips else {}
        sae: SparseAutoencoder = cls(cls.Config(d_sae=self.d_sae, **skip), *self.sizes)
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
        A transcoder has an affine map at either end (`PairNormalization`): W_enc takes the input's, W_dec and b_dec the target's, W_skip
        both. It subtracts nothing from x, so that a mean of the input goes into b_enc, and, past the latents, into b_dec.
        """
        assert not self.layer_norm, "layer norm comes first of all: nothing can be folded in after it"
        assert (self.d_out is not None) == isinstance(normalization, PairNormalization), "pairs are for transcoders, and for them alone"
        if isinstance(normalization, PairNormalization):
            read, written = normalization.input, normalization.target
        elif isinstance(normalization, Affine):
            read = written = normalization
        else:
            self.layer_norm = True
            return
        self.W_enc.copy_(read.map_encoder(self.W_enc))
        self.W_dec.copy_(written.map_decoder(self.W_dec))
        self.b_dec.copy_(written.map_decoder(self.b_dec[None])[0])
        if self.W_skip is not None:
            self.W_skip.copy_(written.map_decoder(read.map_encoder(self.W_skip.T)).T)
        if self.d_out is not None and read.mean is not None:
            self.b_enc -= (read.mean.double() @ self.W_enc.double()).float()
            if self.W_skip is not None:
                self.b_dec -= (self.W_skip.double() @ read.mean.double()).float()
        if written.mean is not None:
            self.b_dec += written.mean

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
        architecture = self.inference_architecture
        if architecture != self.config.architecture:
            raise ConfigError(
                f"an SAE must be in inference form to be saved, but got architecture={self.config.architecture!r}. "
                "Save what its `to_inference()` returns."
            )
        self.check_finite()
        cfg = saelens_files.cfg_of(architecture, self.saelens_fields(), self.d_in, self.d_out, d_sae=self.d_sae, skips=self.config.skips)
        cfg["normalize_activations"] = "layer_norm" if self.layer_norm else "none"
        plugins = [plugin.location for plugin in defining([type(self)])]
        metadata = {**(metadata or {}), **({"plugins": plugins} if plugins else {})}
        saelens_files.write(Path(directory), cfg, self.state_dict(), metadata)

    @staticmethod
    def from_pretrained(directory: str | Path, plugins: Iterable[str] = ()) -> "SparseAutoencoder":
        """Load an SAE in inference form from a directory written by `save_pretrained`, by SAELens of any version, by
        dictionary_learning or sparsify, or of Gemma Scope 1 or 2.

        Args:
            plugins: modules or files to import first. Those that cfg.json names are imported where its architecture is unknown.

        Raises:
            ConfigError: files are missing, damaged, or say something that is not known here. Nothing else is raised.
        """
        with border(
            f"an SAE must be a directory with {CFG} and {WEIGHTS} as SAELens writes them, or with {', '.join(formats.READERS)} and what "
            f"belongs to it, but got {saelens_files.shown(str(directory))}",
            "Correct the path, put back a copy (`git lfs pull`, where files are pointers of Git LFS), or export the SAE again.",
        ):
            stored = formats.read(Path(directory), plugins)
            cls = ARCHITECTURES[stored.architecture]
            try:
                config = cls.Config.model_validate(stored.fields)
            except ValidationError as error:
                raise ConfigError(f"the config of an SAE must be valid, but in {str(directory)!r} {first_problem(error)}.") from error
            with torch.device("meta"):
                sae: SparseAutoencoder = cls(config, stored.d_in, *([] if stored.d_out is None else [stored.d_out]))
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


def _drawn_rows(n: int, width: int, config: ArchitectureConfig, generator: torch.Generator | None) -> Float[Tensor, "n width"]:
    """kaiming_uniform_, then every row rescaled: SAELens' initialisation. On the meta device there is nothing to draw."""
    rows = torch.empty(n, width)
    if rows.is_meta:
        return rows
    norm = SEARCH_START_NORM if config.decoder_init_norm == "search" else config.decoder_init_norm
    bound = math.sqrt(6 / rows.shape[1])
    rows.uniform_(-bound, bound, generator=generator)
    rows *= norm / rows.norm(dim=1, keepdim=True)
    return rows
