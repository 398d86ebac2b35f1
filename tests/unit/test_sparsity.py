import pytest

from sae_core.config import TrainConfig
from sae_core.sparsity import sparsity_scale


def test_warm_up_starts_at_0_and_ends_at_1() -> None:
    # 4 of 20 steps: step 0 sees 0 and step 4 sees 1, as in SAELens.
    config = TrainConfig(sparsity_warm_up=0.2)
    assert [sparsity_scale(step, 20, config) for step in range(7)] == pytest.approx([0, 0.25, 0.5, 0.75, 1, 1, 1])


def test_without_warm_up_it_is_1_from_the_first_step() -> None:
    assert sparsity_scale(0, 20, TrainConfig(sparsity_warm_up=0.0)) == 1
    assert sparsity_scale(0, 5, TrainConfig(sparsity_warm_up=0.05)) == 1  # a quarter of a step rounds to none
