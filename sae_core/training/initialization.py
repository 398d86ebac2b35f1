"""Initial values that come from the activations: b_dec, decoder rows, and the norm of both matrices.

b_dec and the rows are of what is reconstructed: of x itself, in an SAE. The encoder of a transcoder cannot be the transpose of its decoder;
in its place, where decoder rows point at the targets of tokens, the columns of the encoder point at the inputs of the same tokens.
What needs no activations is drawn in the constructor of `SparseAutoencoder`. The sample is read once for a group of runs, and only if
one of them asks for it; what a run gets depends on its config and on the stream alone.
Shape letters: N tokens of the sample, d_in width of the activations, d_out of what is reconstructed from them (d_in, for an SAE).
"""

import copy
from functools import cached_property
from itertools import islice

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from sae_core.activations.stream import ActivationStream, split_pairs
from sae_core.config.run import ArchitectureConfig, RunConfig
from sae_core.errors import ConfigError
from sae_core.sae.base import SparseAutoencoder
from sae_core.sae.loss import LossContext
from sae_core.sae.weights import SEARCH_START_NORM
from sae_core.seeds import seed_of

SAMPLE_TOKENS = 32_768
"""Tokens of the sample: the first of the stream, in whole batches, at least one."""
SEARCH_TOKENS = 4_096
"""Tokens of the sample that the norm is searched with, in whole batches, at least one."""
NORMS = tuple(0.05 * 40 ** (i / 16) for i in range(17))
"""Norms tried: 0.05 to 2, each a quarter above the one before."""
MAX_ITERATIONS = 1_000
TOLERANCE = 1e-10
"""The geometric median is found when a step moves it by less than this, relative to the mean distance of the points."""
NEAR = 0.01
"""Nearer than this to a point, on the same scale, the iteration may be creeping up to it, so that the point itself is tried."""


