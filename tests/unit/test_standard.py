import torch
from hand_computed import WEIGHTS, X
from small_runs import with_weights

from sae_core.architectures.standard import Standard, StandardConfig
from sae_core.sae.loss import LossContext


def test_latents() -> None:
    assert with_weights("standard", WEIGHTS).encode(X).tolist() == [[3, 2, 6], [0, 0, 0]]


def test_loss() -> None:
    loss = with_weights("standard", WEIGHTS, l1_coefficient=0.4).loss(X, LossContext(sparsity_scale=0.5))
    # x_hat = 3 (1, 0) + 2 (0, 2) + 6 (3, 4) + (1, 0) = (22, 28), error (18, 25), 949; second token: b_dec, error (1, 0), 1.
    assert loss.terms["mse_loss"].item() == (949 + 1) / 2
    # 0.4 * 0.5 * (3 * 1 + 2 * 2 + 6 * 5 + 0) / 2
    torch.testing.assert_close(loss.terms["l1_loss"], torch.tensor(3.7))
    torch.testing.assert_close(loss.total, torch.tensor(478.7))
    assert float(loss.l0) == 1.5 and loss.active.all()


def test_the_penalty_reaches_the_decoder_norms() -> None:
    sae = with_weights("standard", WEIGHTS, l1_coefficient=1.0)
    sae.loss(X, LossContext()).terms["l1_loss"].backward()
    # d/dW_dec of mean_b sum_i latents_i * n_i: 3/2, 2/2, 6/2 times the unit rows (1, 0), (0, 1), (0.6, 0.8).
    assert sae.W_dec.grad is not None
    torch.testing.assert_close(sae.W_dec.grad, torch.tensor([[1.5, 0.0], [0.0, 1.0], [1.8, 2.4]]))


def test_a_transcoder_reads_without_b_dec_and_adds_the_skip_connection() -> None:
    sae = Standard(StandardConfig(d_sae=2, l1_coefficient=0.5, skip_connection=True), 2, 1)
    values = {"W_enc": [[1, 0], [0, 2]], "b_enc": [0, -1], "W_dec": [[3], [4]], "b_dec": [10], "W_skip": [[1, 1]]}
    sae.load_state_dict({key: torch.tensor(value, dtype=torch.float32) for key, value in values.items()})
    x = torch.tensor([[1.0, 2.0]])
    # z = (1, 2 * 2 - 1) = a;  1 * 3 + 3 * 4 + 10 = 25 without, 28 with the skip connection of 1 + 2;  L1: 1 * 3 + 3 * 4 = 15.
    latents, y_hat = sae.reconstruct(x)
    assert (latents.tolist(), y_hat.tolist(), sae.decode(latents).tolist()) == ([[1, 3]], [[28]], [[25]])
    loss = sae.loss(x, LossContext(target=torch.tensor([[26.0]])))
    assert {name: term.item() for name, term in loss.terms.items()} == {"mse_loss": 4, "l1_loss": 7.5}
