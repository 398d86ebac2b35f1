import pytest
import torch
from hand_computed import WEIGHTS, X
from small_runs import random_sae, with_weights
from torch import Tensor

from sae_core.architectures.topk import TopK
from sae_core.sae import LossContext


def topk(**fields: object) -> TopK:
    sae = with_weights("topk", WEIGHTS, **{"k": 1, **fields})
    assert isinstance(sae, TopK)
    return sae


def test_pre_activations_and_scores() -> None:
    pre_acts, scores = topk().pre_acts_and_scores(X)
    assert pre_acts.tolist() == [[3, 2, 6], [-1, -1, -1]]
    assert scores.tolist() == [[3, 4, 30], [-1, -2, -5]]


@pytest.mark.parametrize(
    ("rescale", "expected"),
    [
        # k_aux = d_in / 2 = 1 of the dead latents 0 and 1. By score: latent 1, then latent 0: e_hat = (0, 4) and (-1, 0);
        # residual (1, 0) and (0, 2): (1 + 16 + 1 + 4) / 2. There is no ReLU on the dead, and no b_dec.
        (True, 11.0),
        # By pre-activation: latent 0 and, of the equal -1 and -1, either: (-1, 0) as above or (0, -2). e_hat = (3, 0): 4.
        (False, (4 + 5) / 2),
    ],
)
def test_auxiliary_loss(rescale: bool, expected: float) -> None:
    sae = topk(rescale_acts_by_decoder_norm=rescale)
    x = X if rescale else X + torch.tensor([[0.0, 0.0], [0.0, -0.5]])  # breaks the tie: pre-activations -1 and -1.5
    residual = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    loss = sae.auxk_loss(x, residual, torch.tensor([True, True, False]))
    assert loss.item() == expected


def test_few_dead_latents_scale_the_auxiliary_loss_down() -> None:
    sae = random_sae("topk", d_in=12)
    assert isinstance(sae, TopK)
    x, residual = torch.randn(8, 12), torch.randn(8, 12)
    dead = torch.zeros(40, dtype=torch.bool)
    dead[:3] = True
    pre_acts = sae.pre_acts_and_scores(x)[0][:, :3]
    error = (pre_acts @ sae.W_dec[:3] - residual).pow(2).sum(dim=1).mean()
    torch.testing.assert_close(sae.auxk_loss(x, residual, dead), 3 / 6 * error)  # 3 of k_aux = 6


def test_the_auxiliary_loss_trains_dead_latents_only() -> None:
    sae = random_sae("topk")
    dead = torch.zeros(40, dtype=torch.bool)
    dead[[2, 3]] = True
    sae.loss(torch.randn(32, 12), LossContext(dead=dead)).terms["auxiliary_reconstruction_loss"].backward()
    assert sae.W_dec.grad is not None and sae.W_enc.grad is not None
    assert sae.W_dec.grad.any(dim=1).nonzero().flatten().tolist() == [2, 3]
    assert sae.W_enc.grad.any(dim=0).nonzero().flatten().tolist() == [2, 3]


def test_without_dead_latents_or_coefficient_there_is_no_auxiliary_loss() -> None:
    dead = torch.tensor([True, True, False])

    def terms(coefficient: float, dead: Tensor | None) -> set[str]:
        return set(topk(auxk_coefficient=coefficient).loss(X, LossContext(dead=dead)).terms)

    assert terms(1.0, None) == terms(0.0, dead) == {"mse_loss"}
    assert terms(0.03125, dead) == {"mse_loss", "auxiliary_reconstruction_loss"}


def test_folded_weights_make_the_latents_the_scores() -> None:
    sae = topk()
    folded = sae.folded_weights()
    torch.testing.assert_close((X - folded["b_dec"]) @ folded["W_enc"] + folded["b_enc"], sae.pre_acts_and_scores(X)[1])
    torch.testing.assert_close(folded["W_dec"].norm(dim=1), torch.ones(3))


def test_folding_leaves_a_row_of_zeros_finite() -> None:
    folded = with_weights("topk", WEIGHTS | {"W_dec": [[1.0, 0.0], [0.0, 0.0], [3.0, 4.0]]}, k=1)
    assert isinstance(folded, TopK)
    assert all(tensor.isfinite().all() for tensor in folded.folded_weights().values())