class Sample:
    """The first batches of a stream, in the units of training. Read when first used."""

    def __init__(self, stream: ActivationStream) -> None:
        self._stream = stream

    @property
    def x(self) -> Float[Tensor, "N d_in"]:
        """What is read."""
        return self._parts[0]

    @property
    def y(self) -> Float[Tensor, "N d_out"]:
        """What is reconstructed: x itself, of pairs the target."""
        x, target = self._parts
        return x if target is None else target

    @cached_property
    def _parts(self) -> tuple[Tensor, Tensor | None]:
        batches = self._stream.batches(0)
        first = next(batches)
        rows = torch.cat([first, *islice(batches, SAMPLE_TOKENS // len(first) - 1 if len(first) <= SAMPLE_TOKENS else 0)])
        return split_pairs(rows, self._stream)

    @cached_property
    def x_mean(self) -> Float[Tensor, " d_in"]:
        """Mean of what is read."""
        return self.x.mean(dim=0, dtype=torch.float64).float()

    @cached_property
    def mean(self) -> Float[Tensor, " d_out"]:
        """Mean of what is reconstructed."""
        return self.y.mean(dim=0, dtype=torch.float64).float()

    @cached_property
    def geometric_median(self) -> Float[Tensor, " d_out"]:
        """Geometric median of what is reconstructed."""
        return geometric_median(self.y)


def needs_sample(config: ArchitectureConfig) -> bool:
    """Whether the initial values depend on the activations."""
    return config.decoder_init != "random" or config.b_dec_init != "zeros" or config.decoder_init_norm == "search"


@torch.no_grad()
def initialize(sae: SparseAutoencoder, sample: Sample, run: RunConfig) -> None:
    """Set what depends on the activations, in a new SAE in training form: b_dec, then the decoder's directions, then the norm."""
    config = run.sae
    if config.b_dec_init != "zeros":
        sae.b_dec.copy_(sample.mean if config.b_dec_init == "mean" else sample.geometric_median)
    if config.decoder_init == "data":
        y = sample.y - sae.b_dec
        tokens = _chosen_tokens(y, sae.d_sae, seed=seed_of("decoder rows", run.seed))
        sae.W_dec.copy_(normalize(y[tokens]) * sae.W_dec.norm(dim=1, keepdim=True))
        if config.is_tied:
            pass
        elif config.encoder_init == "transpose" and sae.d_out is None:
            sae.W_enc.copy_(sae.W_dec.T)
        elif config.encoder_init == "transpose":
            sae.W_enc.copy_((normalize(sample.x[tokens] - sample.x_mean) * sae.W_enc.norm(dim=0)[:, None]).T)
    if config.decoder_init_norm == "search":
        factor = best_norm(sae, sample, batch_size=run.train.batch_size) / SEARCH_START_NORM
        sae.W_enc *= factor
        sae.W_dec *= factor
    sae.constrain()


def _chosen_tokens(y: Float[Tensor, "N d_out"], n: int, *, seed: int) -> Int[Tensor, " n"]:
    """Numbers of `n` rows chosen at random, each at most once where there are enough. Rows that are 0 have no direction."""
    rows = y.any(dim=1).nonzero().squeeze(1)
    if not len(rows):
        raise ConfigError(
            f"`decoder_init: data` needs tokens that differ from b_dec, but got none to choose n={n} rows from. Set `decoder_init: random`."
        )
    generator = torch.Generator().manual_seed(seed)
    n_rows = len(rows)
    chosen = torch.randperm(n_rows, generator=generator)[:n] if n <= n_rows else torch.randint(n_rows, (n,), generator=generator)
    return rows[chosen.to(rows.device)]


@torch.no_grad()
def best_norm(sae: SparseAutoencoder, sample: Sample, *, batch_size: int) -> float:
    """The one of `NORMS` with which a new SAE reconstructs best, in its training form: W_enc and W_dec are scaled together.

    Language-Model-SAEs searches for it in the same way.
    """
    trial = copy.deepcopy(sae)
    n_tokens = max(SEARCH_TOKENS // batch_size, 1) * batch_size
    batches = list(zip(sample.x[:n_tokens].split(batch_size), sample.y[:n_tokens].split(batch_size), strict=True))

    def error(norm: float) -> float:
        for name in ("W_enc", "W_dec"):
            getattr(trial, name).copy_(getattr(sae, name) * (norm / SEARCH_START_NORM))
        trial.constrain()
        coefficients = {name: of.value for name, of in trial.config.coefficients.items()}
        return sum(float(trial.loss(x, LossContext(target=y, coefficients=coefficients)).terms["mse_loss"]) * len(x) for x, y in batches)

    return min(NORMS, key=error)


def geometric_median(x: Float[Tensor, "N d_in"]) -> Float[Tensor, " d_in"]:
    """The point whose distances to the rows of x have the smallest sum.

    Weiszfeld's algorithm in float64 until it no longer moves. Where the iterate is one of the rows, the step of Vardi and Zhang (2000,
    "The multivariate L1-median and associated data depth") leaves it, or finds that it is the median.
    """
    points = x.double()
    median = points.mean(dim=0)
    for _ in range(MAX_ITERATIONS):
        distances = torch.linalg.vector_norm(points - median, dim=1)
        nearest, size = points[distances.argmin()], distances.mean()
        if distances.min() < NEAR * size and torch.equal(_weiszfeld_step(points, nearest), nearest):
            return nearest.to(x.dtype)
        before, median = median, _weiszfeld_step(points, median)
        if torch.linalg.vector_norm(median - before) <= TOLERANCE * size:
            break
    return median.to(x.dtype)


def _weiszfeld_step(points: Tensor, median: Tensor) -> Tensor:
    """The mean of the points, weighted by 1 / distance; points at `median` hold it back by their number over the pull of the rest."""
    distances = torch.linalg.vector_norm(points - median, dim=1)
    weights = torch.where(distances > 0, 1 / distances, 0)
    total, n_here = weights.sum(), int((distances == 0).sum())
    if total == 0:
        return median
    move = (weights / total) @ points - median
    pull = total * torch.linalg.vector_norm(move)
    return median + (1 - n_here / pull).clamp_min(0) * move if n_here else median + move
