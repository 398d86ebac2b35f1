import pytest
import torch
from hand_computed import WEIGHTS, X
from pydantic import ValidationError
from small_runs import random_sae, with_weights

from sae_core.architectures.matryoshka_batchtopk import MatryoshkaBatchTopKConfig
from sae_core.sae.loss import LossContext


def test_every_prefix_reconstructs() -> None:
    loss = with_weights("matryoshka_batchtopk", WEIGHTS, k=1.0, matryoshka_widths=(1, 2)).loss(X, LossContext())
    # Latents (0, 2, 6) and (0, 0, 0). The second token's x_hat is b_dec, its error 1, in every prefix.
    # Prefix 1: x_hat = b_dec, error (-3, -3), 18. Prefix 2: + 2 (0, 2) = (1, 4), error (-3, 1), 10. All: (19, 28), 850.
    expected = {"inner_mse_loss_1": (18 + 1) / 2, "inner_mse_loss_2": (10 + 1) / 2, "mse_loss": (850 + 1) / 2}
    assert {name: term.item() for name, term in loss.terms.items()} == expected
    assert loss.total.item() == sum(expected.values())


def test_without_inner_widths_it_is_batchtopk() -> None:
    x = torch.randn(16, 12)
    nested, plain = random_sae("matryoshka_batchtopk", matryoshka_widths=()), random_sae("batchtopk")
    torch.testing.assert_close(nested.loss(x, LossContext()).total, plain.loss(x, LossContext()).total)


@pytest.mark.parametrize(("d_sae", "widths"), [(1024, (64, 128, 256, 512)), (16, (1, 2, 4, 8)), (4, (1, 2)), (1, ())])
def test_default_widths_are_the_papers_fractions(d_sae: int, widths: tuple[int, ...]) -> None:
    assert MatryoshkaBatchTopKConfig(d_sae=d_sae, k=1.0).inner_widths == widths


def test_widths_may_be_a_list() -> None:
    raw = {"architecture": "matryoshka_batchtopk", "d_sae": 8, "k": 1, "matryoshka_widths": [2, 4]}
    assert MatryoshkaBatchTopKConfig.model_validate(raw).inner_widths == (2, 4)


@pytest.mark.parametrize("widths", [(4, 2), (2, 2), (2, 8)])
def test_widths_increase_and_stay_below_d_sae(widths: tuple[int, ...]) -> None:
    message = rf"`matryoshka_widths` must be increasing and below d_sae, but got \[{widths[0]}, {widths[1]}\] and d_sae=8"
    with pytest.raises(ValidationError, match=message):
        MatryoshkaBatchTopKConfig(d_sae=8, k=1.0, matryoshka_widths=widths)
