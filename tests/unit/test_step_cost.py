import dataclasses
import itertools

import pytest

from sweeps.definition.sweep import Sweep
from sweeps.planning.measuring import SIZES
from sweeps.planning.step_cost import START_SHARE, Step, StepCost, l0_at, run_seconds

COST = StepCost(
    fixed=1e-3,
    product=2e-11,
    latent=1e-9,
    active=3e-8,
    entry=4e-10,
    parameter=5e-9,
    dead_token=1e-8,
    dead_parameter=2e-9,
    dense_share=1 / 16,
    calibration=1e-11,
)
STEPS = [
    Step(*size, l0=share * size.d_sae, dead=dead)
    for size, share, dead in itertools.product(SIZES, (1 / 128, 1 / 32, 1 / 10, 1 / 2), (False, True))
]


def run(architecture="topk", train=None, **fields):
    definition = {
        "name": "small",
        "activations": {"source": "synthetic", "d_in": 32, "train_tokens": 100_000, "eval_tokens": 1000},
        "sae": {"d_sae": 512},
        "train": {"batch_size": 1000, **(train or {})},
        "architectures": {architecture: fields},
    }
    return Sweep(**definition).runs()[0]


def test_seconds_by_hand():
    # B = 100, d_in = 10, d_sae = 1000; L0 = 50 counts whole, as it is below 1000 / 16.
    step = Step(10, 1000, 100, l0=50.0, dead=False)
    parts = [1e-3, 2e-11 * 100 * 10 * 1000, 1e-9 * 100 * 1000, 3e-8 * 100 * 50, 4e-10 * 100 * 50 * 10, 5e-9 * 10 * 1000]
    assert COST.seconds(step) == pytest.approx(sum(parts))
    assert COST.seconds(dataclasses.replace(step, dead=True)) == pytest.approx(sum(parts) + 1e-8 * 100 * 10 + 2e-9 * 10 * 1000)


def test_beyond_the_dense_share_active_latents_cost_no_more():
    dense, denser = (Step(10, 1600, 100, l0=l0, dead=False) for l0 in (100.0, 900.0))
    assert COST.seconds(dense) == COST.seconds(denser)


def test_a_fit_finds_the_costs_that_made_the_times():
    fitted = StepCost.fit(STEPS, [COST.seconds(step) for step in STEPS], calibration=1e-11)
    assert fitted.dense_share == COST.dense_share
    for unseen in (Step(256, 3000, 700, 20.0, False), Step(96, 512, 2000, 300.0, True)):
        assert fitted.seconds(unseen) == pytest.approx(COST.seconds(unseen), rel=0.01)


def test_steps_that_were_held_up_hardly_count():
    seconds = [COST.seconds(step) * (4 if index % 10 == 3 else 1) for index, step in enumerate(STEPS)]
    fitted = StepCost.fit(STEPS, seconds, calibration=0.0)
    errors = [abs(fitted.seconds(step) / COST.seconds(step) - 1) for step in STEPS]
    assert sorted(errors)[len(errors) // 2] < 0.05


def test_no_cost_is_negative():
    falling = [1.0 / (1 + step.d_sae) for step in STEPS]
    assert all(value >= 0 for value in dataclasses.astuple(StepCost.fit(STEPS, falling, calibration=0.0)))


def test_nothing_measured():
    with pytest.raises(ValueError, match="but got 0"):
        StepCost.fit([], [], calibration=0.0)


def test_a_run_of_known_l0():
    # 100 steps; 40 of them come after 60,000 tokens, when latents may be dead; 65,536 tokens to calibrate on.
    alive, dead = (COST.seconds(Step(32, 512, 1000, 8.0, some)) for some in (False, True))
    expected = 60 * alive + 40 * dead + 1e-11 * 65_536 * 32 * 512
    assert run_seconds(run(k=8, train={"dead_after_tokens": 60_000}), 32, COST, 65_536) == pytest.approx(expected)


def test_where_a_coefficient_sets_the_sparsity_l0_falls_to_what_is_wanted():
    standard = run("standard", target_l0=8, lr=1e-2)
    values = [l0_at(standard, position / 20) for position in range(21)]
    assert values[0] == pytest.approx(START_SHARE * 512)
    assert values == sorted(values, reverse=True)
    assert values[-1] == pytest.approx(8)
    # 1.4 times a warm-up of 5 steps, and 0.25 / 1e-2 steps: 32 of 100.
    assert l0_at(standard, 0.31) > 8.5 and l0_at(standard, 0.32) == pytest.approx(8)
    assert l0_at(run("standard", target_l0=8, lr=2e-3), 0.32) > 50
    assert run_seconds(standard, 32, COST, 0) > run_seconds(run(k=8), 32, COST, 0)
