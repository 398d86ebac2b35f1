"""The KL stage: its text, its gradient, and what training with it promises."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from small_runs import activations_config, run_of, stream_of
from tiny_model import DEMO_MODEL, hooked_model, language_model_config, random_model
from torch import Tensor

from sae_core.activations.language_model.engine import HookedModel
from sae_core.activations.language_model.source import LanguageModelSource
from sae_core.activations.language_model.train_text import rows_of_windows, text_batch
from sae_core.activations.shards import finish, harvest
from sae_core.activations.stream import Stream
from sae_core.activations.text_batch import TextRows
from sae_core.config.run import ARCHITECTURES, RunConfig
from sae_core.errors import ConfigError
from sae_core.sae.base import SparseAutoencoder
from sae_core.trainable import TrialConfig, run_trial
from sae_core.training.checkpoint import write_checkpoint
from sae_core.training.kl_stage import StageText, rows_of_step
from sae_core.training.loop import TrainResult, train_group, train_run
from sweeps.definition.sweep import Sweep

STAGE = {"kl_stage": {"tokens": 0.5}}


# Its text


@given(
    shards=st.lists(st.integers(1, 20), min_size=1, max_size=5), batch_size=st.integers(1, 25), data_seed=st.integers(0, 3), data=st.data()
)
def test_batches_of_an_epoch_are_its_tokens_once_each(shards: list[int], batch_size: int, data_seed: int, data: st.DataObject) -> None:
    total = sum(shards)
    epoch = data.draw(st.integers(0, 2))
    first, last = epoch * total // batch_size, -(-(epoch + 1) * total // batch_size)
    steps = [rows_of_step(shards, data_seed, batch_size, step) for step in range(first, last)]
    assert all(sum(rows.stop - rows.start for rows in step) == batch_size for step in steps)
    sequence = [(rows.shard, row) for step in steps for rows in step for row in range(rows.start, rows.stop)]
    start = epoch * total - first * batch_size
    assert sorted(sequence[start : start + total]) == [(shard, row) for shard, size in enumerate(shards) for row in range(size)]


def test_the_windows_of_some_rows_are_the_fewest_that_hold_them() -> None:
    tokens = torch.arange(20).view(5, 4)
    keep = torch.tensor([[0, 1, 1, 1], [0, 0, 0, 0], [0, 1, 0, 1], [0, 1, 1, 1], [0, 1, 1, 1]]).bool()
    windows, chosen = rows_of_windows(tokens, keep, TextRows(0, 2, 6))
    assert windows.tolist() == tokens[:4].tolist()
    assert windows[chosen].tolist() == [3, 9, 11, 13]


# Its gradient


def by_autograd(model: HookedModel, path: str, tokens: Tensor, keep: Tensor, x_hat: Tensor) -> tuple[Tensor, Tensor]:
    """KL and its gradient by PyTorch alone, with x_hat in place of a module's output."""
    plain = model._model
    with torch.no_grad():
        log_p = plain(tokens, use_cache=False).logits.log_softmax(-1)[keep]
    x_hat = x_hat.detach().requires_grad_()

    def put_in(module: Any, args: Any, output: Any) -> Any:
        x = output[0] if isinstance(output, tuple) else output
        changed = x.masked_scatter(keep[..., None], x_hat)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    handle = plain.get_submodule(path).register_forward_hook(put_in)
    log_q = plain(tokens, use_cache=False).logits.log_softmax(-1)[keep]
    handle.remove()
    kl = (log_p.exp() * (log_p - log_q)).sum(-1).mean()
    return kl.detach(), torch.autograd.grad(kl, x_hat)[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "hook_point", "path"),
    [
        ("demo", "blocks.1.hook_resid_post", "transformer.h.1"),
        ("demo", "blocks.1.hook_mlp_out", "transformer.h.1.mlp"),
        ("gemma2", "blocks.1.hook_resid_post", "model.layers.1"),  # its logits are capped, so that they are no product
    ],
)
def test_kl_and_its_gradient_are_those_of_autograd(family: str, hook_point: str, path: str, tmp_path: Path) -> None:
    name = DEMO_MODEL if family == "demo" else random_model(tmp_path / "model", family)
    model = hooked_model(name, hook_point)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, 4096, (6, 24), generator=generator)
    keep = torch.rand(tokens.shape, generator=generator) < 0.7
    batch = text_batch(model, [(tokens[:2], keep[:2]), (tokens[2:], keep[2:])], "cpu")
    assert torch.equal(batch.x, model.read(tokens)[0][keep])
    x_hat = batch.x + 0.3 * batch.x.std() * torch.randn(batch.x.shape, generator=generator)
    kl, gradient = batch.kl(x_hat)
    wanted_kl, wanted = by_autograd(model, path, tokens, keep, x_hat)
    assert float(kl) == pytest.approx(float(wanted_kl), rel=1e-4)
    torch.testing.assert_close(gradient, wanted, rtol=1e-3, atol=1e-5 * float(wanted.abs().max()))
    assert not gradient.requires_grad and not kl.requires_grad
    assert float(batch.kl(batch.x)[0]) == pytest.approx(0, abs=1e-5)


