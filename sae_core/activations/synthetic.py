"""Activations made of known features: no model, no text, and the same on every machine.

x is a sum of unit feature directions, each with a magnitude |N(1, 0.3)| where it is active, and of noise. How often, together with
which others, and below which parent a feature is active is the config's choice; whatever that is, feature i is active on a fraction
of the tokens proportional to (i + 1)^-zipf_exponent, and `n_active` features are active on a token on average.

- Zipf: a few features are on often, most rarely.
- Correlation: a Gaussian copula. Feature i fires where a standard normal variable is below the quantile of its frequency, and the
  variables of features i of one group (`group_size` neighbours, of similar frequency) have `correlation` with each other.
- Hierarchy: features 0 ... n_roots - 1 are roots, the next ones children, `n_children` for each feature in order. A child fires only
  where its parent does, with probability frequency(child) / frequency(parent). Directions of parent and child are independent.

After Sharkey et al. 2022 ("Taking features out of superposition with sparse autoencoders": correlated features of decaying frequency),
Bussmann et al. 2025 (arXiv:2503.17547: trees of features) and Chanin & Garriga-Alonso 2026 (SynthSAEBench, arXiv:2602.14687: all of
these at once). Differs from SynthSAEBench: a hierarchy leaves the frequencies as they were, siblings do not exclude each other, the
covariance of the copula has blocks instead of a random low rank, and random directions are not pushed apart.
Shape letters: N tokens, F features, d_in width of the activations.
"""

import math
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, Self

import torch
from jaxtyping import Bool, Float
from pydantic import Field, model_validator
from torch import Tensor

from sae_core.activations.source import ActivationSource, EvalChunk, GroundTruth
from sae_core.config.base import Count, Positive
from sae_core.config.run import SOURCES, ActivationsConfig
from sae_core.errors import ConfigError
from sae_core.seeds import seed_of

MAGNITUDE_MEAN, MAGNITUDE_STD = 1.0, 0.3

AtLeastTwo = Annotated[int, Field(ge=2)]


