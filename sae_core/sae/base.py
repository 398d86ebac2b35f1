"""SparseAutoencoder: what every architecture shares. A concrete class adds `encode` and `loss`, in one file of `architectures/`.

A transcoder is one with a width of its output, `d_out`: it reads the activations of one place and reconstructs those of another.

Shape letters: B tokens in the batch, d_in width of the activations, d_out of what is reconstructed (d_in, for an SAE), d_sae latents.
Training works in normalised units (`normalization.py`); `fold` moves an SAE to the units of the model.
"""

import copy
import hashlib
import json
from abc import abstractmethod
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from pydantic import ValidationError
from torch import Tensor

from sae_core.config.run import ARCHITECTURES, ArchitectureConfig, TranscoderConfig
from sae_core.errors import ConfigError, border
from sae_core.layout import CFG, PARTS, WEIGHTS
from sae_core.plugins import defining
from sae_core.sae import formats, hub, saelens_files
from sae_core.sae.loss import LossContext, LossTerms, StepMemory
from sae_core.sae.normalization import layer_norm
from sae_core.sae.weights import SAEWeights
from sae_core.sparse.active import ActiveLatents, active_latents
from sae_core.sparse.kernels.choice import sparse_is_faster
from sae_core.sparse.pre_acts import SPARSE_FRACTION, sparse_decode
from sae_core.validation import first_problem


class SparseAutoencoder(SAEWeights):
    """A sparse autoencoder, x -> latents -> x_hat; or a transcoder, x -> latents -> y_hat, where `d_out` is given.

    `self.training` chooses between the training and the inference behaviour of `encode`; there are no twin classes.
    A transcoder subtracts nothing from x, and b_dec belongs to the output alone (Dunefsky et al. 2024, arXiv:2406.11944; as in SAELens and
    circuit-tracer). With `skip_connection` it adds x @ W_skip.T to the output (Paulo et al. 2025, arXiv:2501.18823).
    Its parameters, how they start, and `fold`: `SAEWeights`.
    """

    Config: ClassVar[type[ArchitectureConfig]]
    relative_cost: ClassVar[float] = 1.0
    """Time of a training step relative to a standard SAE of the same size; used to balance groups."""
    straight_through: ClassVar[frozenset[str]] = frozenset()
    """Parameters whose gradient is an estimate, not the derivative of the loss; the contract tests leave them out."""
    saelens_architecture: ClassVar[str | None] = None
    """Name under which SAELens loads the inference form; None when only we can."""

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

    @classmethod
    def step_memory(cls, config: ArchitectureConfig, d_in: int) -> StepMemory:
        """What a training step takes, so that groups fit into memory. The default is more than any architecture here needs."""
        return StepMemory()

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

    def forms(self) -> "dict[str, SparseAutoencoder]":
        """Further inference forms of a trained SAE, as with a smaller k, which are measured beside that of `to_inference`: their names, of
        letters, digits and "-", and copies. Most architectures have none."""
        return {}

    def inference_weights(self) -> dict[str, Tensor]:
        """Weights of the inference form, where that is of another architecture."""
        return self.state_dict()

    def saelens_fields(self) -> dict[str, Any]:
        """Fields beyond the common ones that cfg.json needs for this architecture. Of one that SAELens does not know, all of its own, since
        each may decide what it computes."""
        if self.saelens_architecture is not None:
            return {}
        common = {*ArchitectureConfig.model_fields, *TranscoderConfig.model_fields}
        return {name: value for name, value in self.config.model_dump(mode="json").items() if name not in common}

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
        own = {"plugins": plugins, PARTS: dict(self.parts)}
        metadata = {**(metadata or {}), **{name: value for name, value in own.items() if value}}
        saelens_files.write(Path(directory), cfg, self.state_dict(), metadata)

    def content_hash(self) -> str:
        """Checksum of all that it computes with: the same for every format that it may be read from."""
        content = hashlib.sha256(json.dumps([self.config.model_dump(mode="json"), self.sizes, self.layer_norm], sort_keys=True).encode())
        for name, tensor in sorted(self.state_dict().items()):
            content.update(f"{name} {list(tensor.shape)}".encode() + tensor.contiguous().numpy().tobytes())
        return content.hexdigest()

    @staticmethod
    def from_pretrained(directory: str | Path, plugins: Iterable[str] = ()) -> "SparseAutoencoder":
        """Load an SAE in inference form, written by `save_pretrained`, by SAELens of any version, by dictionary_learning or sparsify, or
        of Gemma Scope 1 or 2.

        Args:
            directory: its directory, or `hub:user/repo[/folder][@revision]` on the Hugging Face Hub.
            plugins: modules or files to import first. Those that cfg.json names are imported where its architecture is unknown.

        Raises:
            ConfigError: files are missing, damaged, or say something that is not known here. Nothing else is raised.
        """
        with border(
            f"an SAE must be a directory with {CFG} and {WEIGHTS} as SAELens writes them, or with {', '.join(formats.READERS)} and what "
            f"belongs to it, but got {saelens_files.shown(str(directory))}",
            "Correct the path, put back a copy (`git lfs pull`, where files are pointers of Git LFS), or export the SAE again.",
        ):
            directory = hub.located(str(directory)) if str(directory).startswith(hub.PREFIX) else Path(directory)
            stored = formats.read(directory, plugins)
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
            sae.layer_norm, sae.parts = stored.layer_norm, stored.parts
            sae.float().eval().check_finite()
            return sae
