"""What an activation source offers: shards of training activations, and chunks of held-out text to evaluate on.

A source is one file in this package: a config class and a class registered in SOURCES. Sources know nothing of SAEs.
Shape letters: N tokens (special tokens excluded), P predicted positions, F features, d_in width of the activations.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_core.config.run import SOURCES, ActivationsConfig


@dataclass(frozen=True, slots=True)
class NextToken:
    """How well the language model predicts the next token, per position."""

    ce: Float[Tensor, " P"]
    """Cross-entropy in nats at every non-special position that has a next token."""
    kl: Float[Tensor, " N"]
    """KL(clean || this) in nats at every non-special position."""


@dataclass(frozen=True, slots=True)
class GroundTruth:
    """The features a source made its activations of."""

    directions: Float[Tensor, "F d_in"]
    """The same in every chunk. Not 0; signs and norms do not matter."""
    active: Bool[Tensor, "N F"]
    """Which features are active on which token."""


@dataclass(frozen=True)
class EvalChunk:
    """A fixed slice of the held-out text: chunks are the same however many workers share them."""

    x: Float[Tensor, "N d_in"]
    """Activations at the hook point, unscaled, float32, on the source's device."""
    splice: Callable[[Sequence[Float[Tensor, "N d_in"]]], list[NextToken]] | None = None
    """Run the rest of the language model with each of these in place of `x`; None for sources without a model."""
    clean: NextToken | None = None
    zero_ablated: NextToken | None = None
    """Every position of the hook point set to 0, as SAELens does."""
    mean_ablated: NextToken | None = None
    """Every non-special position set to the mean training activation."""
    ground_truth: GroundTruth | None = None
    """None for sources that do not know their features."""

    @cached_property
    def x_double(self) -> Float[Tensor, "N d_in"]:
        """`x` in float64, for the sums of metrics: one for all SAEs, as the next two."""
        return self.x.double()

    @cached_property
    def squared_norm(self) -> Float[Tensor, " N"]:
        """||x||^2 per token, float64."""
        return torch.linalg.vecdot(self.x_double, self.x_double)

    @cached_property
    def x_sum(self) -> Float[Tensor, " d_in"]:
        """Sum of x over tokens, float64."""
        return self.x_double.sum(dim=0)


class ActivationSource(ABC):
    """Makes the activations of one config. Everything is a function of the config: the same on every worker."""

    Config: ClassVar[type[ActivationsConfig]]
    offers: ClassVar[frozenset[str]] = frozenset()
    """Optional fields of `EvalChunk` that every held-out chunk has."""

    def __init__(self, config: Any, *, device: str = "cpu") -> None:
        """Nothing is read or loaded yet.

        Args:
            config: an instance of `Config`.
            device: where a model runs, as torch names it; activations are handed out on the CPU, held-out chunks on `device`.
        """
        self.config = config
        self.device = device

    @property
    def activations_dtype(self) -> str:
        """Precision that shards are stored in: float32, float16 or bfloat16."""
        return "float32"

    @property
    @abstractmethod
    def d_in(self) -> int:
        """Width of the activations."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Hash of the content that decides the activations (weights, text, settings), cheap enough to compute at each launch."""

    @abstractmethod
    def check(self) -> None:
        """Find what is wrong with the config before any work: missing files, unknown hook point, columns, splits.

        Raises:
            ConfigError: with every problem found, one a line.
        """

    @abstractmethod
    def prepare(self, directory: Path) -> None:
        """Do once what all shards need (tokenise the text) and leave it in `directory`; nothing where it is there already.

        Raises:
            ConfigError: there is too little text for the tokens asked.
        """

    @abstractmethod
    def n_shards(self, directory: Path) -> int:
        """Number of training shards, after `prepare`."""

    @abstractmethod
    def shard(self, directory: Path, index: int) -> Float[Tensor, "N d_in"]:
        """Training activations of one shard: a sample of the whole text, not a stretch of it; rows shuffled.

        Returns:
            float32, unscaled, on the CPU.
        """

    @abstractmethod
    def n_eval_chunks(self, directory: Path) -> int:
        """Number of held-out chunks, after `prepare`."""

    @abstractmethod
    def eval_chunk(self, directory: Path, index: int, mean: Float[Tensor, " d_in"]) -> EvalChunk:
        """One held-out chunk.

        Args:
            mean: mean training activation, for mean ablation.
        """

    @abstractmethod
    def eval_fingerprint(self, directory: Path) -> str:
        """Hash of the held-out tokens and of what makes their activations, after `prepare`."""

    def facts(self) -> dict[str, float]:
        """Numbers about the activations that go into every record, so that a reader can be warned: `d_vocab` of a language model."""
        return {}

    def export_metadata(self) -> dict[str, object]:
        """What an exported SAE says about where it belongs: SAELens' metadata keys (`model_name`, `hook_name`, ...)."""
        return {}


def source_of(config: Mapping[str, Any], device: str = "cpu") -> ActivationSource:
    """The source of an ActivationsConfig in JSON form, as other processes are given it."""
    source = SOURCES[config["source"]]
    return source(source.Config.model_validate(config), device=device)
