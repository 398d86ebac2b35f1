"""Sources of a module of any model: rows are what a PyTorch hook sees, and splices what one puts in."""

from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from sae_core.activations.iterator import IteratorStream
from sae_core.activations.module import ModuleActivations, ModuleSource, activations_of
from sae_core.errors import ConfigError

N_TRAIN, N_HELDOUT, T, D = 30, 14, 5, 6


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(D, 2 * D), nn.Linear(2 * D, D)

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return x + self.outer(self.inner(x).relu()), None


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head, self.unused = Block(), Block(), nn.Linear(D, 3), nn.Linear(1, 1)

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        h = self.second(self.first(x)[0])[0]
        return self.head(h.mean(dim=1))


class Activations(ModuleActivations):
    source: Literal["made up"] = "made up"
    masked: bool = False


class Source(ModuleSource):
    Config = Activations

    def load(self) -> nn.Module:
        torch.default_generator.manual_seed(0)
        return Model()

    def examples(self, part: str) -> Any:
        x = torch.randn(N_TRAIN if part == "train" else N_HELDOUT, T, D, generator=torch.Generator().manual_seed(len(part)))
        if not self.config.masked:
            return x
        return [{"x": row, "attention_mask": torch.arange(T) < 1 + i % T} for i, row in enumerate(x)]


def source(**fields: Any) -> Source:
    return Source(Activations(**{"hook_point": "first", "train_tokens": 100, "eval_tokens": 50, "batch_size": 4} | fields))


def hooked(model: nn.Module, path: str, x: Tensor, change: Any = None) -> tuple[Tensor, Tensor]:
    """Output of a model, and of a module in it as a plain PyTorch hook has it."""
    seen = []

    def hook(_: nn.Module, args: Any, output: Any) -> Any:
        value = output[0] if isinstance(output, tuple) else output
        seen.append(value)
        if change is None:
            return None
        return (change(value), *output[1:]) if isinstance(output, tuple) else change(value)

    handle = model.get_submodule(path).register_forward_hook(hook)
    output = model(x)
    handle.remove()
    return output, seen[0]


@pytest.mark.parametrize("path", ["first", "second.inner", "head"])
def test_rows_are_what_a_hook_sees(path: str) -> None:
    tokens = {"train_tokens": 20, "eval_tokens": 10} if path == "head" else {}
    made = source(hook_point=path, **tokens)
    made.check()
    _, value = hooked(made.model, path, made.examples("train"))
    assert torch.allclose(made.shard(Path(), 0), value.reshape(-1, value.shape[-1])[: made.config.train_tokens], atol=1e-6)
    chunk = made.eval_chunk(Path(), 0, torch.zeros(made.d_in))
    _, value = hooked(made.model, path, made.examples("heldout"))
    assert torch.allclose(chunk.x, value.reshape(-1, value.shape[-1])[: made.config.eval_tokens], atol=1e-6)
    assert chunk.documents is not None and chunk.documents.tolist() == [i // (chunk.x.shape[0] // 10) for i in range(len(chunk.x))]


def test_positions_that_do_not_count_are_neither_read_nor_replaced() -> None:
    made = source(masked=True, train_tokens=60, eval_tokens=20)
    made.check()
    x = torch.stack([example["x"] for example in made.examples("train")])
    keep = torch.stack([example["attention_mask"] for example in made.examples("train")])
    _, value = hooked(made.model, "first", x)
    assert torch.allclose(made.shard(Path(), 0), value[keep][:60], atol=1e-6)
    batch = next(made.batches("heldout"))
    expected, _ = hooked(made.model, "first", batch["x"], lambda value: torch.where(batch["attention_mask"][..., None], 2 * value, value))
    assert torch.allclose(made.run(batch, lambda rows: 2 * rows), expected, atol=1e-6)
    assert torch.equal(made.run(batch, lambda rows: rows), made.run(batch))


def test_pairs_are_spliced_at_hook_out() -> None:
    made = source(hook_point="first.inner@input", hook_out="second")
    made.check()
    assert (made.d_in, made.d_out, made.width) == (D, D, 2 * D)
    x = made.examples("heldout")
    _, target = hooked(made.model, "second", x)
    chunk = made.eval_chunk(Path(), 0, torch.zeros(D))
    assert torch.equal(chunk.x, x.reshape(-1, D)[:50]) and chunk.target is not None
    assert torch.allclose(chunk.target, target.reshape(-1, D)[:50], atol=1e-6)
    expected, _ = hooked(made.model, "second", x[:4], lambda _: 3 * x[:4])
    assert torch.allclose(made.run(x[:4], lambda rows: 3 * rows), expected, atol=1e-6)


def test_sources_of_one_model_share_a_pass() -> None:
    alone = [source(hook_point=path) for path in ("first", "second.inner")]
    first, other = [source(hook_point=path) for path in ("first", "second.inner")]
    assert first.pass_key == other.pass_key != source(batch_size=5).pass_key
    other.beside(first)
    assert other.model is first.model
    for shard, one in zip(first.shards(Path(), 0, [first, other]), alone, strict=True):
        assert torch.equal(shard, one.shard(Path(), 0))


def test_what_cannot_be_read_is_refused_before_any_work() -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"hook_point": "frist"}, "a module must be one of .* but got 'frist'. Did you mean 'first'"),
        ({"hook_point": "first@middle"}, "but got 'first@middle'"),
        ({"hook_out": "first"}, "but got 'first' twice"),
        ({"hook_point": "unused"}, "but got 0 tensors at 'unused@output'"),
        ({"train_tokens": 151}, "got train_tokens=151 and about 150 positions in 30 examples"),
        ({"eval_tokens": 71}, "got eval_tokens=71 and about 70 positions in 14 examples"),
    ]
    for fields, problem in cases:
        with pytest.raises(ConfigError, match=problem):
            source(**fields).check()
    with pytest.raises(ConfigError, match="got train_tokens=100 and about 90 positions in 30"):
        source(masked=True).shard(Path(), 0)


def test_a_model_in_memory_and_batches_of_inputs_make_a_stream() -> None:
    made = source(masked=True)
    batches = list(made.batches("train"))
    expected = torch.cat([made.rows_of(batch)[0] for batch in batches])
    stream = IteratorStream(
        activations_of(made.model.train(), "first", batches), batch_size=10, buffer_rows=90, normalize_activations="none"
    )
    assert not made.model.training
    read = torch.cat([batch for batch, _ in zip(stream.batches(), range(9), strict=False)])
    assert torch.equal(read.sort(dim=0).values, expected.sort(dim=0).values)
    pairs = activations_of(made.model, "first", lambda: iter(batches), hook_out="second.inner")
    assert [part.shape for part in next(iter(pairs()))] == [(10, D), (10, 2 * D)]
    with pytest.raises(ConfigError, match="but got 'third'"):
        activations_of(made.model, "third", batches)
