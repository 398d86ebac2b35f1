"""Normalization of activations: from x, in the units of the model, to y, the units that training works in.

One function per name of `train.normalize_activations` makes it from the scale that gives E||x|| = sqrt(d_in), and from the activations.

    expected_norm   y = s * x, one scalar s, so that E||y|| = sqrt(d_in)                  affine
    none            y = x                                                                 affine
    whitening       y = (x - mean) @ C^-1/2: mean 0 and (but for shrinkage) covariance 1  affine
    layer_norm      y = (x - m) / (std + 1e-5), m and std those of the token's own x      not affine

Of pairs of activations each part is normalized by its own statistics (`PairNormalization`): what a transcoder reads and what it writes.
So is each hook point of a crosscoder (`side_by_side`), which makes one affine map of the width of all.
`SparseAutoencoder.fold` makes an SAE for x out of one trained on y: an affine map goes into its weights, layer norm stays at run time.
Shape letters: B tokens in a batch, N rows, d_in width of the activations.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from sae_core.config.run import NORMALIZATIONS
from sae_core.errors import ConfigError

WHITENING_TOKENS = 65_536
"""Training tokens, the first of the cache, that mean and covariance are estimated on."""
SHRINKAGE = 1e-3
"""Weight of the mean variance in the whitened covariance: directions that hardly vary are not blown up to variance 1."""
LAYER_NORM_EPS = 1e-5
"""SAELens' value. It is added to the standard deviation, and not undone on the way back."""
_CHUNK_TOKENS = 8_192


@dataclass(frozen=True, slots=True, eq=False)
class Affine:
    """y = (x - mean) @ matrix, the same for every token. For `matrix` a number stands for that multiple of the identity, and a vector for
    the matrix with that diagonal."""

    name: str
    matrix: float | Float[Tensor, " d_in"] | Float[Tensor, "d_in d_in"]
    """Symmetric."""
    inverse: float | Float[Tensor, " d_in"] | Float[Tensor, "d_in d_in"]
    mean: Float[Tensor, " d_in"] | None = None
    """None: nothing is subtracted."""
    parts: Mapping[str, int] = field(default_factory=dict)
    """Hook point -> width, where x is the activations of several side by side, each normalized by itself; see `side_by_side`."""

    def __call__(self, x: Float[Tensor, "B d_in"]) -> Float[Tensor, "B d_in"]:
        return _times(x if self.mean is None else x - self.mean, self.matrix)

    def undone(self, y_hat: Float[Tensor, "B d_in"], x: Float[Tensor, "B d_in"]) -> Float[Tensor, "B d_in"]:
        """Reconstructions of y in the units of the model; x is what they reconstruct, which only a map of each token's own needs."""
        centred = _times(y_hat, self.inverse)
        return centred if self.mean is None else centred + self.mean

    def to(self, device: torch.device) -> "Affine":
        matrix, inverse = (t.to(device) if isinstance(t, Tensor) else t for t in (self.matrix, self.inverse))
        return replace(self, matrix=matrix, inverse=inverse, mean=None if self.mean is None else self.mean.to(device))

    def inverted(self) -> "Affine":
        """The map from y to x."""
        mean = None if self.mean is None else -_times(self.mean, self.matrix)
        return replace(self, matrix=self.inverse, inverse=self.matrix, mean=mean)

    def map_encoder(self, W_enc: Float[Tensor, "d_in d_sae"]) -> Float[Tensor, "d_in d_sae"]:
        """matrix @ W_enc: encoder weights for activations that are not normalized."""
        if isinstance(self.matrix, Tensor) and self.matrix.ndim == 2:
            return (self.matrix.double() @ W_enc.double()).float()
        return _times(W_enc.T, self.matrix).T

    def map_decoder(self, rows: Float[Tensor, "N d_in"]) -> Float[Tensor, "N d_in"]:
        """rows @ inverse: decoder rows in the units of the model."""
        if isinstance(self.inverse, Tensor) and self.inverse.ndim == 2:
            return (rows.double() @ self.inverse.double()).float()
        return _times(rows, self.inverse)


