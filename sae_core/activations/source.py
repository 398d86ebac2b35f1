"""What an activation source offers: shards of training activations, and chunks of held-out text to evaluate on.

A source is one file in this package: a config class and a class registered in SOURCES. Sources know nothing of SAEs.
Shape letters: N tokens (special tokens excluded), P predicted positions, W windows, T positions in a window, F features,
d_in width of the activations, d_out that of what is reconstructed from them, where that is something else (pairs, for transcoders).
"""

import functools
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_core import plugins
from sae_core.activations.files import hash_files, is_hub_name
from sae_core.activations.text_batch import TextBatch, TextRows
from sae_core.config.run import SOURCES, ActivationsConfig
from sae_core.errors import ConfigError
from sae_core.files import existing


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
    splice: Callable[[Sequence[Float[Tensor, "N d_out"]]], list[NextToken]] | None = None
    """Run the rest of the language model with each of these in place of `y`; None for sources without a model."""
    clean: NextToken | None = None
    zero_ablated: NextToken | None = None
    """Every position of the hook point set to 0, as SAELens does."""
    mean_ablated: NextToken | None = None
    """Every non-special position set to the mean training activation."""
    ground_truth: GroundTruth | None = None
    """None for sources that do not know their features."""
    documents: Int[Tensor, " N"] | None = None
    """Number of the document that each token is of, the same in every chunk; None: blocks of 128 tokens in order count as documents."""
    predicted_documents: Int[Tensor, " P"] | None = None
    """The same of each position that predicts a next token; None: as `documents` where every token does."""
    target: Float[Tensor, "N d_out"] | None = None
    """What transcoders reconstruct from `x`: activations at another hook point, as `x` otherwise. None: `x` itself."""
    parts: Mapping[str, int] | None = None
    """Hook point -> width, where `x` is the activations of several side by side, for crosscoders."""

    @property
    def y(self) -> Float[Tensor, "N d_out"]:
        """What is to be reconstructed, and what metrics compare with."""
        return self.x if self.target is None else self.target

    @cached_property
    def y_double(self) -> Float[Tensor, "N d_out"]:
        """`y` in float64, for the sums of metrics: one for all SAEs, as the next two."""
        return self.y.double()

    @cached_property
    def squared_norm(self) -> Float[Tensor, " N"]:
        """||y||^2 per token, float64."""
        return torch.linalg.vecdot(self.y_double, self.y_double)

    @cached_property
    def y_sum(self) -> Float[Tensor, " d_out"]:
        """Sum of y over tokens, float64."""
        return self.y_double.sum(dim=0)

    @cached_property
    def terms(self) -> dict[str, Tensor]:
        """What metrics sum up that is the same for all SAEs, float64: name -> a number per token [N], or per predicted position [P]."""
        terms = {"n_tokens": torch.ones_like(self.squared_norm)}
        if self.ground_truth is not None:
            terms["features"] = self.ground_truth.active.sum(dim=1).double()
        baselines = {"clean": self.clean, "zero_ablated": self.zero_ablated, "mean_ablated": self.mean_ablated}
        return terms | {name: scores.ce.double() for name, scores in baselines.items() if scores is not None}


@dataclass(frozen=True, slots=True)
class HeldOut:
    """The activations of a held-out chunk alone, and the text they are of."""

    x: Float[Tensor, "N d_in"]
    """As `EvalChunk.x`."""
    tokens: Int[Tensor, "W T"] | None = None
    """Windows of tokens, on the CPU; None where there is no text."""
    keep: Bool[Tensor, "W T"] | None = None
    """The positions of `x`, windows one after the other: those that are not special tokens."""


