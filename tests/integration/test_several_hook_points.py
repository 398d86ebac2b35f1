"""A sweep over hook points: one pass over the text for all of them, and the results of each as alone."""

from pathlib import Path

import pytest
import torch
from inline import launch
from small_sweep import results_of
from tiny_model import DEMO_MODEL, random_model, write_text

from sae_core.activations.language_model import loading
from sae_core.errors import ConfigError
from sweeps.definition.sweep import Sweep

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _without_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("analysis.report.write_report", lambda *_: None)


def sweep(directory: Path, hook_point: object, name: str = "layers", model: object = DEMO_MODEL) -> Sweep:
    text = directory / "text.jsonl"
    if not text.exists():
        write_text(text, n_train=6, n_heldout=3)
    return Sweep(
        name=name,
        model={"name": model, "hook_point": hook_point},
        data={"dataset": str(text), "train_tokens": 1_000, "eval_tokens": 500},
        sae={"d_sae": 64},
        train={"batch_size": 128},
        architectures={"topk": {"k": [4, 8]}},
    )


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens of every pass through the first block of a model."""
    seen: list[int] = []
    load = loading.load_model

    def counted(*args: object, **options: object) -> object:
        model = load(*args, **options)  # type: ignore[arg-type]
        model.transformer.h[0].mlp.register_forward_hook(lambda block, inputs, output: seen.append(output.shape[0] * output.shape[1]))
        return model

    monkeypatch.setattr(loading, "load_model", counted)
    return seen


def test_four_hook_points_cost_one_pass_and_give_what_each_gives_alone(tmp_path: Path, passes: list[int]) -> None:
    hook_points = [f"blocks.{layer}.hook_resid_post" for layer in range(4)]
    together = sweep(tmp_path, "blocks.*.hook_resid_post")
    assert [run.activations.model.hook_point for run in together.runs()] == [hook_point for hook_point in hook_points for _ in range(2)]
    assert launch(together, results=tmp_path / "together").finished == 8
    tokens_together = sum(passes)
    for hook_point in hook_points[1::2]:
        passes.clear()
        one = sweep(tmp_path, hook_point)
        assert launch(one, results=tmp_path / "alone" / hook_point).finished == 2
        for run_id, result in results_of(tmp_path / "alone" / hook_point / "layers").items():
            assert results_of(tmp_path / "together" / "layers")[run_id] == result
    # The first block runs for the harvest and the clean pass, and for each hook point to try whether it may be left out.
    assert tokens_together < 1.5 * sum(passes)


def test_paths_of_modules_and_names_are_hook_points_of_one_sweep(tmp_path: Path) -> None:
    both = sweep(tmp_path, ["transformer.h.[12].mlp@input", "blocks.3.attn.hook_z", "transformer.h.0"])
    points = ["transformer.h.1.mlp@input", "transformer.h.2.mlp@input", "blocks.3.attn.hook_z", "transformer.h.0"]
    assert list(dict.fromkeys(run.activations.model.hook_point for run in both.runs())) == points
    assert launch(both, results=tmp_path / "results").finished == 8


def test_a_pattern_that_matches_nothing_says_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"but got 'model\.layers\.\*\.mlp', which matches none of .* It has e\.g\. '.*' and 'transformer\.h\.0'"
    ):
        sweep(tmp_path, "model.layers.*.mlp").runs()


def test_a_pattern_needs_one_model(tmp_path: Path) -> None:
    other = random_model(tmp_path / "llama", "llama")
    with pytest.raises(ConfigError, match=r"must come with one model, but got \['blocks\.\*\.hook_resid_post'\]"):
        sweep(tmp_path, "blocks.*.hook_resid_post", model=[DEMO_MODEL, other]).runs()


def test_an_unknown_hook_point_among_several_is_found_before_work(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"but got 'transformer\.h\.9\.mlp'"):
        launch(sweep(tmp_path, ["transformer.h.1.mlp", "transformer.h.9.mlp"]), results=tmp_path / "results")
    assert not list(tmp_path.glob("results/**/train-*.safetensors"))


def test_hook_points_that_take_too_much_memory_are_read_in_several_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, passes: list[int]
) -> None:
    launch(sweep(tmp_path, "blocks.*.hook_resid_post"), results=tmp_path / "one")
    n_tokens = sum(passes)
    passes.clear()
    monkeypatch.setattr("sweeps.planning.inputs.PASS_BYTES", 4 * 65_536 * 128 * 2)
    launch(sweep(tmp_path, "blocks.*.hook_resid_post"), results=tmp_path / "two")
    assert n_tokens < sum(passes)
    assert results_of(tmp_path / "one" / "layers") == results_of(tmp_path / "two" / "layers")
    assert torch.is_grad_enabled()
