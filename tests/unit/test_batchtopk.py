from collections.abc import Iterator

import pytest
import torch
from hand_computed import WEIGHTS, X
from pydantic import ValidationError
from small_runs import heldout, random_sae, run_of, stream_of, with_weights
from torch import Tensor

from sae_core.architectures.batchtopk import BatchTopK, BatchTopKConfig
from sae_core.architectures.jumprelu import JumpReLU
from sae_core.config.run import ARCHITECTURES
from sae_core.sae.loss import LossContext
from sae_core.training.loop import train_run


def batchtopk(k: float = 1.0) -> BatchTopK:
    sae = with_weights("batchtopk", WEIGHTS, k=k)
    assert isinstance(sae, BatchTopK)
    return sae


def test_the_batch_shares_its_latents() -> None:
    # k * B = 2 latents for two tokens, and both largest scores, 30 and 4, are the first token's.
    sae = batchtopk()
    assert sae.train().encode(X).tolist() == [[0, 2, 6], [0, 0, 0]]
    assert sae.threshold.item() == 4


def test_a_fraction_of_a_latent_counts_over_the_batch() -> None:
    assert int((batchtopk(0.5).train().encode(X) != 0).sum()) == 1
    assert int((batchtopk(1.5).train().encode(X) != 0).sum()) == 3
    assert int((batchtopk(0.1).train().encode(X) != 0).sum()) == 1  # at least one


def test_loss() -> None:
    loss = batchtopk().loss(X, LossContext())
    # x_hat = 2 (0, 2) + 6 (3, 4) + (1, 0) = (19, 28), error (15, 25), 850; second token: 1.
    assert loss.total.item() == (850 + 1) / 2
    assert float(loss.l0) == 1 and loss.active.tolist() == [False, True, True]


def test_encoding_in_training_has_gradients() -> None:
    sae = batchtopk()
    sae.train().encode(X).sum().backward()
    assert sae.b_enc.grad is not None and sae.b_enc.grad.tolist() == [0, 1, 1]


def test_the_threshold_is_the_mean_cut_of_the_calibration_batches() -> None:
    sae = batchtopk()
    # Scores of [X[0], X[0]] are 3, 4, 30 twice: the two largest are 30 and 30. The cut of X is 4. (30 + 4) / 2
    sae.calibrate([X, X[[0, 0]]])
    assert sae.threshold.item() == 17
    assert sae.eval().encode(X).tolist() == [[0, 0, 6], [0, 0, 0]]


def test_calibration_can_round_as_training_does_but_not_while_batches_are_made() -> None:
    sae, x = random_sae("batchtopk", k=2), torch.randn(32, 12)
    autocasts: list[bool] = []

    def batches() -> Iterator[Tensor]:
        for _ in range(2):
            autocasts.append(torch.is_autocast_enabled("cpu"))
            yield x

    sae.calibrate(batches(), autocast=True)
    rounded = sae.threshold.item()
    sae.calibrate([x])
    assert 0 < abs(rounded / sae.threshold.item() - 1) < 2**-7
    assert autocasts == [False, False]


def test_thresholds_are_calibrated_at_the_final_k() -> None:
    annealed, plain = random_sae("batchtopk", k=2, k_start=16), random_sae("batchtopk", k=2)
    assert isinstance(annealed, BatchTopK) and isinstance(plain, BatchTopK)
    batches = [torch.randn(32, 12) for _ in range(3)]
    annealed.loss(batches[0], LossContext(progress=0.0))
    annealed.calibrate(batches)
    plain.calibrate(batches)
    assert torch.equal(annealed.threshold, plain.threshold)


@pytest.mark.parametrize("progress", [0.0, 0.5, 1.0])
def test_the_last_threshold_decides_nothing_in_training(progress: float) -> None:
    # It is a hint of where to look: too high after a smaller k, too low after a larger one.
    x = torch.randn(32, 12)

    def entries(threshold: float) -> list[int]:
        sae = random_sae("batchtopk", k=2, k_start=16, k_anneal=1.0)
        assert isinstance(sae, BatchTopK)
        sae.threshold.fill_(threshold)
        return sae.select(sae.products(x), sae.config.k_at(progress))[0].indices.tolist()

    assert entries(0.0) == entries(0.3) == entries(1.0) == entries(1e6)


def test_the_inference_form_is_jumprelu_with_one_threshold() -> None:
    sae = batchtopk()
    sae.calibrate([X])
    inference = sae.to_inference()
    assert isinstance(inference, JumpReLU)
    assert inference.threshold.tolist() == [4, 4, 4]
    assert inference.encode(X).tolist() == [[0, 0, 30], [0, 0, 0]]  # above the threshold, not at it


def test_without_rescaling_the_inference_form_keeps_its_rows() -> None:
    sae = with_weights("batchtopk", WEIGHTS, k=1.0, rescale_acts_by_decoder_norm=False)
    assert torch.equal(sae.to_inference().W_dec, sae.W_dec)


@pytest.mark.slow
@pytest.mark.parametrize("n_steps", [5, 20, 98])
@pytest.mark.parametrize("name", ["batchtopk", "matryoshka_batchtopk"])
def test_inference_l0_is_k_after_any_number_of_steps(name: str, n_steps: int) -> None:
    run = run_of(ARCHITECTURES[name].Config(d_sae=64, k=8.0), n_steps=n_steps, batch_size=256, lr=3e-3)
    result = train_run(run, stream_of(run, 8192))
    inference = result.exported()
    with torch.no_grad():
        l0 = (inference.encode(heldout(4096)) != 0).sum(dim=1).float().mean().item()
    assert l0 == pytest.approx(8, rel=0.05)


@pytest.mark.parametrize(("k", "message"), [(5.0, "`k` must satisfy 0 < k <= d_sae, but got k=5 and d_sae=4"), (0.0, "input_value=0.0")])
def test_k_is_above_0_and_at_most_d_sae(k: float, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        BatchTopKConfig(d_sae=4, k=k)