class ActivationSource(ABC):
    """Makes the activations of one config. Everything is a function of the config: the same on every worker.

    A source of your own is one file with three members: `d_in`, `shard` and `eval_chunk` (docs/extending.md has one). The others have
    defaults, to be replaced where a source can do better.
    """

    Config: ClassVar[type[ActivationsConfig]]
    offers: ClassVar[frozenset[str]] = frozenset()
    """Optional fields of `EvalChunk` that every held-out chunk has."""
    target_field: ClassVar[tuple[str, ...]] = ()
    """Path of the field of the config that says where transcoders write: where it is given, the source is of pairs (`d_out`)."""
    path_fields: ClassVar[tuple[tuple[str, ...], ...]] = ()
    """Fields of `Config` that hold a local path, or a name where nothing has that path: `("path",)`, `("data", "dataset")`. In a definition
    they may be relative; a source gets absolute ones."""
    hub_fields: ClassVar[tuple[str, ...]] = ()
    """Fields among them, by their last name, that may hold the name of a model or dataset on the Hugging Face Hub instead."""
    sections: ClassVar[tuple[str, ...]] = ()
    """Fields of `Config` that are sections of a definition, in place of the section `activations`."""
    paired_fields: ClassVar[Mapping[tuple[str, ...], tuple[str, ...]]] = {}
    """Fields of `Config` whose lists in a definition are paired, first with first, instead of multiplied: field -> the one it goes with."""
    n_gpus: int = 1
    """GPUs, from `device` on, that a model may be spread over."""
    format_version: ClassVar[int] = 1
    """Raise it when the same config gives other activations: caches made before are then not used."""

    def __init__(self, config: Any, *, device: str = "cpu") -> None:
        """Nothing is read or loaded yet.

        Args:
            config: an instance of `Config`.
            device: where a model runs, as torch names it; shards are returned on the CPU, held-out chunks on `device`.
        """
        self.config = config
        self.device = device

    @property
    @abstractmethod
    def d_in(self) -> int:
        """Width of the activations."""

    @property
    def d_out(self) -> int | None:
        """Width of what is reconstructed, in a source of pairs: transcoders are trained on them. None: the activations themselves."""
        return None

    @property
    def parts(self) -> dict[str, int]:
        """Hook point -> width, of a source whose activations are those of several side by side: crosscoders are trained on them. Empty: of
        one."""
        return {}

    @abstractmethod
    def shard(self, directory: Path, index: int) -> Float[Tensor, "N width"]:
        """Training activations of one shard: best a sample of the whole text, not a stretch of it; rows shuffled.

        Returns:
            float32, unscaled, on the CPU; [N, d_in], of a source of pairs [N, d_in + d_out], the input's values first.
        """

    @abstractmethod
    def eval_chunk(self, directory: Path, index: int, mean: Float[Tensor, " d_out"]) -> EvalChunk:
        """One held-out chunk.

        Args:
            mean: mean of what is reconstructed in training, for mean ablation.
        """

    @property
    def width(self) -> int:
        """Numbers stored per token."""
        return self.d_in + (self.d_out or 0)

    @property
    def pass_key(self) -> str | None:
        """Sources with the same one make their activations in one pass, see `beside`; None: this one makes them alone."""
        return None

    def beside(self, first: "ActivationSource") -> None:  # noqa: B027 - a default, not a missing decorator
        """Use what `first`, a source with the same `pass_key`, has loaded and checked, instead of doing it again."""

    def shards(self, directory: Path, index: int, sources: Sequence["ActivationSource"]) -> list[Float[Tensor, "N _"]]:
        """`shard` of each of `sources`, which have this one's `pass_key`, from one pass."""
        return [source.shard(directory, index) for source in sources]

    def eval_chunks(
        self, directory: Path, index: int, sources: Sequence["ActivationSource"], means: Sequence[Float[Tensor, " _"]]
    ) -> list[EvalChunk]:
        """`eval_chunk` of each of `sources`, which have this one's `pass_key`, from one pass."""
        return [source.eval_chunk(directory, index, mean) for source, mean in zip(sources, means, strict=True)]

    def heldout(self, directory: Path, index: int) -> HeldOut:
        """The activations of one held-out chunk and their text, without the scores that `eval_chunk` adds."""
        return HeldOut(self.eval_chunk(directory, index, torch.zeros(self.d_out or self.d_in)).x)

    @property
    def text_in_words(self) -> str:
        """How text is read, and which tokens count, where there is something to say of it."""
        return ""

    @property
    def activations_dtype(self) -> str:
        """Precision that shards are stored in: float32, float16 or bfloat16."""
        return "float32"

    @property
    def bytes_per_token(self) -> int:
        """Disk for the stored activations of one token."""
        return self.width * getattr(torch, self.activations_dtype).itemsize

    @property
    def model_bytes(self) -> int:
        """Memory of the model that makes the activations, on each of its GPUs where there are several; 0 where there is no model."""
        return 0

    @property
    def flops_per_token(self) -> float:
        """Floating-point operations that make the activations of one token; 0 where they are few or not known."""
        return 0.0

    @property
    def shard_tokens(self) -> int:
        """Tokens of a training shard, at most; the last one has fewer. Known before `prepare`."""
        return 65_536

    @property
    def chunk_tokens(self) -> int:
        """Tokens of a held-out chunk, at most; the last one has fewer. Known before `prepare`."""
        return 4_096

    def fingerprint(self) -> str:
        """Hash of the content that decides the activations (weights, text, settings), cheap enough to compute at each launch.

        By default that of the config and of the files it names: moved files have the same one, edited files another.
        """
        content = self.config.model_dump()
        hashes = [_take_hash(content, path) for path in self.path_fields]
        text = self.config.model_dump_json() if not hashes else json.dumps([content, hashes], sort_keys=True)
        return hashlib.sha256(f"{self.config.source} {self.format_version} {text}".encode()).hexdigest()

    @final
    def activations_hash(self) -> str:
        """`fingerprint`, and for a source from a plugin the plugin's checksum: an edited source harvests again."""
        return self._with_plugin(self.fingerprint())

    @final
    def eval_hash(self, directory: Path) -> str:
        """`eval_fingerprint`, as `activations_hash`."""
        return self._with_plugin(self.eval_fingerprint(directory))

    def _with_plugin(self, fingerprint: str) -> str:
        checksums = plugins.checksums_of([type(self)])
        return hashlib.sha256(json.dumps([fingerprint, checksums]).encode()).hexdigest() if checksums else fingerprint

    def check(self) -> None:
        """Find what is wrong with the config before any work: missing files, unknown hook point, columns, splits.

        Raises:
            ConfigError: with every problem found, one a line.
        """
        names = {".".join(path): functools.reduce(getattr, path, self.config) for path in self.path_fields}
        hub = {key for key, name in names.items() if key.rpartition(".")[2] in self.hub_fields and name is not None and is_hub_name(name)}
        missing = {key: name for key, name in names.items() if name is not None and key not in hub and existing(name) is None}
        if problems := [f"`{key}` must exist, but got {name!r}. Correct the path." for key, name in missing.items()]:
            raise ConfigError("\n".join(problems))

    def prepare(self, directory: Path) -> None:  # noqa: B027 - a default, not a missing decorator
        """Do once what all shards need (tokenize the text) and leave it in `directory`; nothing where it is there already.

        Raises:
            ConfigError: there is too little text for the tokens requested.
        """

    def prepare_as(self, directory: Path, first: Path) -> None:
        """`prepare`, where a source with the same `pass_key` has prepared the directory `first`."""
        self.prepare(directory)

    @classmethod
    def expanded(cls, axes: Mapping[tuple[str, ...], Sequence[Any]]) -> dict[tuple[str, ...], list[Any]]:
        """Axes of a definition whose values stand for others, with those in their place: a pattern of hook points.

        Args:
            axes: path of a field of `Config` -> its values, not validated yet.

        Raises:
            ConfigError: a value stands for nothing.
        """
        return {}

    def n_shards(self, directory: Path) -> int:
        """Number of training shards, after `prepare`."""
        return -(-self.config.train_tokens // self.shard_tokens)

    def n_eval_chunks(self, directory: Path) -> int:
        """Number of held-out chunks, after `prepare`."""
        return -(-self.config.eval_tokens // self.chunk_tokens)

    def train_span(self, index: int) -> tuple[int, int]:
        """First training token of shard `index`, and the one after its last, where shards are stretches of `shard_tokens`."""
        return index * self.shard_tokens, min((index + 1) * self.shard_tokens, self.config.train_tokens)

    def eval_span(self, index: int) -> tuple[int, int]:
        """First held-out token of chunk `index`, and the one after its last, where chunks are stretches of `chunk_tokens`."""
        return index * self.chunk_tokens, min((index + 1) * self.chunk_tokens, self.config.eval_tokens)

    @classmethod
    def why_no_text_batch(cls, config: Any) -> str:
        """Why `text_batch` makes nothing of a source with this config, an instance of `Config`, as `name=value`; empty: it does."""
        return f"source={config.source!r}, which has no language model"

    def text_batch(self, directory: Path, rows: Sequence[TextRows]) -> TextBatch:
        """Some training tokens in their windows, where `why_no_text_batch` has no reason against it."""
        raise NotImplementedError(type(self).__name__)

    def eval_fingerprint(self, directory: Path) -> str:
        """Hash of the held-out tokens and of what makes their activations, after `prepare`."""
        return self.fingerprint()

    def facts(self) -> dict[str, float]:
        """Numbers about the activations that go into every record, so that a reader can be warned: `d_vocab` of a language model."""
        return {}

    def is_same_hook_point(self, ours: str, other: str) -> bool:
        """Whether two names are of one hook point.

        Args:
            ours: as `export_metadata` has it.
            other: as another program may write it.
        """
        return ours == other

    def export_metadata(self) -> dict[str, object]:
        """Where an exported SAE belongs, in SAELens' metadata keys (`model_name`, `hook_name`, ...)."""
        return {}


def _take_hash(content: dict[str, Any], field: Sequence[str]) -> str:
    """Remove the file or directory that `field` names from a config's fields. Returns the hash of its content, or a name on the Hub."""
    *sections, last = field
    if (name := functools.reduce(dict.__getitem__, sections, content).pop(last)) is None:
        return ""
    if (path := existing(name)) is None:
        return str(name)  # on the Hub
    return hash_files(sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path], path)


def source_of(config: Mapping[str, Any], device: str = "cpu", n_gpus: int = 1) -> ActivationSource:
    """The source of an ActivationsConfig in JSON form, as other processes are given it."""
    kind = SOURCES[config["source"]]
    source = kind(kind.Config.model_validate(config), device=device)
    source.n_gpus = n_gpus
    return source


def kept_source(config: Mapping[str, Any], device: str, n_gpus: int) -> ActivationSource:
    """`source_of`, which keeps the last one: the next job of a process, or its next trial, then finds the language model loaded."""
    return kept_sources([config], device, n_gpus)[0]


def kept_sources(configs: Sequence[Mapping[str, Any]], device: str, n_gpus: int) -> list[ActivationSource]:
    """Sources with one `pass_key`, beside the first of them; the last ones are kept."""
    return _kept_sources(tuple(json.dumps(config) for config in configs), device, n_gpus)


@functools.lru_cache(maxsize=1)
def _kept_sources(configs: tuple[str, ...], device: str, n_gpus: int) -> list[ActivationSource]:
    first, *others = [source_of(json.loads(config), device, n_gpus) for config in configs]
    for other in others:
        other.beside(first)
    return [first, *others]
