import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from small_runs import D_IN, run_of, stream_of
from torch import Tensor

from sae_core.activations.stream import ActivationStream
from sae_core.architectures.batchtopk import BatchTopK
from sae_core.architectures.topk import TopKConfig
from sae_core.config.run import ARCHITECTURES, RunConfig
from sae_core.errors import ConfigError
from sae_core.sae.loss import LossContext, LossTerms
from sae_core.sae.normalization import Affine
from sae_core.sparse.kernels.choice import Choice, using_kernels
from sae_core.training import loop as training
from sae_core.training.loop import HISTORY_ROWS, Learner, TrainResult, train_group, train_run

DIVERGING = {"lr": 1e30, "lr_warm_up": 0.0}


class Interrupted(BaseException):
    """Stands for Ctrl-C, a lost node, a killed worker."""


class Interrupt:
    """Raises after some number of batches."""

    def __init__(self, after: int) -> None:
        self.left = after

    def __call__(self, learners: Sequence[Learner]) -> None:
        self.left -= 1
        if not self.left:
            raise Interrupted


class Recorded(ActivationStream):
    """A stream that remembers where it was asked to start."""

    def __init__(self, run: RunConfig) -> None:
        self.stream = stream_of(run)
        self.d_in, self.normalization = self.stream.d_in, self.stream.normalization
        self.starts: list[int] = []

    def batches(self, start: int = 0) -> Iterator[Tensor]:
        self.starts.append(start)
        return self.stream.batches(start)


class Poisoned(ActivationStream):
    """Batch `bad` is NaN."""

    d_in, normalization = D_IN, Affine("expected_norm", 1.0, 1.0)

    def __init__(self, bad: int) -> None:
        self.bad = bad

    def batches(self, start: int = 0) -> Iterator[Tensor]:
        while True:
            yield torch.full((64, D_IN), math.nan if start == self.bad else 1.0)
            start += 1


def assert_same(one: TrainResult, other: TrainResult) -> None:
    """Bit for bit: weights, buffers and history."""
    assert one.run == other.run and one.error == other.error and one.history == other.history
    assert one.sae is not None and other.sae is not None
    states = one.sae.state_dict(), other.sae.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


def runs_of_all(**train: object) -> list[RunConfig]:
    """Every architecture, with latents that die and come back within a few batches."""
    return [run_of(name, dead_after_tokens=128, **train) for name in ARCHITECTURES]


def test_packed_is_alone_bit_for_bit() -> None:
    runs = [*runs_of_all(), run_of("topk", seed=1), run_of("topk", lr=1e-4), run_of("jumprelu", n_steps=12)]
    stream = stream_of(runs[0])
    for packed, run in zip(train_group(runs, stream), runs, strict=True):
        assert_same(packed, train_run(run, stream_of(run)))


def test_resumed_is_uninterrupted_bit_for_bit(tmp_path: Path) -> None:
    runs = runs_of_all()
    stream = stream_of(runs[0])
    with pytest.raises(Interrupted):
        train_group(runs, stream, directory=tmp_path, checkpoint_seconds=0, on_step=Interrupt(after=7))
    assert all((tmp_path / run.run_id / "checkpoint.safetensors").exists() for run in runs)
    for resumed, whole in zip(train_group(runs, stream, directory=tmp_path), train_group(runs, stream), strict=True):
        assert_same(resumed, whole)


@pytest.mark.slow
def test_runs_may_be_regrouped_between_an_interruption_and_the_next_launch(tmp_path: Path) -> None:
    early, late, new = run_of("topk"), run_of("jumprelu"), run_of("gated")
    for run, after in ((early, 3), (late, 11)):
        with pytest.raises(Interrupted):
            train_run(run, stream_of(run), directory=tmp_path, checkpoint_seconds=0, on_step=Interrupt(after))
    group = [late, new, early]
    for resumed in train_group(group, stream_of(new), directory=tmp_path):
        assert_same(resumed, train_run(resumed.run, stream_of(resumed.run)))


