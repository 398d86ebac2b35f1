from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import D_IN, D_SAE, random_sae, run_of, stream_of, tokens
from small_sweep import result_of, small_sweep

from sae_core.config.run import ARCHITECTURES, RunConfig
from sae_core.layout import RunPaths
from sae_core.sae.loss import LossContext
from sae_core.training.continuing import KeptStates, common_steps, keep_state, why_not
from sae_core.training.export import write_result
from sae_core.training.loop import TrainResult, train_run
from sweeps.execution.launcher import launch
from sweeps.execution.progress import SweepProgress

WARM_UPS = {"lr_warm_up": "4 steps", "sparsity_warm_up": "4 steps"}
BATCH = 64


def run_for(name: str, n_steps: int, **train: Any) -> RunConfig:
    """A run of some steps on 16 batches of tokens, so that longer ones repeat them. Latents die within a few batches."""
    fields = {**WARM_UPS, "dead_after_tokens": 128, **train}
    return run_of(name, n_steps=16, batch_size=BATCH, tokens=n_steps * BATCH, **fields)


def train(run: RunConfig, directory: Path, activations_hash: str | None = None) -> TrainResult:
    """Train a run, and leave its state and its record."""
    stream = stream_of(run, 16 * BATCH)
    result = train_run(run, stream, directory=directory, after_step=lambda learner: keep_state(learner, directory))
    write_result(result, RunPaths(directory / run.run_id), metadata={}, facts={"activations_hash": activations_hash})
    return result


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_continued_run_is_one_that_was_asked_for_at_once(name: str, tmp_path: Path) -> None:
    short, long = run_for(name, 20), run_for(name, 31)
    train(short, tmp_path / "continued")
    said = KeptStates(tmp_path / "continued").start(long)
    if not common_steps(short):
        assert not said and not RunPaths(tmp_path / "continued" / short.run_id).state.exists()
        return
    assert said == f"{long.run_id} continues from the state of {short.run_id} after step 17"
    steps: list[int] = []
    stream = stream_of(long, 16 * BATCH)
    continued = train_run(long, stream, directory=tmp_path / "continued", on_step=lambda learners: steps.append(learners[0].step))
    at_once = train_run(long, stream)
    assert steps == list(range(18, 32)) and continued.history == at_once.history
    assert continued.sae is not None and at_once.sae is not None
    theirs = at_once.sae.state_dict()
    assert all(torch.equal(value, theirs[key]) for key, value in continued.sae.state_dict().items())


@pytest.mark.slow
def test_a_run_without_a_decay_is_continued_from_its_end_and_again(tmp_path: Path) -> None:
    first, second, third = (run_for("topk", n_steps, lr_decay=0.0) for n_steps in (10, 20, 30))
    for run, n_steps in ((first, 0), (second, 10), (third, 20)):
        said = KeptStates(tmp_path).start(run)
        assert said.endswith(f"after step {n_steps}") or not n_steps
        result = train(run, tmp_path)
    at_once = train_run(third, stream_of(third, 16 * BATCH))
    assert result.sae is not None and at_once.sae is not None
    assert torch.equal(result.sae.W_dec, at_once.sae.W_dec)


@pytest.mark.slow
def test_of_several_states_the_longest_that_fits_is_taken(tmp_path: Path) -> None:
    for run in (run_for("topk", 10, lr_decay=0.0), run_for("topk", 20, lr_decay=0.0), run_for("topk", 25, lr_decay=0.0, seed=1)):
        train(run, tmp_path)
    assert "after step 20" in KeptStates(tmp_path).start(run_for("topk", 40))
    assert "after step 10" in KeptStates(tmp_path).start(run_for("topk", 40), before=20)
    assert KeptStates(tmp_path).start(run_for("topk", 40), before=5).endswith("after step 20: it is exported after step 5")
    assert "after step 10" in KeptStates(tmp_path).start(run_for("topk", 19, lr_decay="3 steps"))
    assert KeptStates(tmp_path).start(run_for("topk", 40, lr=2e-3)) == ""
    file = RunPaths(tmp_path / run_for("topk", 20, lr_decay=0.0).run_id).state
    file.write_bytes(file.read_bytes()[:-1])
    assert "after step 10" in KeptStates(tmp_path).start(run_for("topk", 40))


