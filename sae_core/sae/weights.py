"""Weights of an SAE: what an architecture's config makes of them, how they start, and how a normalization is folded into them.

Shape letters: B tokens in the batch, d_in width of the activations, d_out of what is reconstructed (d_in, for an SAE), d_sae latents.
"""

import math
from abc import ABC
from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sae_core.config.run import ARCHITECTURES, ArchitectureConfig
from sae_core.errors import ConfigError
from sae_core.notebook import table_of
from sae_core.sae import constraints
from sae_core.sae.functional import row_norms
from sae_core.sae.normalization import Affine, LayerNorm, Normalization, PairNormalization

SEARCH_START_NORM = 0.1
"""Norm of the decoder rows until a search has found a better one."""


class SAEWeights(nn.Module, ABC):
    """Parameters of an SAE or a transcoder, in its training or its inference form. `SparseAutoencoder` adds what is computed with them.

    Args:
        config: the architecture's own config.
        d_in: width of the activations.
        d_out: width of what is reconstructed from them; None for an SAE, which reconstructs x.
        generator: decides the initial weights. On the `meta` device nothing is drawn.
    """

    transcodes: ClassVar[bool] = False
    """Whether it can be a transcoder: its pre-activations are (x - input_bias) @ W_enc + b_enc, its loss compares `output_offset(x)` plus
    what latents add with `ctx.target_of(x)`, and its constructor takes `d_out`."""

    W_enc: nn.Parameter
    """[d_in, d_sae]; absent where it is the transpose of W_dec (`config.is_tied`)."""
    W_dec: nn.Parameter
    b_dec: nn.Parameter
    b_enc: nn.Parameter
    """[d_sae]; only some architectures have it, among them all that transcode."""
    W_skip: nn.Parameter | None
    """[d_out, d_in]; None but for transcoders with a skip connection."""
    layer_norm: bool = False
    """Whether activations are layer-normed before `encode` and reconstructions brought back after `decode`. Not while training: there
    the stream has done it."""
    parts: Mapping[str, int] = MappingProxyType({})
    """Of a crosscoder: hook point -> width, in the order in which their activations are side by side in x. Empty: x is of one."""

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
        if not config.is_tied:  # latent by latent in memory, like W_dec: sparse gradients are sums of rows
            self.W_enc = nn.Parameter(rows.T)
        self.b_dec = nn.Parameter(torch.zeros(width))
        self.register_parameter("W_skip", nn.Parameter(torch.zeros(width, d_in)) if config.skips else None)
        self.constrain()

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
        if d_out is not None and config.aligned:
            rule = (
                "`aligned` must be left to SAEs, but got aligned=True for a transcoder, whose encoder and decoder are of different spaces"
            )
            raise ConfigError(f"{rule}. Leave it out.")

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

    def decoder_norms(self) -> Float[Tensor, " d_sae"]:
        """||W_dec_i|| of each latent: what sparsity terms and selections weigh it by.

        Of a crosscoder sum_l ||W_dec_i^l||, with a summand for each hook point (Lindsey et al. 2024, "Sparse Crosscoders for Cross-Layer
        Features and Model Diffing"): a latent that writes at few hook points is cheaper than one of the same norm that writes at many.
        """
        if not self.parts:
            return row_norms(self.W_dec)
        return torch.stack([row_norms(rows) for rows in self.W_dec.split(list(self.parts.values()), dim=1)]).sum(dim=0)

    def extra_repr(self) -> str:
        """Sizes, and the fields of the config that are not its defaults: what `repr` shows."""
        sizes = dict(zip(("d_in", "d_out"), self.sizes, strict=False))
        fields = {**sizes, "d_sae": self.d_sae, **self.config.model_dump(exclude_defaults=True, exclude={"architecture"})}
        return ", ".join(f"{name}={value!r}" for name, value in fields.items())

    def _repr_html_(self) -> str:
        facts = {
            "d_in": f"{self.d_in:,}",
            "hook points": ", ".join(f"{name} ({width:,})" for name, width in self.parts.items()),
            "d_out": "" if self.d_out is None else f"{self.d_out:,}",
            "d_sae": f"{self.d_sae:,}",
            "parameters": f"{sum(parameter.numel() for parameter in self.parameters()):,}",
            "form": "training" if self.training else "inference",
            "activations": "layer-normed first" if self.layer_norm else "",
            **self.config.model_dump(exclude_defaults=True, exclude={"architecture", "d_sae"}),
        }
        kind = "transcoder" if self.d_out is not None else "crosscoder" if self.parts else "SAE"
        return table_of(f"{type(self).__name__} {kind} ({self.config.architecture})", facts)

    @final
    def constrain_gradients(self) -> None:
        """Before an optimizer's step: take off gradients what would leave the constraints that the config asks for."""
        decoder = self.W_dec.grad
        if decoder is not None and self.config.unit_rows:
            constraints.project_to_unit_rows(decoder, self.W_dec)
        if decoder is not None and self.config.aligned and (encoder := self.W_enc.grad) is not None:
            constraints.project_to_aligned(encoder.T, decoder, self.W_enc.T, self.W_dec)

    @final
    def constrain(self) -> None:
        """After a step, and whenever weights are set: move them to the nearest that satisfy the constraints."""
        if self.config.unit_rows:
            constraints.restore_unit_rows(self.W_dec)
        if self.config.aligned:
            constraints.restore_aligned(self.W_enc.T, self.W_dec)

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

    def initial_values(self) -> dict[str, Float[Tensor, " d_sae"]]:
        """Where the parameters with one number a latent (b_enc, thresholds, ...) start: what a resampled latent gets again.

        Read off a new SAE, so that an architecture needs to say nothing.
        """
        fresh = type(self)(self.config, *(1 for _ in self.sizes), generator=torch.Generator())  # so that no matrix has this shape
        values = {name: parameter.detach() for name, parameter in fresh.named_parameters() if name != "b_dec"}
        return {name: value.to(self.W_dec.device) for name, value in values.items() if value.shape == (self.d_sae,)}

    @classmethod
    def parameter_names(cls, config: ArchitectureConfig) -> tuple[str, ...]:
        """Names of the parameters, the keys of `lr_factors`. They depend on nothing but whether there is a skip connection."""
        with torch.device("meta"):
            return tuple(name for name, _ in cls(config, 8, *([8] if config.skips else [])).named_parameters())

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
            self.parts = normalization.parts
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

    def unfold(self, normalization: Normalization) -> None:
        """Make an SAE for y = normalization(x) out of one for activations x: the reverse of `fold`. In place."""
        assert self.layer_norm == isinstance(normalization, LayerNorm), "layer norm cannot be undone in weights"
        self.layer_norm = False
        if not isinstance(normalization, LayerNorm):
            self.fold(normalization.inverted())


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