def _times(rows: Float[Tensor, "*B d_in"], matrix: float | Tensor) -> Float[Tensor, "*B d_in"]:
    """rows @ matrix, which may stand for a diagonal one."""
    return rows @ matrix if isinstance(matrix, Tensor) and matrix.ndim == 2 else rows * matrix


class LayerNorm:
    """Each token by itself, as SAELens' `layer_norm`."""

    name: str = "layer_norm"
    parts: ClassVar[Mapping[str, int]] = MappingProxyType({})

    def __call__(self, x: Float[Tensor, "B d_in"]) -> Float[Tensor, "B d_in"]:
        return layer_norm(x)[0]

    def undone(self, y_hat: Float[Tensor, "B d_in"], x: Float[Tensor, "B d_in"]) -> Float[Tensor, "B d_in"]:
        """As `Affine.undone`."""
        _, mean, std = layer_norm(x)
        return y_hat * std + mean

    def to(self, device: torch.device) -> "LayerNorm":
        return self


@dataclass(frozen=True, slots=True, eq=False)
class PairNormalization:
    """Pairs of activations, the input's values first: each part by its own map."""

    name: str
    input: Affine
    target: Affine
    d_in: int
    """Width of the input."""
    parts: ClassVar[Mapping[str, int]] = MappingProxyType({})

    def __call__(self, pairs: Float[Tensor, "B width"]) -> Float[Tensor, "B width"]:
        return torch.cat([self.input(pairs[:, : self.d_in]), self.target(pairs[:, self.d_in :])], dim=1)

    def inverted(self) -> "PairNormalization":
        """The map from normalized pairs back."""
        return replace(self, input=self.input.inverted(), target=self.target.inverted())

    def undone(self, y_hat: Float[Tensor, "B d_out"], target: Float[Tensor, "B d_out"]) -> Float[Tensor, "B d_out"]:
        """As `Affine.undone`, of reconstructions of the target."""
        return self.target.undone(y_hat, target)

    def to(self, device: torch.device) -> "PairNormalization":
        return PairNormalization(self.name, self.input.to(device), self.target.to(device), self.d_in)


Normalization = Affine | LayerNorm | PairNormalization
Shards = Iterable[Float[Tensor, "_ d_in"]]
"""Training activations, unscaled, on the CPU; read only where statistics are needed."""


def normalization_of(name: str, scale: float, shards: Callable[[], Shards]) -> Affine | LayerNorm:
    """The normalization with this name.

    Args:
        scale: factor that makes E||x|| = sqrt(d_in).

    Raises:
        ConfigError: there is none, or the activations cannot be normalized so.
    """
    made: Affine | LayerNorm = NORMALIZATIONS[name](scale, shards())
    return made


def pair_normalization(name: str, scales: tuple[float, float], shards: Callable[[], Shards], d_in: int) -> PairNormalization:
    """The normalization with this name of pairs, each part by its own statistics.

    Args:
        scales: of the input and of the target, as `normalization_of` takes one.
        shards: pairs.

    Raises:
        ConfigError: as `normalization_of`; or it is another map for each token, so that reconstructions of the target cannot be brought
            back to its units.
    """
    read, written = _of_columns(name, scales, shards, (slice(d_in), slice(d_in, None)))
    return PairNormalization(name, read, written, d_in)


def side_by_side(name: str, scales: Sequence[float], shards: Callable[[], Shards], parts: Mapping[str, int]) -> Affine:
    """The normalization with this name of the activations of several hook points, each by its own statistics.

    Args:
        scales: of each hook point, as `normalization_of` takes one.
        parts: hook point -> width.

    Raises:
        ConfigError: as `pair_normalization`.
    """
    ends = list(itertools.accumulate(parts.values()))
    maps = _of_columns(name, scales, shards, [slice(end - width, end) for end, width in zip(ends, parts.values(), strict=True)])
    matrix, inverse = (_joined([getattr(one, side) for one in maps], list(parts.values())) for side in ("matrix", "inverse"))
    means = [one.mean for one in maps if one.mean is not None]
    return Affine(name, matrix, inverse, torch.cat(means) if means else None, parts)


