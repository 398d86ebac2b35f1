"""Activations of any PyTorch model on any examples: a vision transformer on images, a classifier on texts, a protein model.

A source of one's own derives from `ModuleSource` and says two things, its model and its examples; the definition names a module of the
model. Everything else is here: batches, hooks, shards, held-out chunks, several modules from one pass, and the model run with a
reconstruction in place of the activations, for a measure of its task.
Shape letters: E examples in a batch, T positions of an example (tokens, patches, frames), N rows: the positions that count.
"""

import json
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sae_core.activations.language_model.places import SIDES, Place, hooked, path_and_side
from sae_core.activations.source import ActivationSource, EvalChunk
from sae_core.config.base import Count
from sae_core.config.run import ActivationsConfig
from sae_core.errors import ConfigError, UnknownNameError, border
from sae_core.watchdog import beat

Part = Literal["train", "heldout"]


@runtime_checkable
class Examples(Protocol):
    """A list, an array, a tensor, or a dataset of PyTorch or Hugging Face."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...


Reconstruct = Callable[[Float[Tensor, "N d_in"]], Float[Tensor, "N d_out"]]


class ModuleActivations(ActivationsConfig):
    """A module of a model. A source of one's own adds the fields that its model and its examples need."""

    hook_point: str
    """Path of the module, as `model.named_modules()` shows it, for its output; with `@input` behind it, for its first input."""
    hook_out: str | None = None
    """For transcoders: another such place, reached later, whose activations are reconstructed from those at `hook_point`."""
    batch_size: Count = 32
    """Examples that the model reads at a time."""


