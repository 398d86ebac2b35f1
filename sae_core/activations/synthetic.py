"""Activations made of known features: no model, no text, and the same on every machine.

x is a sum of unit feature directions. Feature i is active on a token with probability proportional to (i + 1)^-1/2, independently
of the others, with magnitude |N(1, 0.3)|.
Shape letters: N tokens, F features, d_in width of the activations.
"""

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Literal, Self

import torch
from jaxtyping import Float
from pydantic import model_validator
from torch import Tensor

from sae_core.activations.seeds import seed_of
from sae_core.activations.source import ActivationSource, EvalChunk
from sae_core.config import SOURCES, ActivationsConfig, Count, Positive
from sae_core.errors import ConfigError

FORMAT_VERSION = 1
"""Raise it when the same config gives other activations."""
SHARD_TOKENS = 16_384
CHUNK_TOKENS = 4_096
MAGNITUDE_MEAN, MAGNITUDE_STD = 1.0, 0.3


class SyntheticActivations(ActivationsConfig):
    """Sparse sums of random feature directions."""

    source: Literal["synthetic"] = "synthetic"
    d_in: Count = 32
    n_features: Count = 64
    n_active: Positive = 4.0
    """Mean number of features active on a token."""
    feature_seed: int = 0
    """Decides the directions and the tokens."""

    @model_validator(mode="after")
    def _probabilities_are_at_most_one(self) -> Self:
        most = float(_relative_frequencies(self.n_features).sum())
        if self.n_active > most:
            raise ConfigError(
                f"`n_active` must be <= {most:.4g} for {self.n_features} features (none can be active more than always), "
                f"but got n_active={self.n_active}. Lower it or raise `n_features`."
            )
        return self

    @classmethod
    def example(cls) -> Self:
        return cls(train_tokens=40_000, eval_tokens=6_000)


def _relative_frequencies(n_features: int) -> Float[Tensor, " F"]:
    """How often each feature is active, relative to the first."""
    return torch.arange(1, n_features + 1, dtype=torch.float64).rsqrt()


@SOURCES.register("synthetic")
class SyntheticSource(ActivationSource):
    """Makes `SyntheticActivations`; what is held out are further tokens with the same features."""

    Config = SyntheticActivations
    config: SyntheticActivations

    @property
    def d_in(self) -> int:
        return self.config.d_in

    def fingerprint(self) -> str:
        return hashlib.sha256(f"synthetic {FORMAT_VERSION} {self.config.model_dump_json()}".encode()).hexdigest()

    def check(self) -> None:
        """Nothing can be wrong that the config does not refuse."""

    def prepare(self, directory: Path) -> None:
        """Nothing to do."""

    def n_shards(self, directory: Path) -> int:
        return -(-self.config.train_tokens // SHARD_TOKENS)

    def shard(self, directory: Path, index: int) -> Float[Tensor, "N d_in"]:
        return self._tokens("train", index, min(SHARD_TOKENS, self.config.train_tokens - index * SHARD_TOKENS))

    def n_eval_chunks(self, directory: Path) -> int:
        return -(-self.config.eval_tokens // CHUNK_TOKENS)

    def eval_chunk(self, directory: Path, index: int, mean: Float[Tensor, " d_in"]) -> EvalChunk:
        n_tokens = min(CHUNK_TOKENS, self.config.eval_tokens - index * CHUNK_TOKENS)
        return EvalChunk(self._tokens("heldout", index, n_tokens).to(self.device))

    def eval_fingerprint(self, directory: Path) -> str:
        return self.fingerprint()

    @cached_property
    def features(self) -> Float[Tensor, "F d_in"]:
        """Ground-truth directions, of norm 1."""
        generator = torch.Generator().manual_seed(seed_of("features", self.config.feature_seed))
        return torch.nn.functional.normalize(torch.randn(self.config.n_features, self.config.d_in, generator=generator))

    def _tokens(self, part: str, index: int, n_tokens: int) -> Float[Tensor, "N d_in"]:
        generator = torch.Generator().manual_seed(seed_of(part, self.config.feature_seed, index))
        frequencies = _relative_frequencies(self.config.n_features)
        probabilities = (frequencies * self.config.n_active / frequencies.sum()).float().expand(n_tokens, -1)
        active = torch.bernoulli(probabilities, generator=generator)
        magnitudes = torch.normal(MAGNITUDE_MEAN, MAGNITUDE_STD, active.shape, generator=generator).abs()
        return (active * magnitudes) @ self.features
