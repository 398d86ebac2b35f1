"""Activations of a language model on real text: the main source.

With a `hook_out` it is a source of pairs, for transcoders: what is at the hook point, and what is at `hook_out` on the same tokens. With
several hook points together, activations are those of each side by side, for crosscoders.
`prepare` leaves the tokens of all windows (`TokenFile`), those for training in a fixed random order, so that each shard is a sample of the
whole text. Everything else runs the model on a slice of them. Sources that differ in nothing but their hook point are read in one pass.
Shape letters: W windows, T positions in a window, N tokens that are not special, d_in width of the hook point.
"""

import functools
import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_core.activations.language_model import dataset, fingerprints, loading
from sae_core.activations.language_model.checks import check_context, check_pretokenized, why_no_gradient
from sae_core.activations.language_model.data_config import DataConfig
from sae_core.activations.language_model.engine import HookedModel
from sae_core.activations.language_model.high_norm import NormLimits
from sae_core.activations.language_model.hook_points import expanded_hook_points, width_written, widths_read
from sae_core.activations.language_model.loading import ModelConfig
from sae_core.activations.language_model.model_spec import ModelSpec, model_spec
from sae_core.activations.language_model.splice import CleanText
from sae_core.activations.language_model.token_file import TokenFile
from sae_core.activations.language_model.train_text import TextWindows, rows_of_windows, text_batch
from sae_core.activations.language_model.windows import Windows, make_windows, text_in_words, window_maker
from sae_core.activations.source import ActivationSource, EvalChunk, HeldOut
from sae_core.activations.text_batch import TextBatch, TextRows
from sae_core.config.run import SOURCES, ActivationsConfig
from sae_core.errors import ConfigError
from sae_core.seeds import seed_of
from sae_core.watchdog import expected

logger = logging.getLogger(__name__)

SHARD_TOKENS = 65_536
"""Tokens in a training shard: 512 windows of 128."""
MODEL_TOKENS = {"cpu": 4_096, "cuda": 32_768}
"""Tokens the model runs on at a time in a harvest."""
CHUNK_WINDOWS = 32
"""Windows in a held-out chunk, unless the vocabulary makes that too much."""
CHUNK_LOGITS = 2**27
"""Most logits that a held-out chunk of several windows keeps in memory (512 MiB)."""


class LanguageModelActivations(ActivationsConfig):
    """A hook point of a language model, and text to run it on."""

    source: Literal["language_model"] = "language_model"
    model: ModelConfig
    data: DataConfig


