import pytest
from tiny_model import language_model_config

from sae_core.activations.language_model.source import LanguageModelSource
from sae_core.config.run import ARCHITECTURES
from sweeps.planning import measuring
from sweeps.planning.measuring import (
    COEFFICIENT_STEPS,
    FIXED_L0_STEPS,
    L0_SHARES,
    PRECISIONS,
    SKIPPED_STEPS,
    Measured,
    Size,
    measure_slot,
    smoothed,
)

SIZE = Size(d_in=16, d_sae=64, batch_size=128)


@pytest.fixture(scope="module")
def slot(tmp_path_factory):
    here = tmp_path_factory.mktemp("slot")
    config = language_model_config(here)
    LanguageModelSource(config).prepare(here / "cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "SIZES", (SIZE,))
        return measure_slot(config.model_dump(mode="json"), str(here / "cache"))


def test_every_architecture_is_measured_in_every_precision(slot):
    measured, _ = slot
    assert set(measured) == {(name, precision) for name in ARCHITECTURES for precision in PRECISIONS}
    for (name, _), steps in measured.items():
        # Where the L0 is set: two L0s, without and with dead latents.
        runs, n_steps = (1, COEFFICIENT_STEPS) if ARCHITECTURES[name].Config.has_coefficient else (2 * len(L0_SHARES), FIXED_L0_STEPS)
        assert len(steps.steps) == len(steps.seconds) == runs * (n_steps - SKIPPED_STEPS)
        assert all(seconds > 0 for seconds in steps.seconds)
        assert {(step.d_in, step.d_sae, step.batch_size) for step in steps.steps} == {SIZE}


def test_the_dense_and_the_sparse_end_are_seen(slot):
    measured, _ = slot
    for name in ARCHITECTURES:
        l0 = [step.l0 for step in measured[name, "off"].steps]
        if ARCHITECTURES[name].Config.has_coefficient:
            assert max(l0) > 2 * min(l0)
        else:
            assert max(l0) == pytest.approx(2, abs=0.5)  # 1/32 of 64
            assert measured[name, "off"].calibration_products == 4 * 2 * 128 * 16 * 64


def test_the_language_model(slot):
    _, model = slot
    assert model.load >= 0
    assert model.harvest > 0 and model.sae > 0
    assert model.evaluate > model.sae * 128 * measuring.EVAL_D_SAE


def test_a_step_that_was_held_up_is_smoothed_away():
    assert smoothed([1.0, 9.0, 2.0, 2.0]) == [5.0, 2.0, 2.0, 2.0]
    assert smoothed([3.0]) == [3.0]


def test_slots_are_put_together():
    one, other = Measured([], [1.0], 1.0, 10.0), Measured([], [2.0], 3.0, 20.0)
    one.add(other)
    assert (one.seconds, one.calibration_seconds, one.calibration_products) == ([1.0, 2.0], 4.0, 30.0)
