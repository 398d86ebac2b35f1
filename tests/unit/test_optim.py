import math
from typing import Any

import pytest
import torch
from small_runs import D_IN, D_SAE, random_sae
from torch.nn.utils import clip_grad_norm_

from sae_core.config.run import ARCHITECTURES, TrainConfig
from sae_core.sae.base import SparseAutoencoder
from sae_core.sae.loss import LossContext
from sae_core.training.optim import Adam, lr_factor


def factors(n_steps: int, **fields: object) -> list[float]:
    config = TrainConfig(**{"lr_warm_up": 0.0, "lr_decay": 0.0, **fields})  # type: ignore[arg-type]
    return [lr_factor(step, n_steps, config) for step in range(n_steps)]


def test_warm_up_and_decay_are_those_of_saelens() -> None:
    # 4 warm-up and 4 decay steps of 12, as SAELens' LinearLR pair sees them.
    expected = [0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25]
    assert factors(12, lr_warm_up=4 / 12, lr_decay=4 / 12) == pytest.approx(expected)


def test_phases_may_be_given_in_steps_or_tokens() -> None:
    expected = factors(12, lr_warm_up=4 / 12, lr_decay=3 / 12, batch_size=64)
    assert factors(12, lr_warm_up="4 steps", lr_decay="192 tokens", batch_size=64) == expected


def test_constant() -> None:
    assert factors(5) == [1.0] * 5


def test_linear_decay_all_along() -> None:
    assert factors(4, lr_decay=1.0) == [1.0, 0.75, 0.5, 0.25]


def test_cosine_falls_to_the_lowest_factor() -> None:
    # cos over 4 steps: progress 0, 1/4, 1/2, 3/4; 0.1 + 0.9 * (1 + cos(pi * progress)) / 2.
    found = factors(4, lr_schedule="cosine", lr_min_factor=0.1)
    assert found == pytest.approx([0.1 + 0.9 * (1 + math.cos(math.pi * p)) / 2 for p in (0, 0.25, 0.5, 0.75)])


def test_cosine_stays_lowest_during_the_decay() -> None:
    found = factors(8, lr_schedule="cosine", lr_decay=0.5, lr_min_factor=0.2)
    assert found[4:] == pytest.approx([0.2 * ramp for ramp in (1, 0.75, 0.5, 0.25)])


def test_cosine_starts_at_the_peak_after_the_warm_up() -> None:
    found = factors(10, lr_schedule="cosine", lr_warm_up=0.2, lr_min_factor=0.0)
    assert found[:3] == pytest.approx([0.5, 1, 1])
    assert found[3:] == sorted(found[3:], reverse=True)


def test_restarts_repeat_the_cosine() -> None:
    once, thrice = factors(4, lr_schedule="cosine"), factors(12, lr_schedule="cosine_restarts", n_restarts=2)
    assert thrice == pytest.approx(once * 3)


def test_one_step_runs_have_a_rate() -> None:
    for schedule in ("constant", "cosine", "cosine_restarts"):
        assert factors(1, lr_schedule=schedule, lr_warm_up=0.05, lr_decay=0.2) == [1.0]


def moved(sae: SparseAutoencoder, config: TrainConfig, lr: float) -> Any:
    """How far a first step with gradients of 1, which goes by the rate, moves each parameter."""
    before = {name: parameter.detach().clone() for name, parameter in sae.named_parameters()}
    for parameter in sae.parameters():
        parameter.grad = torch.ones_like(parameter)
    Adam(sae, config).step(lr, None)
    distances = {name: (before[name] - parameter.detach()).flatten() for name, parameter in sae.named_parameters()}
    assert all(torch.allclose(distance, distance[0], rtol=1e-3) for distance in distances.values())
    return pytest.approx({name: float(distance.mean()) for name, distance in distances.items()}, rel=1e-3)


def test_parameters_with_a_factor_have_their_own_rate() -> None:
    cls = ARCHITECTURES["jumprelu"]
    sae = cls(cls.Config(d_sae=D_SAE, threshold_lr_factor=5.0), D_IN)
    assert moved(sae, TrainConfig(), 2e-3) == {"W_enc": 2e-3, "W_dec": 2e-3, "b_enc": 2e-3, "b_dec": 2e-3, "threshold": 1e-2}


def test_given_factors_multiply_those_of_the_architecture() -> None:
    cls = ARCHITECTURES["jumprelu"]
    sae = cls(cls.Config(d_sae=D_SAE, threshold_lr_factor=5.0), D_IN)
    config = TrainConfig(lr_factors={"threshold": 0.1, "W_dec": 0.25})
    assert moved(sae, config, 0.1) == {"W_enc": 0.1, "W_dec": 0.025, "b_enc": 0.1, "b_dec": 0.1, "threshold": 0.05}


def test_every_parameter_may_have_a_factor() -> None:
    cls = ARCHITECTURES["standard"]
    config = TrainConfig(lr_factors=dict.fromkeys(cls.parameter_names(cls.Config(d_sae=D_SAE)), 0.5))
    assert moved(cls(cls.Config(d_sae=D_SAE), D_IN), config, 0.02) == dict.fromkeys(("W_dec", "W_enc", "b_dec", "b_enc"), 0.01)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_parameter_names(name: str) -> None:
    cls = ARCHITECTURES[name]
    config = cls.Config.example(D_IN, D_SAE)
    assert cls.parameter_names(config) == tuple(dict(cls(config, D_IN).named_parameters()))


@pytest.mark.parametrize("max_norm", [None, 0.5, 1e6])
def test_a_step_is_clipping_and_then_a_step_of_pytorchs_adam(max_norm: float | None) -> None:
    ours, theirs = random_sae("jumprelu"), random_sae("jumprelu")
    config = TrainConfig(adam_beta1=0.5, adam_beta2=0.9, adam_eps=1e-6)
    optimizer = Adam(ours, config)
    factors = ours.lr_factors()
    rates = [{"params": [p], "lr": 1e-2 * factors.get(name, 1.0)} for name, p in theirs.named_parameters()]
    plain = torch.optim.Adam(rates, betas=(config.adam_beta1, config.adam_beta2), eps=config.adam_eps)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            gradient = torch.randn(mine.shape, generator=generator)
            # In memory as `backward` leaves them: like their parameters.
            mine.grad, other.grad = (torch.empty_like(p).copy_(gradient) for p in (mine, other))
        norm = clip_grad_norm_(theirs.parameters(), math.inf if max_norm is None else max_norm)
        plain.step()
        torch.testing.assert_close(optimizer.step(1e-2, max_norm), norm)
        assert all(parameter.grad is None for parameter in ours.parameters())
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_moments_lie_in_memory_like_their_parameters(name: str) -> None:
    # Also where the gradient is of whole matrices.
    sae, x = random_sae(name), torch.randn(8, 12)
    optimizer = Adam(sae, TrainConfig())
    for _ in range(2):
        sae.loss(x, LossContext()).total.backward()
        assert all(parameter.grad is not None and parameter.grad.stride() == parameter.stride() for parameter in sae.parameters())
        optimizer.step(1e-3, 1.0)
    for name, parameter in sae.named_parameters():
        assert optimizer.exp_avg[name].stride() == optimizer.exp_avg_sq[name].stride() == parameter.stride()
