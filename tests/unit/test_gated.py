import math

import torch
from hand_computed import SHARED, X
from small_runs import with_weights

from sae_core.sae.loss import LossContext

# u = (x - b_dec) @ W_enc = [[3, 3, 6], [-1, 0, -1]].
# Gate: u + b_gate = [[-1, 3, 6], [-5, 0, -1]]; magnitude: relu(u * (1, 2, 1) + b_mag) = [[3, 5, 0], [0, 0, 0]].
WEIGHTS = SHARED | {"b_gate": [-4.0, 0.0, 0.0], "r_mag": [0.0, math.log(2), 0.0], "b_mag": [0.0, -1.0, -7.0]}


def test_the_gate_decides_and_the_magnitude_says_how_much() -> None:
    # Latent 0 has a magnitude but no gate, latent 2 a gate but no magnitude.
    torch.testing.assert_close(with_weights("gated", WEIGHTS).encode(X), torch.tensor([[0.0, 5.0, 0.0], [0.0, 0.0, 0.0]]))


def test_loss() -> None:
    loss = with_weights("gated", WEIGHTS, l1_coefficient=0.4).loss(X, LossContext(sparsity_scale=0.5))
    # x_hat = 5 (0, 2) + (1, 0) = (1, 10), error (-3, 7), 58; second token: 1.
    torch.testing.assert_close(loss.terms["mse_loss"], torch.tensor((58 + 1) / 2))
    # 0.4 * 0.5 * (3 * 2 + 6 * 5) / 2: the gate's own activations, times decoder norms.
    torch.testing.assert_close(loss.terms["l1_loss"], torch.tensor(3.6))
    # x_hat = 3 (0, 2) + 6 (3, 4) + (1, 0) = (19, 30), error (15, 27), 954; second token: 1.
    torch.testing.assert_close(loss.terms["auxiliary_reconstruction_loss"], torch.tensor((954 + 1) / 2))
    assert float(loss.l0) == 0.5
    assert loss.active.tolist() == [False, True, False]