class ModuleSource(ActivationSource):
    """Rows are the activations of a module: one for each position of each example that counts."""

    offers = frozenset({"documents"})
    config: ModuleActivations

    @abstractmethod
    def load(self) -> nn.Module:
        """The model, with its weights."""

    @abstractmethod
    def examples(self, part: Part) -> Examples:
        """All examples to train on, or all that are held out. Each is what `collate` takes, e.g. a tensor or a dict of tensors."""

    def collate(self, examples: Sequence[Any]) -> Any:
        """Some examples as a batch: a tensor, or a mapping of tensors. Here they are stacked."""
        return torch.utils.data.default_collate(list(examples))

    def forward(self, batch: Any) -> Any:
        """Run the model on a batch, which is on its device."""
        return self.model(**batch) if isinstance(batch, Mapping) else self.model(batch)

    def keep(self, batch: Any) -> Bool[Tensor, "E T"] | None:
        """Which positions count; None: all. Here those of the attention mask, where the batch has one."""
        mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
        return None if mask is None else mask.bool()

    @cached_property
    def model(self) -> nn.Module:
        """The model, ready to run."""
        with border(f"the model of `activations` must load, but {self.config.source!r} did not load it", "Correct its fields."):
            return self.load().eval().requires_grad_(False).to(self.device)

    def batches(self, part: Part) -> Iterator[Any]:
        """All examples of a part in order, in batches on the model's device: what a measure of the task runs over."""
        yield from self._batches(part, range(len(self._examples(part))))

    @torch.no_grad()
    def run(self, batch: Any, reconstruct: Reconstruct | None = None) -> Any:
        """What `forward` returns for a batch.

        Args:
            reconstruct: makes of activations, e.g. an SAE, what takes the place of those at the positions that count. Those at `hook_point`
                are given to it, and those there, or at `hook_out`, are replaced.
        """
        beat()
        if reconstruct is None:
            return self.forward(batch)
        seen: list[Tensor] = []

        def see(value: Tensor) -> None:
            seen.append(self._rows(value, batch).float())

        def put_in(value: Tensor) -> Tensor:
            x = seen.pop() if seen else self._rows(value, batch).float()
            changed = value.reshape(len(value), -1, value.shape[-1]).clone()
            changed[self._kept(value, batch)] = reconstruct(x).to(value)
            return changed.view(value.shape)

        places = self._places
        with hooked(self.model, {places[0]: see, places[1]: put_in} if len(places) > 1 else {places[0]: put_in}):
            return self.forward(batch)

    def rows_of(self, batch: Any) -> list[Float[Tensor, "N _"]]:
        """Activations at `hook_point`, and at `hook_out` where there is one, of the positions that count."""
        values = self._values(batch, self._places)
        return [self._rows(values[place], batch).float() for place in self._places]

    @property
    def d_in(self) -> int:
        return self._widths[0]

    @property
    def d_out(self) -> int | None:
        return self._widths[1] if len(self._widths) > 1 else None

    @property
    def model_bytes(self) -> int:
        return sum(parameter.nbytes for parameter in self.model.parameters())

    @property
    def pass_key(self) -> str | None:
        fields = self.config.model_dump(mode="json", exclude={"hook_point", "hook_out"})
        return json.dumps(fields, sort_keys=True)

    def beside(self, first: ActivationSource) -> None:
        assert isinstance(first, ModuleSource), f"{first=}"
        self.__dict__["model"], self.__dict__["_parts"] = first.model, first._parts

    def check_places(self) -> None:
        """Make sure that the model has the places.

        Raises:
            ConfigError: it has not.
        """
        modules = {name for name, _ in self.model.named_modules() if name}
        for name in (field for field in (self.config.hook_point, self.config.hook_out) if field is not None):
            path, side = path_and_side(name)
            if side not in SIDES:
                raise ConfigError(f"the side of a hook point must be one of {list(SIDES)}, but got {name!r}. Correct it.")
            if path not in modules:
                raise UnknownNameError.of("`hook_point` and `hook_out`: the path of a module", path, modules)
        if self.config.hook_out == self.config.hook_point:
            raise ConfigError(
                f"`hook_out` must be another place than `hook_point`, but got {self.config.hook_point!r} twice. Leave `hook_out` out to "
                "train SAEs."
            )

    def check(self) -> None:
        super().check()
        self.check_places()
        _, n_positions = self._first_read
        asked: dict[Part, int] = {"train": self.config.train_tokens, "heldout": self.config.eval_tokens}
        for part, needed in asked.items():
            n_examples = len(self._examples(part))
            if n_positions is not None and n_examples * n_positions < needed:
                raise ConfigError(self._too_few(part, n_examples * n_positions, needed))

    def shard(self, directory: Path, index: int) -> Float[Tensor, "N width"]:
        return self.shards(directory, index, [self])[0]

    def shards(self, directory: Path, index: int, sources: Sequence[ActivationSource]) -> list[Float[Tensor, "N _"]]:
        start, stop = self.train_span(index)
        return [rows.cpu() for rows in self._read("train", index, self.n_shards(directory), stop - start, sources)[0]]

    def eval_chunk(self, directory: Path, index: int, mean: Float[Tensor, " d_out"]) -> EvalChunk:
        return self.eval_chunks(directory, index, [self], [mean])[0]

    def eval_chunks(
        self, directory: Path, index: int, sources: Sequence[ActivationSource], means: Sequence[Float[Tensor, " _"]]
    ) -> list[EvalChunk]:
        start, stop = self.eval_span(index)
        read, documents = self._read("heldout", index, self.n_eval_chunks(directory), stop - start, sources)
        parts = [rows.split([source.d_in, source.d_out or 0], dim=1) for rows, source in zip(read, sources, strict=True)]
        return [EvalChunk(x, target=target if target.shape[1] else None, documents=documents) for x, target in parts]

    def export_metadata(self) -> dict[str, object]:
        out = {} if self.config.hook_out is None else {"hook_name_out": self.config.hook_out}
        return {"hook_name": self.config.hook_point, **out}

    def _read(
        self, part: Part, index: int, n_parts: int, n_rows: int, sources: Sequence[ActivationSource]
    ) -> tuple[list[Float[Tensor, "N _"]], Int[Tensor, " N"]]:
        """Rows of each source of every `n_parts`-th example, from `index` on, until there are `n_rows`; and the example of each.

        Raises:
            ConfigError: there are fewer.
        """
        examples = range(index, len(self._examples(part)), n_parts)
        rows: list[list[Tensor]] = [[] for _ in sources]
        documents: list[Tensor] = []
        n_read = 0
        places = [source._places for source in sources if isinstance(source, ModuleSource)]
        for number, batch in enumerate(self._batches(part, examples)):
            values = self._values(batch, [place for some in places for place in some])
            for found, some in zip(rows, places, strict=True):
                found.append(torch.cat([self._rows(values[place], batch).float() for place in some], dim=1))
            kept = self._kept(values[places[0][0]], batch)
            of_batch = torch.tensor(examples[number * self.config.batch_size :][: len(kept)], device=kept.device)
            documents.append(of_batch[:, None].expand(kept.shape)[kept])
            n_read += len(documents[-1])
            if n_read >= n_rows:
                return [torch.cat(found)[:n_rows] for found in rows], torch.cat(documents)[:n_rows]
        raise ConfigError(self._too_few(part, n_read * n_parts, n_rows * n_parts))

    def _too_few(self, part: Part, n_rows: int, needed: int) -> str:
        field = "train_tokens" if part == "train" else "eval_tokens"
        return (
            f"`{field}` must be at most the positions of the examples, but got {field}={needed} and about {n_rows} positions in "
            f"{len(self._examples(part))} examples. Lower it, or give more examples."
        )

    def _batches(self, part: Part, indices: Sequence[int]) -> Iterator[Any]:
        examples, size = self._examples(part), self.config.batch_size
        for start in range(0, len(indices), size):
            yield _on_device(self.collate([examples[index] for index in indices[start : start + size]]), self.device)

    @torch.no_grad()
    def _values(self, batch: Any, places: Sequence[Place]) -> dict[Place, Tensor]:
        """Activations at each place, the first axis that of examples.

        Raises:
            ConfigError: a place is not reached exactly once, or has no vector per position.
        """
        seen: dict[Place, list[Tensor]] = {place: [] for place in places}
        beat()
        with hooked(self.model, {place: found.append for place, found in seen.items()}):
            self.forward(batch)
        for place, found in seen.items():
            if len(found) != 1 or found[0].ndim < 2:
                what = f"{len(found)} tensors" if len(found) != 1 else f"a tensor of shape {list(found[0].shape)}"
                raise ConfigError(
                    f"a hook point must have one vector per position, in one pass through the model, but got {what} at {str(place)!r}. "
                    "Choose another module."
                )
        return {place: found[0] for place, found in seen.items()}

    def _rows(self, value: Tensor, batch: Any) -> Float[Tensor, "N d_in"]:
        return value.reshape(len(value), -1, value.shape[-1])[self._kept(value, batch)]

    def _kept(self, value: Tensor, batch: Any) -> Bool[Tensor, "E T"]:
        """Which positions of a value count. One without positions counts as it is."""
        shape = (len(value), value[0].numel() // value.shape[-1])
        keep = self.keep(batch) if value.ndim > 2 else None
        if keep is None:
            return torch.ones(shape, dtype=torch.bool, device=value.device)
        if keep.shape != shape:
            raise ConfigError(
                f"`keep` must say of each position whether it counts, but got {list(keep.shape)} for activations of {list(value.shape)}. "
                "Replace it in the source."
            )
        return keep.to(value.device)

    def _examples(self, part: Part) -> Examples:
        if part not in self._parts:
            with border(f"the examples of {self.config.source!r} must be readable", "Correct the fields that name them."):
                self._parts[part] = self.examples(part)
                if not len(self._parts[part]):
                    raise ConfigError(f"there must be examples, but {self.config.source!r} has none for {part!r}. Check its data.")
        return self._parts[part]

    @cached_property
    def _parts(self) -> dict[Part, Examples]:
        return {}

    @cached_property
    def _places(self) -> list[Place]:
        names = [self.config.hook_point] + ([] if self.config.hook_out is None else [self.config.hook_out])
        return [Place(*path_and_side(name)) for name in names]

    @property
    def _widths(self) -> list[int]:
        """Width of the activations, and of the target."""
        return self._first_read[0]

    @cached_property
    def _first_read(self) -> tuple[list[int], int | None]:
        """Widths of the activations of the first training examples, and positions of each; None where not all of them need count."""
        with border(f"the model of {self.config.source!r} must read its examples", "Correct `collate` or `forward` of the source."):
            batch = next(self.batches("train"))
            values = self._values(batch, self._places)
        kept = self._kept(values[self._places[0]], batch)
        return [values[place].shape[-1] for place in self._places], kept.shape[1] if self.keep(batch) is None else None


def activations_of(
    model: nn.Module, hook_point: str, inputs: Callable[[], Iterable[Any]] | Iterable[Any], *, hook_out: str | None = None
) -> Callable[[], Iterator[Tensor | tuple[Tensor, Tensor]]]:
    """What `IteratorStream` takes, of a model that is in memory: the activations of a module on batches of inputs, in their order.

    Args:
        model: on its device; it is put into evaluation mode.
        hook_point: as in `ModuleActivations`.
        inputs: batches that the model takes, tensors or mappings of tensors to be called with, or a function that makes them; the same
            ones each time. Positions that an `attention_mask` among them leaves out are left out.
        hook_out: as in `ModuleActivations`: pairs are made, for transcoders.

    Raises:
        ConfigError: when it is iterated over: as `ModuleSource` does.
    """
    source = _InMemory(
        ModuleActivations(source="in memory", hook_point=hook_point, hook_out=hook_out, train_tokens=1, eval_tokens=1),
        device=str(next((parameter.device for parameter in model.parameters()), torch.device("cpu"))),
    )
    source.__dict__["model"] = model.eval()
    source.check_places()

    def make() -> Iterator[Tensor | tuple[Tensor, Tensor]]:
        for inputs_of_batch in inputs() if callable(inputs) else inputs:
            rows = source.rows_of(_on_device(inputs_of_batch, source.device))
            yield rows[0] if len(rows) == 1 else (rows[0], rows[1])

    return make


class _InMemory(ModuleSource):
    """A model that is there already, without examples of its own."""

    def load(self) -> nn.Module:
        raise ValueError("the model of this source is set from outside.")

    def examples(self, part: Part) -> Examples:
        raise ValueError("this source has no examples.")


def _on_device(batch: Any, device: str) -> Any:
    if isinstance(batch, Mapping):
        return {name: _on_device(value, device) for name, value in batch.items()}
    return batch.to(device) if isinstance(batch, Tensor) else batch