def test_resuming_does_not_read_what_it_has_seen(tmp_path: Path) -> None:
    run = run_of("topk")
    with pytest.raises(Interrupted):
        train_run(run, stream_of(run), directory=tmp_path, checkpoint_seconds=0, on_step=Interrupt(after=7))
    stream = Recorded(run)
    train_run(run, stream, directory=tmp_path)
    assert stream.starts[0] == 7  # and then, from the first batch, to calibrate


@pytest.mark.parametrize("autocast", ["bfloat16", "off"])
@pytest.mark.slow
def test_calibration_is_computed_as_training_is(autocast: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, bool]] = []
    monkeypatch.setattr(BatchTopK, "calibrate", lambda sae, batches, *, autocast: asked.append((len(list(batches)), autocast)))
    run = run_of("batchtopk", autocast=autocast)
    train_run(run, stream_of(run))
    assert asked == [(run.n_steps, autocast == "bfloat16")]


@pytest.mark.slow
def test_a_diverged_run_leaves_the_group_and_the_others_never_notice() -> None:
    good, bad, other = run_of("topk"), run_of("standard", **DIVERGING), run_of("gated")
    results = train_group([good, bad, other], stream_of(good))
    assert_same(results[0], train_run(good, stream_of(good)))
    assert_same(results[2], train_run(other, stream_of(other)))
    failed = results[1]
    assert failed.sae is None and failed.error is not None
    assert failed.error["type"] == "DivergedError"
    assert (
        f"gradient of run {bad.run_id} was not, at or shortly before step 2 of 20 (l1_coefficient=0.5, lr=1e+30)" in failed.error["message"]
    )
    assert "DivergedError" in failed.error["traceback"]
    assert [row["step"] for row in failed.history] == [1]


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"l1_coefficient": 1e30}, r"step \d+ of 20 \(l1_coefficient=1e\+30, lr=.*\)\. .* lower a coefficient"),
        (
            {"l1_coefficient": 1e39, "target_l0": 1e-30},
            r"\(l1_coefficient=1e\+39, target_l0=1e-30, lr=.*\)\. .* lower a coefficient",
        ),
    ],
)
def test_a_run_that_diverges_names_its_coefficient(fields: dict[str, float], told: str) -> None:
    cls = ARCHITECTURES["standard"].Config
    run = run_of(cls.model_validate(cls.example(D_IN, 64).model_dump() | fields))
    error = train_run(run, stream_of(run)).error
    assert error is not None and error["type"] == "DivergedError" and re.search(told, error["message"])


def test_any_error_of_a_run_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    good, bad = run_of("topk"), run_of("standard")

    def broken(self: object, x: Tensor, ctx: object) -> None:
        raise ZeroDivisionError("a bug in this architecture")

    monkeypatch.setattr(ARCHITECTURES["standard"], "loss", broken)
    results = train_group([good, bad], stream_of(good))
    assert results[0].sae is not None
    assert results[1].error is not None and results[1].error["message"] == "a bug in this architecture"


def test_a_run_that_diverged_at_its_last_step_stays_failed_after_a_resume(tmp_path: Path) -> None:
    run = run_of("topk", n_steps=3)
    for _ in range(2):
        result = train_run(run, Poisoned(bad=2), directory=tmp_path, checkpoint_seconds=0)
        assert result.sae is None and result.error is not None and result.error["type"] == "DivergedError"