@pytest.mark.slow
def test_a_model_in_bfloat16_gives_about_the_same() -> None:
    tokens = torch.randint(1, 4096, (4, 24), generator=torch.Generator().manual_seed(0))
    keep = tokens > 0
    found = []
    for dtype in ("float32", "bfloat16"):
        batch = text_batch(hooked_model(DEMO_MODEL, "blocks.1.hook_resid_post", dtype=dtype), [(tokens, keep)], "cpu")
        found.append(batch.kl(batch.x * 0.7))
    assert float(found[1][0]) == pytest.approx(float(found[0][0]), rel=0.05)
    assert float(torch.cosine_similarity(found[0][1].flatten(), found[1][1].flatten(), dim=0)) > 0.98


# Training with it


class Text:
    """A language model's activations, harvested, and the text they are of."""

    def __init__(self, directory: Path, **fields: Any) -> None:
        self.source = LanguageModelSource(language_model_config(directory, context_size=32, **fields))
        self.source.prepare(directory)
        harvest(self.source, directory)
        finish(self.source, directory)
        self.directory = directory

    def run(self, architecture: str, *, seed: int = 0, sae: dict[str, Any] | None = None, **train: Any) -> RunConfig:
        """31 steps of 64 tokens."""
        cls = ARCHITECTURES[architecture].Config
        config = cls.model_validate(cls.example(self.source.d_in, 256).model_dump() | (sae or {}))
        settings: dict[str, Any] = {"batch_size": 64, "lr": 3e-3, **STAGE, **train}
        return RunConfig.model_validate({"activations": self.source.config, "sae": config, "train": settings, "seed": seed})

    def train(self, *runs: RunConfig, **options: Any) -> list[TrainResult]:
        batch_size, normalization = runs[0].train.batch_size, runs[0].train.normalize_activations
        stream = Stream(self.directory, batch_size=batch_size, normalize_activations=normalization)
        return train_group(runs, stream, text=StageText(self.source, self.directory, batch_size=batch_size), **options)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Text:
    return Text(tmp_path_factory.mktemp("text"))


def weights(result: TrainResult) -> dict[str, Tensor]:
    assert result.sae is not None, result.error
    return result.sae.state_dict()


def assert_same(one: TrainResult, other: TrainResult) -> None:
    for name, tensor in weights(one).items():
        assert torch.equal(tensor, weights(other)[name]), name
    assert one.history == other.history and one.sparsity_value == other.sparsity_value


@pytest.mark.slow
def test_packed_is_alone_and_resumed_is_uninterrupted(text: Text, tmp_path: Path) -> None:
    runs = [
        text.run("batchtopk", kl_stage={"tokens": "7 steps"}),
        text.run("topk", kl_stage={"tokens": "5 steps", "weight": 3.0}),
        text.run("standard", kl_stage={"tokens": "7 steps"}),
        text.run("topk", kl_stage=None),
    ]
    packed = text.train(*runs)
    for run, together in zip(runs, packed, strict=True):
        assert_same(together, text.train(run)[0])
    assert [result.sparsity_value for result in packed] == [run.sae.sparsity_value for run in runs]  # what was asked for, whatever held it
    starts = [run.kl_stage_start for run in runs]
    assert starts == [24, 26, 24, 31]

    class InterruptedHereError(Exception):
        pass

    def interrupt(at: int) -> Callable[[Any], None]:
        def on_step(learners: Any) -> None:
            if learners[0].step == at:
                for learner in learners:
                    write_checkpoint(tmp_path / learner.run.run_id / "checkpoint.safetensors", *learner.state())
                raise InterruptedHereError

        return on_step

    for at in (10, 24, 28):
        with pytest.raises(InterruptedHereError):
            text.train(*runs, directory=tmp_path, on_step=interrupt(at))
    for resumed, together in zip(text.train(*runs, directory=tmp_path), packed, strict=True):
        assert_same(resumed, together)


