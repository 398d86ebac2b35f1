import math
from typing import Any

import pytest
import torch
from hand_computed import WEIGHTS, X
from pydantic import ValidationError
from small_runs import with_weights
from torch import Tensor

from sae_core.architectures.jumprelu import JumpReLU, JumpReLUConfig
from sae_core.sae.loss import LossContext
from sweeps import Sweep

# Pre-activations [[3, 2, 6], [-1, -1, -1]]: latents 0 and 2 of the first token are above these thresholds.
THRESHOLDS = [2.5, 2.0, 1.0]


def jumprelu(**fields: object) -> JumpReLU:
    sae = with_weights("jumprelu", WEIGHTS | {"threshold": THRESHOLDS}, **fields)
    assert isinstance(sae, JumpReLU)
    return sae


def test_latents_are_above_their_threshold() -> None:
    assert jumprelu().encode(X).tolist() == [[3, 0, 6], [0, 0, 0]]  # 2 is at its threshold, not above


def test_step_loss() -> None:
    loss = jumprelu(l0_coefficient=0.4).loss(X, LossContext(sparsity_scale=0.5))
    # x_hat = 3 (1, 0) + 6 (3, 4) + (1, 0) = (22, 24), error (18, 21), 765; second token: 1.
    assert loss.terms["mse_loss"].item() == (765 + 1) / 2
    torch.testing.assert_close(loss.terms["l0_loss"].detach(), torch.tensor(0.4 * 0.5 * (2 + 0) / 2))
    assert float(loss.l0) == 1 and loss.active.tolist() == [True, False, True]


def test_quadratic_loss_aims_at_the_target() -> None:
    loss = jumprelu(l0_coefficient=1.0, sparsity_loss="quadratic", target_l0=3.0).loss(X, LossContext())
    assert loss.terms["l0_loss"].item() == pytest.approx(2 / 3 * ((2 - 3) ** 2 + (0 - 3) ** 2) / 2)


def test_tanh_loss_weighs_latents_by_decoder_norms() -> None:
    loss = jumprelu(l0_coefficient=1.0, sparsity_loss="tanh", tanh_scale=0.01).loss(X, LossContext())
    # Latents 3 and 6, norms 1 and 5.
    assert loss.terms["l0_loss"].item() == pytest.approx((math.tanh(0.03) + math.tanh(0.3)) / 2)


def test_pre_activation_loss_pulls_dead_latents_up_whatever_the_warm_up() -> None:
    dead = torch.tensor([False, True, True])
    loss = jumprelu(pre_act_loss_coefficient=0.1).loss(X, LossContext(sparsity_scale=0.0, dead=dead))
    # Second token: relu(2 + 1) * 2 + relu(1 + 1) * 5; the first is at or above both thresholds.
    assert loss.terms["pre_act_loss"].item() == pytest.approx(0.1 * 16 / 2)
    assert jumprelu(pre_act_loss_coefficient=0.1).loss(X, LossContext()).terms["pre_act_loss"].item() == 0
    assert "pre_act_loss" not in jumprelu().loss(X, LossContext(dead=dead)).terms


@pytest.mark.parametrize(
    ("to_input", "d_threshold", "d_b_enc"),
    [
        # Bandwidth 2: the kernel is 1/2 where |z - threshold| < 1, that is for latents 0 and 1 of the first token.
        # g = 2 (x_hat - x) . W_dec_i / B: error (18, 21) gives 18, 42, 3 * 18 + 4 * 21 = 138. h = l0_coefficient / B = 0.2.
        # d threshold_i = -1/2 (threshold_i g_i + h): -(2.5 * 18 + 0.2) / 2 and -(2 * 42 + 0.2) / 2.
        (False, [-22.6, -42.1, 0.0], [18.0, 0.0, 138.0]),
        (True, [-22.6, -42.1, 0.0], [18 + 22.6, 42.1, 138.0]),
    ],
)
def test_straight_through_gradients(to_input: bool, d_threshold: list[float], d_b_enc: list[float]) -> None:
    sae = jumprelu(l0_coefficient=0.4, bandwidth=2.0, ste_to_input=to_input)
    sae.loss(X, LossContext()).total.backward()
    assert sae.threshold.grad is not None and sae.b_enc.grad is not None
    torch.testing.assert_close(sae.threshold.grad, torch.tensor(d_threshold))
    torch.testing.assert_close(sae.b_enc.grad, torch.tensor(d_b_enc))