@pytest.mark.parametrize("kernels", ["fast", "reference"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", list(ARCHITECTURES))
@pytest.mark.slow
def test_weights_that_are_not_finite_at_the_end_fail_the_run(name: str, value: float, kernels: Choice) -> None:
    run, other = run_of(name, n_steps=3), run_of("topk", n_steps=3)
    weight = "W_dec" if run.sae.is_tied else "W_enc"

    def break_a_weight(learners: Sequence[Learner]) -> None:
        if learners[0].done:
            with torch.no_grad():
                learners[0].sae.get_parameter(weight)[0, 0] = value

    with using_kernels(kernels):
        failed, good = train_group([run, other], stream_of(run), on_step=break_a_weight)
    assert failed.sae is None and failed.error is not None and failed.error["type"] == "DivergedError"
    assert f"run {run.run_id} ended with NaN or infinite weights (lr={run.train.lr})" in failed.error["message"]
    assert weight in failed.error["message"]
    assert good.sae is not None


def test_a_threshold_that_is_not_finite_fails_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BatchTopK, "calibrate", lambda sae, batches, *, autocast: sae.threshold.fill_(math.nan))
    result = train_run(run_of("batchtopk", n_steps=3), stream_of(run_of("batchtopk")))
    assert result.sae is None and result.error is not None and "threshold" in result.error["message"]


def test_nothing_is_written_without_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    train_run(run_of("topk", n_steps=2), stream_of(run_of("topk")), checkpoint_seconds=0)
    assert not list(tmp_path.iterdir())


def test_checkpoints_are_as_far_apart_as_asked(tmp_path: Path) -> None:
    run = run_of("topk", n_steps=3)
    train_run(run, stream_of(run), directory=tmp_path, checkpoint_seconds=3600)
    assert not list(tmp_path.iterdir())


def test_latents_die_by_tokens_without_activation() -> None:
    run = run_of("standard", n_steps=5, dead_after_tokens=3 * 64)
    learner = Learner.start(run, D_IN, torch.device("cpu"))
    with torch.no_grad():
        learner.sae.b_enc[7] = -1e6  # never active
        learner.sae.b_enc[8] = 1e6  # always active
    seen = []
    for x, _ in zip(stream_of(run).batches(), range(5), strict=False):
        learner.train_step(x)
        seen.append(int(learner.tokens_since_active[7]))
        assert learner.tokens_since_active[8] == 0
    assert seen == [64, 128, 192, 256, 320]
    # Before steps 3 and 4 (0-based) latent 7 had been inactive for 192 and 256 tokens.
    assert [row["dead_latents"] for row in learner.history][:4] == [0, 0, 0, 1]


@pytest.mark.parametrize("dead_after_tokens", [3 * 64 - 1, 3 * 64, 3 * 64 + 1, 7 * 64])
@pytest.mark.slow
def test_dead_latents_are_known_without_looking_at_every_step(dead_after_tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = Learner.start(run_of("topk", n_steps=300, dead_after_tokens=dead_after_tokens), D_IN, torch.device("cpu"))
    # What was active in each batch: all latents, but for some that are active rarely.
    active = torch.rand(300, learner.run.sae.d_sae, generator=torch.Generator().manual_seed(0)) < 0.9
    given: list[bool] = []

    def loss(x: Tensor, ctx: LossContext) -> LossTerms:
        expected = learner.tokens_since_active >= dead_after_tokens
        given.append(ctx.dead is not None)
        assert torch.equal(expected, torch.zeros_like(expected) if ctx.dead is None else ctx.dead)
        total = learner.sae.b_dec.sum()
        return LossTerms(total, {"mse_loss": total}, torch.ones(()), active[learner.step])

    monkeypatch.setattr(learner.sae, "loss", loss)
    looks = 0
    for _ in range(300):
        looks += learner.step >= learner.none_dead_before
        learner.train_step(torch.ones(64, D_IN))
    assert any(given) == (dead_after_tokens < 7 * 64)
    assert sum(given) < looks < 300


def test_dead_latents_reach_the_loss() -> None:
    terms = [set(row) for row in train_run(run_of("topk", dead_after_tokens=128, lr=3e-3), stream_of(run_of("topk"))).history]
    assert all("auxiliary_reconstruction_loss" not in row for row in terms[:2])  # 128 tokens are two batches
    assert any("auxiliary_reconstruction_loss" in row for row in terms[2:])


def test_history_has_the_schedules_and_the_terms() -> None:
    result = train_run(run_of("standard", lr=1e-3, lr_warm_up=0.2, lr_decay=0.2, sparsity_warm_up=0.1), stream_of(run_of("standard")))
    assert [row["step"] for row in result.history] == list(range(1, 21))
    assert [row["tokens"] for row in result.history][-1] == 20 * 64
    lrs, scales = [row["lr"] for row in result.history], [row["sparsity_scale"] for row in result.history]
    assert lrs == pytest.approx([1e-3 * f for f in (0.25, 0.5, 0.75, *[1] * 14, 0.75, 0.5, 0.25)])
    assert scales == [0, 0.5, *[1] * 18]
    for row in result.history:
        assert row["loss"] == pytest.approx(row["mse_loss"] + row["l1_loss"], rel=1e-6)


@pytest.mark.slow
def test_long_runs_keep_about_a_hundred_rows_and_their_last_step() -> None:
    result = train_run(run_of("topk", n_steps=250, batch_size=4), stream_of(run_of("topk", batch_size=4)))
    steps = [row["step"] for row in result.history]
    assert steps == list(range(2, 251, 2))
    assert HISTORY_ROWS <= len(steps) <= 2 * HISTORY_ROWS


def test_gradients_are_clipped_to_the_norm_asked() -> None:
    norms = {}
    for max_norm in (None, 0.5):
        run = run_of("topk", max_grad_norm=max_norm)
        learner = Learner.start(run, D_IN, torch.device("cpu"))
        learner.train_step(next(stream_of(run).batches()))
        # Adam's first moment after a step is 1 - beta1 of the gradient.
        moments = learner.optimizer.exp_avg.values()
        norms[max_norm] = math.sqrt(sum(float(moment.pow(2).sum()) for moment in moments)) / (1 - run.train.adam_beta1)
    assert norms[None] > 1 and norms[0.5] == pytest.approx(0.5, rel=1e-4)


def test_autocast_leaves_parameters_in_float32() -> None:
    stream = stream_of(run_of("topk"))
    exact, rounded = (train_run(run_of("topk", autocast=autocast, n_steps=5), stream) for autocast in ("off", "bfloat16"))
    assert rounded.sae is not None
    assert {p.dtype for p in rounded.sae.parameters()} == {torch.float32}
    assert rounded.history[-1]["loss"] == pytest.approx(exact.history[-1]["loss"], rel=0.02)
    assert rounded.history != exact.history


def test_a_stream_normalised_otherwise_is_refused() -> None:
    with pytest.raises(ConfigError, match="but got normalize_activations='layer_norm' and a stream with 'expected_norm'"):
        train_run(run_of("topk", normalize_activations="layer_norm"), stream_of(run_of("topk")))


@pytest.mark.slow
def test_initial_values_from_the_activations_are_not_made_again_on_resume(tmp_path: Path) -> None:
    run = run_of(TopKConfig(d_sae=64, k=4, b_dec_init="mean"))
    with pytest.raises(Interrupted):
        train_run(run, stream_of(run), directory=tmp_path, checkpoint_seconds=0, on_step=Interrupt(after=7))
    stream = Recorded(run)
    train_run(run, stream, directory=tmp_path)
    assert stream.starts == [7, 0]  # training and calibration, not the sample


def test_the_sample_is_read_once_for_a_group_and_only_if_asked_for() -> None:
    asking = [run_of(TopKConfig(d_sae=64, k=4, b_dec_init="mean"), n_steps=2, seed=seed) for seed in (0, 1)]
    plain = Recorded(asking[0])
    train_group([run_of("topk", n_steps=2)], plain)
    assert plain.starts == [0, 0]  # training and calibration
    stream = Recorded(asking[0])
    train_group(asking, stream)
    assert stream.starts == [0, 0, 0, 0]  # the sample, training, and calibration of each


def test_latents_are_resampled_when_due_and_only_then(monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of("standard", dead_after_tokens=3 * 64, resample_every_steps=4, resample_until=0.7)  # 20 steps of 64 tokens
    learner, calls = Learner.start(run, D_IN, torch.device("cpu")), []
    monkeypatch.setattr(training, "resample", lambda sae, optimizer, dead, x, seed: calls.append((learner.step, dead.nonzero().tolist())))
    with torch.no_grad():
        learner.sae.b_enc[7] = -1e6  # never active
    seen = []
    for x, _ in zip(stream_of(run).batches(), range(20), strict=False):
        learner.train_step(x)
        seen.append(int(learner.tokens_since_active[7]))
    assert calls == [(4, [[7]]), (8, [[7]]), (12, [[7]])]
    assert seen[:6] == [64, 128, 192, 0, 64, 128]


def test_what_a_result_holds() -> None:
    run = run_of("topk", n_steps=2)
    stream = stream_of(run)
    result = train_run(run, stream)
    assert result.run == run and result.d_in == D_IN and result.normalization is stream.normalization and result.error is None
    assert result.sae is not None and not result.sae.training
    assert result.seconds > 0