@pytest.mark.slow
def test_a_trial_finds_the_model_of_its_runs(text: Text, tmp_path: Path) -> None:
    run = text.run("topk", kl_stage={"tokens": "3 steps"})
    trial = TrialConfig(
        runs=[run.model_dump(mode="json")],
        cache=str(text.directory),
        directory=str(tmp_path),
        text=text.source.config.model_dump(mode="json"),
    )
    run_trial(trial, lambda told: None, "cpu")
    stored = SparseAutoencoder.from_pretrained(tmp_path / run.run_id / "sae").state_dict()
    expected = text.train(run)[0].exported().state_dict()
    assert all(torch.equal(tensor, stored[name]) for name, tensor in expected.items())


@pytest.mark.slow
def test_the_stage_changes_nothing_before_it_and_lowers_kl(text: Text) -> None:
    stage = {"tokens": 0.7}
    staged, plain, weak = text.train(
        text.run("topk", kl_stage=stage), text.run("topk", kl_stage=None), text.run("topk", kl_stage={**stage, "weight": 1e-6})
    )
    first = text.run("topk", kl_stage=stage).kl_stage_start
    assert staged.history[:first] == plain.history[:first]
    assert "kl" not in staged.history[first - 1] and staged.history[first]["kl"] > 0
    ends = [sum(row["kl"] for row in result.history[-5:]) for result in (staged, weak)]
    assert ends[0] < 0.9 * ends[1]


@pytest.mark.slow
@pytest.mark.parametrize("normalization", ["none", "layer_norm", "whitening"])
def test_reconstructions_are_put_in_in_the_units_of_the_model(text: Text, normalization: str) -> None:
    result = text.train(text.run("topk", normalize_activations=normalization, kl_stage={"tokens": 0.7}))[0]
    kls = [row["kl"] for row in result.history if "kl" in row]
    assert sum(kls[-5:]) < 0.8 * sum(kls[:5])


@pytest.mark.slow
def test_a_crosscoder_is_put_in_at_all_its_hook_points() -> None:
    names = ("blocks.1.hook_mlp_out", "blocks.2.hook_mlp_out")
    tokens = torch.randint(1, 4096, (3, 16), generator=torch.Generator().manual_seed(0))
    batch = text_batch(hooked_model(DEMO_MODEL, *names), [(tokens, tokens > 1000)], "cpu")
    x_hat = batch.x * 0.8
    kl, gradient = batch.kl(x_hat)
    step = 0.1 * gradient / gradient.norm()
    (above, _), (below, _) = batch.kl(x_hat + step), batch.kl(x_hat - step)
    assert batch.x.shape[1] == 256 and all(float(part.norm()) > 0 for part in gradient.split(128, dim=1))
    assert float(above - below) == pytest.approx(float(2 * (step * gradient).sum()), rel=0.02)
    assert float(kl) > 0


@pytest.mark.slow
def test_transcoders_and_a_limit_of_norms(tmp_path: Path) -> None:
    pairs = Text(tmp_path, hook_point="blocks.1.mlp.hook_in", hook_out="blocks.1.hook_mlp_out", exclude_high_norm=1.5)
    run = pairs.run("topk", kl_stage={"tokens": 0.7})
    assert_same(*pairs.train(run, run.model_copy(update={"seed": 0})))
    kls = [row["kl"] for row in pairs.train(run)[0].history if "kl" in row]
    assert sum(kls[-5:]) < sum(kls[:5])