@SOURCES.register("language_model")
class LanguageModelSource(ActivationSource):
    """Activations of a language model at a hook point, over text. The model is loaded when it is first needed, and kept."""

    Config = LanguageModelActivations
    offers = frozenset({"splice", "clean", "zero_ablated", "mean_ablated", "documents", "predicted_documents"})
    path_fields = (("model", "name"), ("data", "dataset"))
    sections = ("model", "data")
    target_field = ("model", "hook_out")
    paired_fields: ClassVar[Mapping[tuple[str, ...], tuple[str, ...]]] = {("model", "hook_out"): ("model", "hook_point")}
    format_version = 2
    config: LanguageModelActivations

    _first: "LanguageModelSource | None" = None
    """The source that has loaded the model, and checked all but the hook point."""

    @property
    def text_in_words(self) -> str:
        return text_in_words(self.config.data)

    @property
    def activations_dtype(self) -> str:
        return self.config.data.activations_dtype

    @property
    def pass_key(self) -> str:
        model = self.config.model.model_dump(exclude={"hook_point", "hook_out"})
        return fingerprints.hash_of({**self.config.model_dump(mode="json"), "model": model})

    def beside(self, first: ActivationSource) -> None:
        assert isinstance(first, LanguageModelSource), f"{first=}"
        self._first = first

    @property
    def d_in(self) -> int:
        return sum(self._widths.values())

    @property
    def parts(self) -> dict[str, int]:
        return self._widths if len(self._widths) > 1 else {}

    @cached_property
    def _widths(self) -> dict[str, int]:
        return widths_read(self._spec, self.config.model.read_at)

    @cached_property
    def d_out(self) -> int | None:
        model = self.config.model
        return None if model.hook_out is None else width_written(self._spec, model.hook_point, model.hook_out)

    @property
    def model_bytes(self) -> int:
        return int(self._spec.n_weights * self.config.model.bytes_per_weight) // max(1, self.n_gpus)

    @property
    def flops_per_token(self) -> float:
        return max(self._spec.flops_below(hook_point) for hook_point in self.config.model.hook_points)

    @property
    def shard_tokens(self) -> int:
        return self._shard_windows * self.config.model.context_size

    @property
    def chunk_tokens(self) -> int:
        windows = CHUNK_LOGITS // (self.config.model.context_size * self._spec.d_vocab)
        return min(max(1, windows), CHUNK_WINDOWS) * self.config.model.context_size

    @classmethod
    def expanded(cls, axes: Mapping[tuple[str, ...], Sequence[Any]]) -> dict[tuple[str, ...], list[Any]]:
        return expanded_hook_points(axes)

    def check(self) -> None:
        problems: list[str] = []

        def collect(*requirements: Callable[[], object]) -> None:
            for requirement in requirements:
                try:
                    requirement()
                except ConfigError as error:
                    problems.append(str(error))

        collect(lambda: self._spec)
        d_vocab, is_first = None, self._first is None  # else it has checked the rest
        if not problems:
            d_vocab = self._spec.d_vocab
            if is_first:
                collect(lambda: check_context(self.config.model, self.config.data, self._spec.n_ctx))
            collect(lambda: self.d_in, lambda: self.d_out)
            if is_first:
                collect(lambda: window_maker(self.config.model, self.config.data))
                collect(lambda: check_pretokenized(self.config.model, self.config.data))
                collect(lambda: loading.check_packages(self.config.model))
                collect(lambda: loading.check_weights(self.config.model.name, self._spec.model))
        problems += dataset.problems(self.config.data, d_vocab) if self._first is None else []
        if problems:
            raise ConfigError("\n".join(dict.fromkeys(problems)))

    def facts(self) -> dict[str, float]:
        return {"d_vocab": float(self._spec.d_vocab)}

    def fingerprint(self) -> str:
        return fingerprints.of_activations(
            self.config.model, self.config.data, (self.config.train_tokens, self.config.eval_tokens), self.format_version
        )

    def eval_fingerprint(self, directory: Path) -> str:
        return fingerprints.of_held_out(self.config.model, self.config.data, TokenFile(directory), self.format_version)

    def prepare(self, directory: Path) -> None:
        tokens = TokenFile(directory)
        if tokens.path.exists():
            return
        made = self.windows()
        order = torch.randperm(len(made.train.windows), generator=torch.Generator().manual_seed(seed_of("windows")))
        chunk_windows = self.chunk_tokens // self.config.model.context_size
        special_ids = torch.tensor(made.special_ids, dtype=torch.int32)
        counts = {"train_counts": made.train.counts[order], "heldout_counts": made.heldout.counts}
        heldout = made.heldout
        tokens.write(made.train.windows[order], heldout.windows, heldout.documents, special_ids, chunk_windows=chunk_windows, **counts)

    def windows(self) -> Windows:
        """The windows of both parts, in the order of the text, after `check`.

        Raises:
            ConfigError: there is too little text for the tokens requested, or a token that the model does not have.
        """
        n_tokens = {"train_tokens": self.config.train_tokens, "eval_tokens": self.config.eval_tokens}
        return make_windows(self.config.model, self.config.data, **n_tokens, d_vocab=self._spec.d_vocab)

    def prepare_as(self, directory: Path, first: Path) -> None:
        TokenFile(directory).copy_from(TokenFile(first))

    def n_shards(self, directory: Path) -> int:
        return -(-TokenFile(directory).n_windows("train") // self._shard_windows)

    @property
    def _shard_windows(self) -> int:
        return max(1, SHARD_TOKENS // self.config.model.context_size)

    def shard(self, directory: Path, index: int) -> Float[Tensor, "N d_in"]:
        return self.shards(directory, index, [self])[0]

    @torch.no_grad()
    def shards(self, directory: Path, index: int, sources: Sequence[ActivationSource]) -> list[Float[Tensor, "N _"]]:
        start = index * self._shard_windows
        tokens, keep = TokenFile(directory).windows("train", start, self._shard_windows)
        model = self._model_at(sources)
        rows = self._read(model, tokens, keep, on="cpu")
        where = f"training windows {start} to {start + len(tokens) - 1}"
        for hook_point, x in zip((name for source in sources for name in source.config.model.hook_points), rows, strict=True):
            self._check_finite("activations", x, where, hook_point)
        if index == 0:  # what is wrong above the hook points is found before anything is trained
            above = model.run(tokens[:1].to(self.device))[1][0]
            self._check_finite("logits", model.logits(above), "the first training window", self.config.model.hook_point)
        order = torch.randperm(len(rows[0]), generator=torch.Generator().manual_seed(seed_of("shard", index)))
        at_each = iter(rows)
        found = []
        for source in sources:
            parts = [next(at_each) for _ in source.config.model.hook_points]
            x = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
            low = self._norms.low_rows(source.config.model.read_at, directory, parts)
            chosen = order if low is None else order[low[order]]
            found.append(torch.nn.functional.embedding(chosen, x))  # whole rows: twice as fast as x[chosen]
        return found

    def _model_at(self, sources: Sequence[ActivationSource]) -> HookedModel:
        """The model, at the hook points of these sources; of a source of pairs at its input and then its output."""
        return self.model.at([self._spec.place(name) for source in sources for name in source.config.model.hook_points])

    def _read(self, model: HookedModel, tokens: Int[Tensor, "W T"], keep: Bool[Tensor, "W T"], on: str) -> list[Float[Tensor, "N _"]]:
        """Activations at the positions kept, at each hook point, on a device."""
        at_a_time = max(1, MODEL_TOKENS[torch.device(self.device).type] // tokens.shape[1])
        parts: list[list[Tensor]] = [[] for _ in model.places]
        for some, some_keep in zip(tokens.split(at_a_time), keep.split(at_a_time), strict=True):
            for part, x in zip(parts, model.read(some.to(self.device)), strict=True):
                part.append(x[some_keep.to(self.device)].float().to(on))
        return [torch.cat(part) for part in parts]

    @cached_property
    def _norms(self) -> NormLimits:
        def read(hook_point: str, tokens: Int[Tensor, "W T"], keep: Bool[Tensor, "W T"]) -> Float[Tensor, "N d_in"]:
            return self._read(self.model.at([self._spec.place(hook_point)]), tokens, keep, on="cpu")[0]

        return NormLimits(self.config.data.exclude_high_norm, read)

    def n_eval_chunks(self, directory: Path) -> int:
        tokens = TokenFile(directory)
        return -(-tokens.n_windows("heldout") // tokens.chunk_windows)

    def eval_chunk(self, directory: Path, index: int, mean: Float[Tensor, " d_out"]) -> EvalChunk:
        return self.eval_chunks(directory, index, [self], [mean])[0]

    def eval_chunks(
        self, directory: Path, index: int, sources: Sequence[ActivationSource], means: Sequence[Float[Tensor, " _"]]
    ) -> list[EvalChunk]:
        file = TokenFile(directory)
        start = index * file.chunk_windows
        tokens, keep = file.windows("heldout", start, file.chunk_windows)
        where, documents = f"held-out windows {start} to {start + len(tokens) - 1}", file.documents(start, len(tokens))
        if self.config.data.exclude_high_norm is None:
            return self._chunks(tokens, keep, documents, where, sources, means)
        # Each source leaves out other tokens, so the unchanged run is scored for each.
        return [
            self._chunks(tokens, self._norms.low(source.config.model.read_at, directory, tokens, keep), documents, where, [source], [mean])[
                0
            ]
            for source, mean in zip(sources, means, strict=True)
        ]

    def _chunks(
        self,
        tokens: Int[Tensor, "W T"],
        keep: Bool[Tensor, "W T"],
        documents: Int[Tensor, "W T"],
        where: str,
        sources: Sequence[ActivationSource],
        means: Sequence[Float[Tensor, " _"]],
    ) -> list[EvalChunk]:
        """Chunks of these windows, at the positions kept, for each source."""
        clean = CleanText(self._model_at(sources), tokens.to(self.device), keep.to(self.device))
        chunks, numbers = [], itertools.count()
        for source, mean in zip(sources, means, strict=True):
            model = source.config.model
            read = clean.at(*(next(numbers) for _ in model.read_at))
            text = clean.at(next(numbers)) if model.hook_out else read  # where reconstructions go
            for some, name in ((read, model.hook_point), (text, model.hook_points[-1])):
                self._check_finite("activations", some.x, where, name)
            self._check_finite("cross-entropies", text.clean.ce, where, model.hook_points[-1])
            chunks.append(
                EvalChunk(
                    read.x,
                    text.splice,
                    text.clean,
                    text.zero_ablated(),
                    text.mean_ablated(mean),
                    documents=documents[keep],
                    predicted_documents=documents[:, :-1][keep[:, :-1]],  # the last position of a window has no next token
                    target=text.x if model.hook_out else None,
                    parts=source.parts or None,
                )
            )
        return chunks

    @classmethod
    def why_no_text_batch(cls, config: LanguageModelActivations) -> str:
        return why_no_gradient(config.model)

    def text_batch(self, directory: Path, rows: Sequence[TextRows]) -> TextBatch:
        windows = [rows_of_windows(*self._shard_text(directory, some.shard), some) for some in rows]
        return text_batch(self._model_at([self]), windows, self.device, has_target=self.config.model.hook_out is not None)

    @cached_property
    def _shard_text(self) -> Callable[[Path, int], TextWindows]:
        """Windows of a training shard, and their positions that count. Kept, since the model runs for them where norms are limited."""

        def read(directory: Path, index: int) -> TextWindows:
            tokens, keep = TokenFile(directory).windows("train", index * self._shard_windows, self._shard_windows)
            return tokens, self._norms.low(self.config.model.read_at, directory, tokens, keep)

        return functools.lru_cache(maxsize=2)(read)

    def special_ids(self, directory: Path) -> list[int]:
        """Tokens that do not count, after `prepare`."""
        return TokenFile(directory).special_ids

    @torch.no_grad()
    def heldout(self, directory: Path, index: int) -> HeldOut:
        file = TokenFile(directory)
        start = index * file.chunk_windows
        tokens, keep = file.windows("heldout", start, file.chunk_windows)
        keep = self._norms.low(self.config.model.read_at, directory, tokens, keep)
        return HeldOut(torch.cat(self._read(self.model, tokens, keep, on=self.device), dim=1), tokens, keep)

    def _check_finite(self, what: str, values: Tensor, where: str, hook_point: str) -> None:
        """Make sure that all values are finite, or blame the model."""
        if bool(values.sum(dtype=torch.float64).isfinite()):  # in float64 it is finite if and only if every value is
            return
        model = self.config.model
        value, n_broken = float(values[~values.isfinite()][0]), int((~values.isfinite()).sum())
        too_narrow = f"Set `model.dtype: float32`: {model.dtype} may be too narrow for this model."
        raise ConfigError(
            f"{what} of the language model must be finite, but got {value} among {n_broken} of {values.numel()} values in {where}, at "
            f"{hook_point} of {model.name!r}. {too_narrow if model.dtype != 'float32' else 'Check the weights of the model.'}"
        )

    def is_same_hook_point(self, ours: str, other: str) -> bool:
        here, there = (names.split(loading.BESIDE) for names in (ours, other))  # several, of a crosscoder
        return len(here) == len(there) and all(map(self._spec.is_same, here, there))

    def export_metadata(self) -> dict[str, object]:
        model, data = self.config.model, self.config.data
        return {
            "model_name": model.name,
            "hook_name": model.hook_point,
            **({"hook_name_out": model.hook_out} if model.hook_out else {}),
            "hook_head_index": None,
            "context_size": model.context_size,
            "prepend_bos": model.prepend_bos,
            "model_class_name": "HookedTransformer",
            "model_from_pretrained_kwargs": {},
            "dataset_path": data.dataset,
            "exclude_special_tokens": data.exclude_special_tokens,
        }

    @cached_property
    def _spec(self) -> ModelSpec:
        return self._first._spec if self._first else model_spec(self.config.model.name)

    @cached_property
    def model_out(self) -> HookedModel:
        """The language model, cut where reconstructions are put in: at `hook_out` where there is one, else where activations are read."""
        return self.model.at([self._spec.place(self.config.model.hook_out)]) if self.config.model.hook_out else self.model

    @cached_property
    def model(self) -> HookedModel:
        """The language model, cut where activations are read: at the hook point, or at those of a crosscoder."""
        with expected(False):  # steps: large models take long
            model = loading.load_model(self.config.model, device=self.device, n_gpus=self.n_gpus)
        return HookedModel(model, self._spec.layout, *map(self._spec.place, self.config.model.read_at))
