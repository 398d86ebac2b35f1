"""An SAE as SAEBench 0.6 wants its custom ones: attributes of the weights, `encode` and `decode` of any shape, and a `cfg`.

SAEBench compares latents with one another, so that their scale counts, and only warns of decoder rows whose norm is not 1. Here latents
are multiplied by the norms n of their decoder rows, which are divided by them: the same reconstruction, for every architecture.
"""

import dataclasses
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sae_core.errors import ConfigError
from sae_core.files import read_json
from sae_core.layout import CFG
from sae_core.sae.base import SparseAutoencoder
from sae_core.sae.hub import located


@dataclasses.dataclass
class SAEBenchConfig:
    """What SAEBench reads of a custom SAE. It sets further attributes, so this is not frozen."""

    model_name: str
    """Language model, as TransformerLens calls it."""
    d_in: int
    d_sae: int
    hook_name: str
    hook_layer: int
    context_size: int | None
    architecture: str
    dtype: str
    """E.g. "float32"."""
    prepend_bos: bool
    hook_head_index: int | None = None
    normalize_activations: str = "none"
    model_from_pretrained_kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)
    dataset_trust_remote_code: bool = False
    seqpos_slice: tuple[int | None, ...] = (None,)
    exclude_special_tokens: bool = False

    def __post_init__(self) -> None:
        self.metadata = SimpleNamespace(**dataclasses.asdict(self))
        """As SAELens 6 has it, for its store of activations. No field: result files have each value once."""

    def to_dict(self) -> dict[str, Any]:
        """What result files keep."""
        return dataclasses.asdict(self)


class SAEBenchSAE(nn.Module):
    """An SAE whose decoder rows have norm 1. It computes in float32, whatever `dtype` SAEBench asks for: that is of what goes in and out.

    Shape letters: "..." any, as SAEBench passes [batch, position] or [token].
    """

    def __init__(self, sae: SparseAutoencoder, cfg: SAEBenchConfig) -> None:
        super().__init__()
        self.sae = sae.eval().requires_grad_(False)
        self.cfg = cfg
        self.dtype = sae.W_dec.dtype
        norms = sae.W_dec.norm(dim=1)
        self.norms: Tensor
        self.register_buffer("norms", torch.where(norms > 0, norms, 1.0))

    @property
    def W_enc(self) -> Float[Tensor, "d_in d_sae"]:  # noqa: N802  SAEBench reads this name
        """Encoder of the latents that `encode` gives."""
        encoder = self.sae.W_dec.T if self.sae.config.is_tied else self.sae.W_enc
        return (encoder * self.norms).to(self.dtype)

    @property
    def b_enc(self) -> Float[Tensor, " d_sae"]:
        """Bias of their pre-activations; of a gated SAE that of their magnitudes; 0 where encoder and decoder are tied."""
        if self.sae.config.is_tied:
            return torch.zeros_like(self.norms, dtype=self.dtype)
        bias = self.sae.get_parameter("b_mag" if hasattr(self.sae, "b_mag") else "b_enc")
        return (bias * self.norms).to(self.dtype)

    @property
    def W_dec(self) -> Float[Tensor, "d_sae d_in"]:  # noqa: N802  SAEBench reads this name
        """Decoder: rows of norm 1."""
        return (self.sae.W_dec / self.norms[:, None]).to(self.dtype)

    @property
    def b_dec(self) -> Float[Tensor, " d_in"]:
        """What is reconstructed without latents."""
        return self.sae.b_dec.to(self.dtype)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.norms.device

    def to(self, device: Any = None, dtype: torch.dtype | None = None) -> Self:  # type: ignore[override]  # as SAEBench calls it
        """Move the weights to a device, and give and take tensors of another type; either can be left out."""
        if isinstance(device, torch.dtype):
            device, dtype = None, device
        self.dtype = dtype or self.dtype
        self.cfg.dtype = str(self.dtype).removeprefix("torch.")
        return self if device is None else super().to(device)

    @torch.no_grad()
    def encode(self, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_sae"]:
        """Latents, in units of what they add to the reconstruction."""
        latents = self.sae.encode(x.reshape(-1, x.shape[-1]).float()) * self.norms
        return latents.reshape(*x.shape[:-1], -1).to(self.dtype)

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "... d_sae"]) -> Float[Tensor, "... d_in"]:
        """The reconstruction from what `encode` gives."""
        x_hat = self.sae.decode(latents.reshape(-1, latents.shape[-1]).float() / self.norms)
        return x_hat.reshape(*latents.shape[:-1], -1).to(self.dtype)

    def forward(self, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_in"]:
        """The reconstruction."""
        return self.decode(self.encode(x))


def for_saebench(name: str | Path) -> SAEBenchSAE:
    """An exported SAE as an object for SAEBench's `selected_saes`.

    Args:
        name: a directory with cfg.json and weights, or `hub:user/repo/folder`.

    Raises:
        ConfigError: it cannot be read, is a transcoder or crosscoder, layer-norms its input, or does not say its hook point and model.
    """
    directory = located(str(name))
    sae, cfg = SparseAutoencoder.from_pretrained(directory), read_json(directory / CFG)
    metadata = {**(cfg.get("metadata") or {})}
    what = "is a transcoder" if sae.d_out is not None else "is a crosscoder" if sae.parts else ""
    if sae.layer_norm:
        what = "layer-norms tokens, so that latents alone do not say what is reconstructed"
    if what:
        raise ConfigError(
            f"SAEBench takes SAEs that are a function of activations and one of latents, but {str(name)!r} {what}. Name another."
        )
    hook_name = str(metadata.get("hook_name") or "")
    layer = re.search(r"\d+", hook_name)
    if layer is None or not metadata.get("model_name"):
        raise ConfigError(
            f"`metadata` of an SAE for SAEBench must name its model and a hook point with a layer, but got model_name="
            f"{metadata.get('model_name')!r} and hook_name={hook_name!r} in {str(name)!r}. Put them into its cfg.json."
        )
    return SAEBenchSAE(
        sae,
        SAEBenchConfig(
            model_name=str(metadata["model_name"]),
            d_in=sae.d_in,
            d_sae=sae.d_sae,
            hook_name=hook_name,
            hook_layer=int(layer[0]),
            context_size=metadata.get("context_size"),
            architecture=str(cfg.get("architecture")),
            dtype=str(sae.W_dec.dtype).removeprefix("torch."),
            prepend_bos=bool(metadata.get("prepend_bos", True)),
            model_from_pretrained_kwargs=dict(metadata.get("model_from_pretrained_kwargs") or {}),
            exclude_special_tokens=bool(metadata.get("exclude_special_tokens", False)),
        ),
    )