@pytest.mark.parametrize(
    ("name", "short", "long", "reason"),
    [
        ("topk", {"lr_warm_up": 0.05}, {"lr_warm_up": 0.05}, "train.lr_warm_up in steps is 20 there and 40 here"),
        ("standard", {"sparsity_warm_up": 0.1}, {"sparsity_warm_up": 0.1}, "train.sparsity_warm_up in steps is 40 there and 80 here"),
        ("topk", {}, {"lr_decay": 0.9}, "its own length decides its steps from step 81 on"),
        ("topk", {}, {"lr_schedule": "cosine"}, "its own length decides its steps from step 0 on"),
        ("topk", {}, {"n_steps": 300}, "it has 300 steps itself"),
        (
            "topk",
            {"resample_every_steps": 50},
            {"resample_every_steps": 50},
            "last resampling is 200 there and 300 here",
        ),
    ],
)
def test_what_depends_on_the_length_is_named(name: str, short: dict[str, Any], long: dict[str, Any], reason: str) -> None:
    shorter, longer = run_for(name, 400, **short), run_for(name, **{"n_steps": 800, **long})
    assert reason in why_not(longer, shorter, 320)


def test_the_controller_of_l0_is_as_strong_as_its_run_is_short() -> None:
    def aimed(n_steps: int) -> RunConfig:
        sae = ARCHITECTURES["jumprelu"].Config(d_sae=D_SAE, target_l0=8.0, l0_coefficient=0.1)
        return run_of(sae, n_steps=16, batch_size=BATCH, tokens=n_steps * BATCH, **WARM_UPS)

    assert why_not(aimed(400), aimed(300), 200) == ""
    assert "strength of the controller of L0 is 0.05 there and 0.04 here" in why_not(aimed(500), aimed(300), 200)


@pytest.mark.slow
def test_other_activations_give_no_state(tmp_path: Path) -> None:
    train(run_for("topk", 20), tmp_path, activations_hash="one")
    assert KeptStates(tmp_path).start(run_for("topk", 31), "another") == ""
    assert "continues" in KeptStates(tmp_path).start(run_for("topk", 31), "one")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_progress_matters_where_an_architecture_says_that_it_has_a_schedule(name: str) -> None:
    sae, x = random_sae(name, D_IN, D_SAE).train(), tokens(128)
    losses = [float(sae.loss(x, LossContext(progress=progress)).total.detach()) for progress in (0.2, 0.8)]
    assert sae.config.schedule_end > 0 or losses[0] == losses[1]


@pytest.mark.slow
def test_a_sweep_of_more_tokens_continues_one_that_kept_its_states(tmp_path: Path) -> None:
    notes: list[str] = []

    class Progress(SweepProgress):
        def note(self, text: str) -> None:
            notes.append(text)

    train = {"batch_size": 512, **WARM_UPS}
    architectures = {"standard": {"l1_coefficient": 0.3}}
    short = small_sweep(train={**train, "tokens": 10_000}, architectures=architectures, keep_states=True)
    long = small_sweep(train={**train, "tokens": 30_000}, architectures=architectures)
    launch(short, results=tmp_path / "continued", executor="inline")
    launch(long, results=tmp_path / "continued", executor="inline", progress=Progress())
    launch(long, results=tmp_path / "at_once", executor="inline")
    assert sum("continues from the state of" in note for note in notes) == len(long.runs())
    for run in long.runs():
        continued, at_once = (result_of(tmp_path / name / "small" / "runs" / run.run_id) for name in ("continued", "at_once"))
        assert continued[0] == at_once[0] and continued[3] == at_once[3]