def test_the_tanh_loss_moves_thresholds_through_the_latents() -> None:
    def d_threshold(coefficient: float) -> Tensor:
        sae = jumprelu(l0_coefficient=coefficient, bandwidth=2.0, sparsity_loss="tanh", tanh_scale=0.01)
        sae.loss(X, LossContext()).total.backward()
        assert sae.threshold.grad is not None
        return sae.threshold.grad

    # The kernel is 1/2 at latents 0 (3, threshold 2.5, norm 1) and 1 (0, as it is not above its threshold 2, norm 2) of the first token:
    # -1/2 threshold_i * coefficient * scale * norm_i * (1 - tanh^2) / B.
    expected = [-0.5 * 2.5 * 10 * 0.01 * 1 * (1 - math.tanh(0.03) ** 2) / 2, -0.5 * 2 * 10 * 0.01 * 2 / 2, 0.0]
    torch.testing.assert_close(d_threshold(10.0) - d_threshold(0.0), torch.tensor(expected), atol=1e-5, rtol=1e-5)


def test_the_kernel_is_open_at_its_edges() -> None:
    def d_threshold(bandwidth: float) -> Tensor:
        sae = jumprelu(l0_coefficient=1.0, bandwidth=bandwidth)
        sae.loss(X, LossContext()).total.backward()
        assert sae.threshold.grad is not None
        return sae.threshold.grad

    assert d_threshold(1.0)[0] == 0  # |3 - 2.5| is half the bandwidth, not less
    assert d_threshold(1.01)[0] != 0


def test_thresholds_stay_at_0_or_above() -> None:
    sae = jumprelu()
    with torch.no_grad():
        sae.threshold[1] = -0.5
    sae.loss(X, LossContext())
    assert sae.threshold.tolist() == [2.5, 0.0, 1.0]
    with torch.no_grad():
        sae.threshold[1] = -0.5  # as the last optimizer step may leave it
    assert sae.to_inference().state_dict()["threshold"].tolist() == [2.5, 0.0, 1.0]


def test_thresholds_start_equal_and_learn_faster() -> None:
    sae = JumpReLU(JumpReLUConfig(d_sae=3, init_threshold=0.25, threshold_lr_factor=7.0), 2)
    assert sae.threshold.tolist() == [0.25] * 3
    assert sae.lr_factors() == {"threshold": 7.0}


def test_the_quadratic_loss_needs_a_target() -> None:
    with pytest.raises(ValidationError, match="`target_l0` must be given where `sparsity_loss` is quadratic, but got target_l0=None"):
        JumpReLUConfig(d_sae=3, sparsity_loss="quadratic")


@pytest.mark.parametrize("loss", ["step", "quadratic"])
def test_a_scale_without_tanh_is_refused(loss: Any) -> None:
    with pytest.raises(ValidationError, match=f"`tanh_scale` must come with .* but got tanh_scale=2 and sparsity_loss='{loss}'"):
        JumpReLUConfig(d_sae=3, sparsity_loss=loss, target_l0=2.0, tanh_scale=2.0)


def test_a_stored_config_with_all_its_fields_is_valid() -> None:
    config = JumpReLUConfig(d_sae=3)
    assert JumpReLUConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    "fields",
    [
        {"sparsity_loss": "step", "l0_coefficient": [0.1, 1]},
        {"sparsity_loss": "quadratic", "target_l0": [16, 32]},
        {"sparsity_loss": "tanh", "tanh_scale": [2, 4], "l0_coefficient": 1, "pre_act_loss_coefficient": 3e-6},
        {"sparsity_loss": ["step", "tanh"], "ste_to_input": True, "threshold_lr_factor": 2.0, "bandwidth": 0.1, "init_threshold": 0.1},
    ],
)
def test_every_variant_can_be_given_in_a_definition(fields: dict[str, Any]) -> None:
    activations = {"source": "synthetic", "train_tokens": 10_000, "eval_tokens": 100}
    runs = Sweep(name="variants", activations=activations, sae={"d_sae": 64}, architectures={"jumprelu": fields}).runs()
    assert len(runs) == 2
    for name, given in fields.items():
        values = given if isinstance(given, list) else [given]
        assert {getattr(run.sae, name) for run in runs} == set(values)


def test_only_the_quadratic_loss_aims_by_itself() -> None:
    assert not JumpReLUConfig(d_sae=3, sparsity_loss="quadratic", target_l0=2.0).controls_l0
    assert JumpReLUConfig(d_sae=3, sparsity_loss="step", target_l0=2.0).controls_l0
    assert JumpReLUConfig(d_sae=3, sparsity_loss="tanh", target_l0=2.0).controls_l0