class SyntheticActivations(ActivationsConfig):
    """Sparse sums of random feature directions. The defaults are easy: independent features, no noise."""

    source: Literal["synthetic"] = "synthetic"
    d_in: Count = 32
    n_features: Annotated[int, Field(ge=1, le=2**20)] = 64
    n_active: Positive = 4.0
    """Mean number of features active on a token."""
    zipf_exponent: Annotated[float, Field(ge=0)] = 0.5
    """How fast frequencies fall from feature to feature: proportional to (i + 1)^-zipf_exponent; 0: all alike."""
    correlation: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Correlation of the normal variables that decide where the features of a group fire; 0: features are independent."""
    group_size: AtLeastTwo | None = None
    """Features in a correlated group. With `correlation`, and only then."""
    n_roots: Count | None = None
    """Features without a parent; None: no hierarchy. With `n_children`."""
    n_children: Count | None = None
    """Children of each feature, in order, until there are `n_features`. With `n_roots`."""
    noise_std: Annotated[float, Field(ge=0)] = 0.0
    """Standard deviation of Gaussian noise on each coordinate of x; directions have norm 1."""
    feature_seed: int = 0
    """Decides the directions and the tokens."""

    @model_validator(mode="after")
    def _probabilities_are_at_most_one(self) -> Self:
        most = float(_relative_frequencies(self.n_features, self.zipf_exponent).sum())
        if self.n_active > most:
            raise ConfigError(
                f"`n_active` must be <= {most:.4g} for {self.n_features} features (none can be active more than always), "
                f"but got n_active={self.n_active}. Lower it, raise `n_features` or lower `zipf_exponent`."
            )
        return self

    @model_validator(mode="after")
    def _groups_are_whole(self) -> Self:
        if (self.correlation > 0) != (self.group_size is not None):
            raise ConfigError(
                f"`correlation` > 0 and `group_size` must be given together, but got correlation={self.correlation} and "
                f"group_size={self.group_size}. Add the other or remove both."
            )
        if self.group_size is not None and self.group_size > (self.n_roots or self.n_features):
            # With more, a child could share a group with its parent and be active more often than said.
            raise ConfigError(
                f"`group_size` must be <= n_features, and <= n_roots in a hierarchy, but got group_size={self.group_size}, "
                f"n_features={self.n_features} and n_roots={self.n_roots}. Lower `group_size`."
            )
        return self

    @model_validator(mode="after")
    def _children_have_parents(self) -> Self:
        if (self.n_roots is None) != (self.n_children is None):
            raise ConfigError(
                f"`n_roots` and `n_children` must be given together, but got n_roots={self.n_roots} and n_children={self.n_children}. "
                "Add the other or remove both."
            )
        if self.n_roots is not None and self.n_roots >= self.n_features:
            raise ConfigError(
                f"`n_roots` must be < n_features, or nothing has a parent, but got n_roots={self.n_roots} and "
                f"n_features={self.n_features}. Lower it."
            )
        if self.n_roots is not None and self.zipf_exponent == 0:
            raise ConfigError(
                "`zipf_exponent` must be > 0 in a hierarchy, because children are rarer than their parents, "
                f"but got zipf_exponent={self.zipf_exponent}. Raise it or remove `n_roots` and `n_children`."
            )
        return self

    @classmethod
    def example(cls) -> Self:
        return cls(train_tokens=40_000, eval_tokens=6_000)


def _relative_frequencies(n_features: int, zipf_exponent: float) -> Float[Tensor, " F"]:
    """How often each feature is active, relative to the first."""
    return torch.arange(1, n_features + 1, dtype=torch.float64).pow(-zipf_exponent)


@SOURCES.register("synthetic")
class SyntheticSource(ActivationSource):
    """Sparse sums of known feature directions. Held out are further tokens with the same features."""

    Config = SyntheticActivations
    offers = frozenset({"ground_truth"})
    shard_tokens = 16_384
    config: SyntheticActivations

    @property
    def d_in(self) -> int:
        return self.config.d_in

    def shard(self, directory: Path, index: int) -> Float[Tensor, "N d_in"]:
        start, stop = self.train_span(index)
        return self._tokens("train", index, stop - start)[0]

    def eval_chunk(self, directory: Path, index: int, mean: Float[Tensor, " d_in"]) -> EvalChunk:
        start, stop = self.eval_span(index)
        x, active = self._tokens("heldout", index, stop - start)
        return EvalChunk(x.to(self.device), ground_truth=GroundTruth(self.features.to(self.device), active.to(self.device)))

    @cached_property
    def features(self) -> Float[Tensor, "F d_in"]:
        """Ground-truth directions, of norm 1."""
        generator = torch.Generator().manual_seed(seed_of("features", self.config.feature_seed))
        return torch.nn.functional.normalize(torch.randn(self.config.n_features, self.config.d_in, generator=generator))

    @cached_property
    def frequencies(self) -> Float[Tensor, " F"]:
        """Fraction of the tokens that each feature is active on; float64."""
        relative = _relative_frequencies(self.config.n_features, self.config.zipf_exponent)
        return relative * self.config.n_active / relative.sum()

    @cached_property
    def parents(self) -> list[int | None]:
        """The parent of each feature: one of a smaller index, or None."""
        n_roots, n_children = self.config.n_roots, self.config.n_children
        if n_roots is None or n_children is None:
            return [None] * self.config.n_features
        return [None if i < n_roots else (i - n_roots) // n_children for i in range(self.config.n_features)]

    @cached_property
    def _given_parent(self) -> Float[Tensor, " F"]:
        """Probability that a feature is active where its parent is; roots have one that always is."""
        of_parents = [1.0 if parent is None else float(self.frequencies[parent]) for parent in self.parents]
        return self.frequencies / torch.tensor(of_parents, dtype=torch.float64)

    def _tokens(self, part: str, index: int, n_tokens: int) -> tuple[Float[Tensor, "N d_in"], Bool[Tensor, "N F"]]:
        """Rows, and which features they are made of."""
        generator = torch.Generator().manual_seed(seed_of(part, self.config.feature_seed, index))
        active = self._firing(n_tokens, generator)
        for feature, parent in enumerate(self.parents):  # parents come before their children
            if parent is not None:
                active[:, feature] &= active[:, parent]
        magnitudes = torch.normal(MAGNITUDE_MEAN, MAGNITUDE_STD, active.shape, generator=generator).abs()
        x = (active * magnitudes) @ self.features
        if self.config.noise_std:
            x += self.config.noise_std * torch.randn(x.shape, generator=generator)
        return x, active

    def _firing(self, n_tokens: int, generator: torch.Generator) -> Bool[Tensor, "N F"]:
        """Where each feature is active, were all parents active."""
        if self.config.group_size is None:
            return torch.bernoulli(self._given_parent.float().expand(n_tokens, -1), generator=generator).bool()
        n_features, correlation = self.config.n_features, self.config.correlation
        group = torch.arange(n_features) // self.config.group_size
        common = torch.randn(n_tokens, int(group[-1]) + 1, generator=generator)[:, group]
        own = torch.randn(n_tokens, n_features, generator=generator)
        level = math.sqrt(correlation) * common + math.sqrt(1 - correlation) * own
        return level < torch.special.ndtri(self._given_parent).float()