def _joined(blocks: Sequence[float | Tensor], widths: Sequence[int]) -> Tensor:
    """The matrix with these blocks on its diagonal; as a vector, where all are numbers."""
    if any(isinstance(block, Tensor) for block in blocks):
        return torch.block_diag(*blocks)  # then all are matrices
    return torch.cat([torch.full((width,), float(block)) for block, width in zip(blocks, widths, strict=True)])


def _of_columns(name: str, scales: Sequence[float], shards: Callable[[], Shards], columns: Sequence[slice]) -> list[Affine]:
    """The normalization with this name of some columns of the shards at a time."""
    maps: list[Affine] = []
    for scale, some in zip(scales, columns, strict=True):
        one = normalization_of(name, scale, lambda some=some: (x[:, some] for x in shards()))
        if not isinstance(one, Affine):
            raise ConfigError(
                f"`normalize_activations` must be the same map for every token where transcoders or crosscoders are trained, but got "
                f"{name!r}. Set `train.normalize_activations` to 'expected_norm', 'whitening' or 'none'."
            )
        maps.append(one)
    return maps


def layer_norm(x: Float[Tensor, "B d_in"]) -> tuple[Float[Tensor, "B d_in"], Float[Tensor, "B 1"], Float[Tensor, "B 1"]]:
    """y, and what leads back from a reconstruction of it: x_hat = y_hat * std + mean.

    Returns:
        y, the mean of each token's x, and its standard deviation (unbiased: over d_in - 1).
    """
    mean = x.mean(dim=-1, keepdim=True)
    centred = x - mean
    std = centred.std(dim=-1, keepdim=True)
    return centred / (std + LAYER_NORM_EPS), mean, std


@NORMALIZATIONS.register("expected_norm")
def expected_norm(scale: float, shards: Shards) -> Affine:
    """y = s * x with one scalar s, so that E||y|| = sqrt(d_in)."""
    return Affine("expected_norm", scale, 1 / scale)


@NORMALIZATIONS.register("none")
def unchanged(scale: float, shards: Shards) -> Affine:
    """y = x."""
    return Affine("none", 1.0, 1.0)


@NORMALIZATIONS.register("layer_norm")
def per_token(scale: float, shards: Shards) -> LayerNorm:
    """Each token with mean 0 and standard deviation 1, as SAELens' `layer_norm`."""
    return LayerNorm()


@NORMALIZATIONS.register("whitening")
@torch.no_grad()
def whitening(scale: float, shards: Shards) -> Affine:
    """ZCA whitening by the mean and covariance C of the first `WHITENING_TOKENS` rows; of all there are, if fewer.

    The matrix is the inverse square root of (1 - SHRINKAGE) * C + SHRINKAGE * trace(C) / d_in * I: of all matrices that whiten, the one
    that moves activations least (Kessy, Lewin and Strimmer 2018, arXiv:1512.00809). Sums are float64, on the CPU.

    Differs from SAELens' `covariance_whitening`: it turns y to the principal axes too, adds 1e-3 to the eigenvalues of C whatever
    their size, and estimates C on 1000 batches.

    Raises:
        ConfigError: the activations do not vary.
    """
    n_tokens, x_sum, products = 0, torch.zeros(()), torch.zeros(())
    for shard in shards:
        for x in shard[: WHITENING_TOKENS - n_tokens].split(_CHUNK_TOKENS):
            rows = x.double()
            n_tokens, x_sum, products = n_tokens + len(rows), x_sum + rows.sum(dim=0), products + rows.T @ rows
        if n_tokens >= WHITENING_TOKENS:
            break
    mean = x_sum / n_tokens
    covariance = products / n_tokens - torch.outer(mean, mean)
    variance = covariance.diagonal().mean()
    if not variance > 0:
        raise ConfigError(
            f"activations must vary to be whitened, but got variance={float(variance):g} over n_tokens={n_tokens}. "
            "Set `train.normalize_activations: none`, or use more tokens."
        )
    shrunk = (1 - SHRINKAGE) * covariance + SHRINKAGE * variance * torch.eye(len(mean), dtype=torch.float64)
    eigenvalues, vectors = torch.linalg.eigh(shrunk)
    matrix, inverse = ((vectors * scale) @ vectors.T for scale in (eigenvalues.rsqrt(), eigenvalues.sqrt()))
    return Affine("whitening", matrix.float(), inverse.float(), mean.float())