# What is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kl_stage": {"tokens": 0.0}}, "at least one step and at most the run's 31, but got 0.0"),
        ({"kl_stage": {"tokens": "32 steps"}}, "at most the run's 31, but got '32 steps'"),
        ({"kl_stage": {"weight": 0.0}}, "greater than 0"),
        ({"sparsity_decay": 0.1}, "without `sparsity_decay`, .* but got sparsity_decay=0.1"),
    ],
)
def test_a_stage_that_cannot_be(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    train = {"batch_size": 64, **STAGE, **changes}
    sae = ARCHITECTURES["standard"].Config.example(128, 256)
    with pytest.raises(ValidationError, match=message):
        RunConfig.model_validate({"activations": language_model_config(tmp_path), "sae": sae, "train": train})


def test_sources_without_gradients_are_refused(tmp_path: Path) -> None:
    run = {"sae": ARCHITECTURES["topk"].Config.example(16, 64), "train": STAGE}
    for config, got in (
        (activations_config(10_000), "but got source='synthetic', which has no language model"),
        (language_model_config(tmp_path, train_tokens=10_000, quantization="8bit"), "but got quantization='8bit'"),
        (language_model_config(tmp_path, train_tokens=10_000, device_map="auto"), "but got device_map='auto'"),
    ):
        with pytest.raises(ValidationError, match=got):
            RunConfig.model_validate({"activations": config, **run})


def test_a_stage_without_its_text_is_refused(tmp_path: Path) -> None:
    stream = stream_of(run_of("topk"))
    run = RunConfig.model_validate(
        {
            "activations": language_model_config(tmp_path),
            "sae": ARCHITECTURES["topk"].Config.example(16, 64),
            "train": {"batch_size": 64, **STAGE},
        }
    )
    with pytest.raises(ConfigError, match=f"text=None for {run.run_id}"):
        train_run(run, stream)


# In a definition


def stages_of(train: dict[str, Any], own: dict[str, Any]) -> list[tuple[float | str, float] | None]:
    sweep = Sweep(
        name="a",
        model={"name": DEMO_MODEL, "hook_point": "blocks.2.hook_resid_post"},
        data={"dataset": "demo", "train_tokens": 1_000_000, "eval_tokens": 1_000},
        sae={"d_sae": 64},
        train=train,
        architectures={"topk": {"k": 4, **own}},
    )
    stages = [run.train.kl_stage for run in sweep.runs()]
    return [stage and (stage.tokens, stage.weight) for stage in stages]


@pytest.mark.parametrize(
    ("train", "own", "expected"),
    [
        ({}, {}, [None]),
        ({"kl_stage": {}}, {}, [(0.05, 0.3)]),
        ({"kl_stage": {"tokens": "10%", "weight": [1.0, 2.0]}}, {}, [(0.1, 1.0), (0.1, 2.0)]),
        ({"kl_stage": [None, {"tokens": "100k tokens"}]}, {}, [None, ("100000 tokens", 0.3)]),
        ({"kl_stage": {"tokens": 0.1}}, {"kl_stage": None}, [None]),
        ({"kl_stage": None}, {"kl_stage": {"tokens": 0.1}}, [(0.1, 0.3)]),
        ({"kl_stage": [None, {"tokens": 0.2}]}, {"kl_stage": {"weight": 2.0}}, [(0.05, 2.0)]),
        ({"kl_stage": {"weight": 3.0}}, {"kl_stage": {"tokens": 0.1}}, [(0.1, 3.0)]),
    ],
)
def test_in_a_definition_it_is_a_section_or_an_axis(train: dict[str, Any], own: dict[str, Any], expected: list[Any]) -> None:
    assert stages_of(train, own) == expected


def test_a_problem_is_told_with_its_place_in_the_definition() -> None:
    for stage, message in (
        ({"tokens": "x"}, r"train\.kl_stage\.tokens: .*but got 'x'"),
        ({"tokens": "5000 steps"}, r"train\.kl_stage.*at most the run's \d+, but got '5000 steps'"),
        ({"token": 0.1}, r"train\.kl_stage: .*'token'"),
    ):
        with pytest.raises(ConfigError, match=message):
            stages_of({"kl_stage": stage}, {})
