import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_runs import run_of

from sae_core.config.kl_stage import KlStageConfig
from sae_core.config.run import ARCHITECTURES, TrainConfig
from sae_core.training.sparsity import MAX_LOG_FACTOR, L0Controller, controller_of, sparsity_scale


def test_warm_up_starts_at_0_and_ends_at_1() -> None:
    # 4 of 20 steps: step 0 sees 0 and step 4 sees 1, as in SAELens.
    config = TrainConfig(sparsity_warm_up=0.2)
    assert [sparsity_scale(step, 20, config) for step in range(7)] == pytest.approx([0, 0.25, 0.5, 0.75, 1, 1, 1])


def test_without_warm_up_it_is_1_from_the_first_step() -> None:
    assert sparsity_scale(0, 20, TrainConfig(sparsity_warm_up=0.0)) == 1
    assert sparsity_scale(0, 5, TrainConfig(sparsity_warm_up=0.05)) == 1  # a quarter of a step rounds to none


def test_decay_mirrors_the_warm_up() -> None:
    config = TrainConfig(sparsity_warm_up=0.2, sparsity_decay=0.2)
    scales = [sparsity_scale(step, 20, config) for step in range(20)]
    assert scales == pytest.approx(scales[::-1])
    assert scales[-6:] == pytest.approx([1, 1, 0.75, 0.5, 0.25, 0])


def test_decay_ends_at_the_factor_asked_for() -> None:
    config = TrainConfig(sparsity_warm_up=0.0, sparsity_decay="4 steps", sparsity_decay_to=0.2)
    assert [sparsity_scale(step, 10, config) for step in range(10)] == pytest.approx([1] * 6 + [0.8, 0.6, 0.4, 0.2])


def test_phases_may_be_given_in_steps_or_tokens() -> None:
    spans = TrainConfig(sparsity_warm_up="4 steps", sparsity_decay="320 tokens", batch_size=64)
    fractions = TrainConfig(sparsity_warm_up=0.2, sparsity_decay=0.25, batch_size=64)
    assert [sparsity_scale(step, 20, spans) for step in range(20)] == [sparsity_scale(step, 20, fractions) for step in range(20)]


CONFIG = TrainConfig(sparsity_warm_up=0.1)


def controller(target_l0: float = 32.0, n_steps: int = 1000) -> L0Controller:
    return L0Controller.start(target_l0, n_steps, CONFIG, torch.device("cpu"))


def settled(control: L0Controller, l0_at_start: float, exponent: float, n_steps: int = 1000) -> float:
    """L0 at the end, of a system that answers at once: L0 = l0_at_start * factor ** -exponent."""
    for step in range(n_steps):
        control.update(torch.tensor(l0_at_start) * control.factor**-exponent, step, 1.0)
    return float(l0_at_start * control.factor**-exponent)


@settings(max_examples=10)
@given(l0=st.floats(8, 200), exponent=st.floats(0.5, 1.5))
@pytest.mark.slow
def test_it_ends_at_the_target(l0: float, exponent: float) -> None:
    assert settled(controller(32.0), l0, exponent) == pytest.approx(32.0, rel=0.02)


def test_it_waits_for_the_end_of_the_sparsity_warm_up() -> None:
    control = controller()
    for step in range(100):
        control.update(torch.tensor(500.0), step, 1.0)
    assert float(control.factor) == 1.0
    control.update(torch.tensor(500.0), 100, 1.0)
    assert float(control.factor) > 1.0


def test_far_from_the_target_it_moves_no_faster_than_the_clip() -> None:
    near, far = controller(), controller()
    for step in range(100, 150):
        near.update(torch.tensor(32 * math.e), step, 1.0)
        far.update(torch.tensor(32 * math.e**5), step, 1.0)
    assert float(far.log_factor) == pytest.approx(50 * far.gain)
    assert float(near.log_factor) == pytest.approx(float(far.log_factor))


@pytest.mark.parametrize(("l0", "sign"), [(1e6, 1), (1e-3, -1)])
def test_where_l0_does_not_follow_the_coefficient_is_bounded_and_comes_back_at_once(l0: float, sign: int) -> None:
    control = controller()
    for step in range(100, 1000):
        control.update(torch.tensor(l0), step, 0.1)
    assert float(control.log_factor) == sign * MAX_LOG_FACTOR
    assert math.isfinite(float(control.factor)) and 1 / 500 < float(control.factor) < 500
    control.update(torch.tensor(32 * math.e ** (-2 * sign)), 100, 1.0)  # at `first_step` the moving average begins
    assert float(control.log_factor) == pytest.approx(sign * (MAX_LOG_FACTOR - control.gain))


def test_a_batch_without_active_latents_does_no_harm() -> None:
    control = controller()
    control.update(torch.tensor(0.0), 100, 1.0)
    assert float(control.log_factor) == pytest.approx(-control.gain)


def test_the_gain_rises_as_the_learning_rate_falls() -> None:
    moved = []
    for lr_factor in (1.0, 0.5, 0.1, 0.01):
        control = controller()
        control.update(torch.tensor(64.0), 100, lr_factor)
        moved.append(float(control.log_factor) / float(control.gain * math.log(2)))
    assert moved == pytest.approx([1, 2, 10, 10])


def test_it_goes_on_from_its_state() -> None:
    whole, first, second = controller(), controller(), controller()
    for step in range(300):
        (first if step < 150 else second).update(torch.tensor(50.0 + step), step, 1.0)
        if step == 149:
            for name, tensor in second.state().items():
                tensor.copy_(first.state()[name])
        whole.update(torch.tensor(50.0 + step), step, 1.0)
    assert torch.equal(whole.log_factor, second.log_factor)
    assert torch.equal(whole.mean_log_l0, second.mean_log_l0)


@pytest.mark.slow
def test_a_controller_holds_the_l0_that_its_stage_begins_with() -> None:
    control = L0Controller.hold(500, 1000, torch.device("cpu"))
    for step in range(500):
        control.update(torch.tensor(40.0), step, 1.0)
    assert float(control.factor) == 1.0
    for step in range(500, 1000):  # what the stage does to L0, which answers at once
        control.update(torch.tensor(60.0) / control.factor, step, 0.2)
    assert float(60.0 / control.factor) == pytest.approx(40.0, rel=0.02)


def test_who_gets_a_controller() -> None:
    def kind(architecture: str, stage: bool, **sae: Any) -> bool | None:
        """Whether it holds; None: there is none."""
        cls = ARCHITECTURES[architecture].Config
        config = cls.model_validate(cls.example(16, 64).model_dump() | sae)
        run = run_of(config)
        train = run.train.model_copy(update={"kl_stage": KlStageConfig() if stage else None})
        found = controller_of(run.model_copy(update={"train": train}), torch.device("cpu"))
        return None if found is None else found.holds

    assert kind("standard", stage=False) is None and kind("standard", stage=True) is True
    assert kind("standard", stage=True, target_l0=8.0) is kind("standard", stage=False, target_l0=8.0) is False
    assert kind("topk", stage=True) is None
    quadratic = {"sparsity_loss": "quadratic", "target_l0": 8.0}  # aims at the target itself
    assert kind("jumprelu", stage=True, **quadratic) is None
