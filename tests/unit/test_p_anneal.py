import pytest
import torch
from small_runs import random_sae

from sae_core.architectures.p_anneal import EPSILON, PAnnealConfig
from sae_core.sae.loss import LossContext

X = torch.randn(32, 12, generator=torch.Generator().manual_seed(0))


def test_p_falls_in_ten_equal_steps() -> None:
    config = PAnnealConfig(d_sae=8, p_end=0.2, p_anneal_start=0.12)
    found = sorted({round(config.p_at(i / 1000), 6) for i in range(1001)}, reverse=True)
    assert found == [round(1 - 0.08 * i, 6) for i in range(11)]
    assert config.p_at(0) == config.p_at(0.12) == 1
    assert config.p_at(config.schedule_end) == config.p_at(1) == 0.2


def test_before_it_falls_the_loss_is_that_of_standard() -> None:
    ours, standard = random_sae("p_anneal").loss(X, LossContext(0.7, progress=0.0)), random_sae("standard").loss(X, LossContext(0.7))
    torch.testing.assert_close(ours.terms, standard.terms)


@pytest.mark.usefixtures("kernels")
def test_a_step_of_p_leaves_the_strength_and_changes_the_gradient() -> None:
    sae, progress = random_sae("p_anneal"), 0.5
    before = sae.loss(X, LossContext(progress=0.0)).terms["l1_loss"]
    after = sae.loss(X, LossContext(progress=progress)).terms["l1_loss"]
    torch.testing.assert_close(before, after)
    other = 2 * X
    z = (other - sae.b_dec) @ sae.W_enc + sae.get_parameter("b_enc")
    p = PAnnealConfig(d_sae=40).p_at(progress)
    powers = ((z.relu() * sae.W_dec.norm(dim=1) + EPSILON) ** p - EPSILON**p).sum(dim=1).mean()
    expected = 0.5 * sae.get_buffer("strength") * powers
    torch.testing.assert_close(sae.loss(other, LossContext(progress=progress)).terms["l1_loss"], expected)


def test_the_inference_form_is_a_standard_sae() -> None:
    inference = random_sae("p_anneal").to_inference()
    assert inference.config.architecture == "standard"
    torch.testing.assert_close(inference.encode(X), random_sae("p_anneal").encode(X))
