import copy

import pytest
import torch
from hand_computed import WEIGHTS, X
from small_runs import random_sae, with_weights
from torch import Tensor

from sae_core.architectures.standard import Standard, StandardConfig
from sae_core.config.run import ARCHITECTURES
from sae_core.errors import ConfigError
from sae_core.sae.base import SparseAutoencoder
from sae_core.sae.functional import mse
from sae_core.sae.loss import LossContext, LossTerms
from sae_core.sae.normalization import Affine, LayerNorm, layer_norm


def test_initial_weights() -> None:
    sae = Standard(StandardConfig(d_sae=40, decoder_init_norm=0.3), 12, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.full((40,), 0.3))
    assert torch.equal(sae.W_enc, sae.W_dec.T)
    assert sae.W_enc.data_ptr() != sae.W_dec.data_ptr()  # equal at first, not tied
    assert not sae.b_dec.any() and not sae.b_enc.any()


def test_an_independent_encoder_has_the_norms_of_the_decoder() -> None:
    tied, free = (
        Standard(StandardConfig(d_sae=40, encoder_init=init), 12, generator=torch.Generator().manual_seed(0))
        for init in ("transpose", "independent")
    )
    assert torch.equal(free.W_dec, tied.W_dec)
    torch.testing.assert_close(free.W_enc.norm(dim=0), torch.full((40,), 0.1))
    assert bool(torch.cosine_similarity(free.W_enc.T, free.W_dec).abs().mean() < 0.5)


@pytest.mark.parametrize("name", [name for name, cls in ARCHITECTURES.items() if not cls.Config.is_tied])
def test_the_encoder_lies_in_memory_latent_by_latent(name: str) -> None:
    # In another order every step would be slower, and Adam's moments would follow the encoder there.
    independent = random_sae(name, encoder_init="independent")
    sae = random_sae(name)
    sae.load_state_dict({key: value.contiguous() for key, value in sae.state_dict().items()})
    inference = sae.to_inference()
    inference.fold(Affine("expected_norm", 2.0, 0.5))
    for each in (independent, sae, copy.deepcopy(sae), inference):
        assert each.W_enc.stride() == (1, 12) and each.W_dec.stride() == (12, 1)


def test_decode() -> None:
    sae = with_weights("standard", WEIGHTS)
    # 2 * (1, 0) + 1 * (0, 2) + 1 * (3, 4) + b_dec (1, 0)
    assert sae.decode(torch.tensor([[2.0, 1.0, 1.0]])).tolist() == [[6.0, 6.0]]


def test_folding_a_scale_moves_to_the_units_of_the_model() -> None:
    scaled, folded = with_weights("standard", WEIGHTS), with_weights("standard", WEIGHTS)
    folded.fold(Affine("expected_norm", 4.0, 0.25))
    assert folded.b_dec.tolist() == [0.25, 0.0] and folded.W_dec[1].tolist() == [0.0, 0.5] and folded.W_enc[0].tolist() == [4.0, 0.0, 4.0]
    assert torch.equal(folded.b_enc, scaled.b_enc)
    torch.testing.assert_close(folded.encode(X), scaled.encode(4 * X))
    torch.testing.assert_close(folded(X), scaled(4 * X) / 4)


def test_folding_a_whitening_moves_to_the_units_of_the_model() -> None:
    whitened, folded = with_weights("standard", WEIGHTS), with_weights("standard", WEIGHTS)
    matrix, mean = torch.tensor([[2.0, 1.0], [1.0, 1.0]]), torch.tensor([5.0, -3.0])
    folded.fold(Affine("whitening", matrix, matrix.inverse(), mean))
    y = (X - mean) @ matrix
    torch.testing.assert_close(folded.encode(X), whitened.encode(y))
    torch.testing.assert_close(folded(X), whitened(y) @ matrix.inverse() + mean)


def test_layer_norm_at_run_time() -> None:
    sae, x = random_sae("standard"), 3 + 2 * torch.randn(5, 12)
    y, mean, std = layer_norm(x)
    latents, y_hat = sae.reconstruct(y)
    sae.fold(LayerNorm())
    assert torch.equal(sae.reconstruct(x)[0], latents)
    torch.testing.assert_close(sae(x), y_hat * std + mean)


def test_the_inference_form_is_a_copy() -> None:
    sae = random_sae("gated").train()
    before = copy.deepcopy(sae.state_dict())
    inference = sae.to_inference()
    inference.fold(Affine("expected_norm", 2.0, 0.5))
    assert not inference.training and sae.training
    assert all(torch.equal(value, before[key]) for key, value in sae.state_dict().items())


def test_weights_that_are_not_finite_are_named() -> None:
    sae = random_sae("standard")
    with torch.no_grad():
        sae.b_dec.fill_(3e38)  # their sum is infinite; they are not
    sae.check_finite()
    with torch.no_grad():
        sae.W_enc[0, :2] = torch.tensor([torch.nan, torch.inf])
        sae.b_dec[:2] = torch.tensor([-torch.inf, torch.inf])
    with pytest.raises(ConfigError, match=r"must be finite, but got \{'W_enc': 2, 'b_dec': 2\} numbers .* architecture 'standard'"):
        sae.check_finite()


def test_mse_is_summed_over_d_in_and_averaged_over_tokens() -> None:
    # (1 + 4 + 9 + 16) / 2
    assert float(mse(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.zeros(2, 2))) == 15


def test_the_gradient_of_mse_is_that_of_pytorch() -> None:
    x_hat, x = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4)
    (ours,) = torch.autograd.grad(mse(x_hat, x) * 7, x_hat)
    (theirs,) = torch.autograd.grad(torch.nn.functional.mse_loss(x_hat, x, reduction="sum") / 3 * 7, x_hat)
    torch.testing.assert_close(ours, theirs)


def test_loss_terms_read_sparsity_off_latents() -> None:
    latents = torch.tensor([[1.0, 0.0, -2.0], [0.0, 0.0, 3.0]])
    loss = LossTerms.of({"mse_loss": torch.tensor(2.0), "l1_loss": torch.tensor(0.5)}, latents)
    assert float(loss.total) == 2.5 and float(loss.l0) == 1.5
    assert loss.active.tolist() == [True, False, True]


def test_concrete_classes_are_final() -> None:
    with pytest.raises(TypeError, match="must be abstract or final, but Wider subclasses Standard"):

        class Wider(Standard):
            pass


@pytest.mark.parametrize("method", ["decode", "reconstruct", "forward"])
def test_what_every_sae_shares_is_not_overridden(method: str) -> None:
    with pytest.raises(TypeError, match=f"`{method}` is the same for every SAE, but Own overrides it"):
        type("Own", (SparseAutoencoder,), {method: lambda self, x: x})


def test_an_abstract_sae_cannot_be_made() -> None:
    class OnlyEncodes(SparseAutoencoder):
        def encode(self, x: Tensor) -> Tensor:
            return x

    with pytest.raises(TypeError, match=r"abstract.*loss"):
        OnlyEncodes(StandardConfig(d_sae=4), 2)  # type: ignore[abstract]


def test_by_default_no_rate_differs_and_nothing_is_calibrated() -> None:
    sae = random_sae("standard")
    before = copy.deepcopy(sae.state_dict())
    sae.calibrate([torch.ones(2, 12)])
    assert sae.lr_factors() == {} and sae.saelens_fields() == {}
    assert all(torch.equal(value, before[key]) for key, value in sae.state_dict().items())
    assert LossContext() == LossContext(1.0, None)
