import pytest
import torch
from hand_computed import WEIGHTS, X
from pydantic import ValidationError
from small_runs import random_sae, with_weights

from sae_core.architectures.jumprelu import JumpReLU
from sae_core.architectures.topk import TopKConfig
from sae_core.sae.loss import LossContext


def test_latents_are_chosen_by_score_and_are_plain_pre_activations() -> None:
    # Scores 3, 4, 30: latents 1 and 2. The second token's are negative: nothing is active, L0 is below k.
    assert with_weights("topk", WEIGHTS, k=2).encode(X).tolist() == [[0, 2, 6], [0, 0, 0]]


def test_without_rescaling_the_pre_activation_is_the_score() -> None:
    assert with_weights("topk", WEIGHTS, k=2, rescale_acts_by_decoder_norm=False).encode(X).tolist() == [[3, 0, 6], [0, 0, 0]]


def test_loss() -> None:
    loss = with_weights("topk", WEIGHTS, k=2).loss(X, LossContext())
    # x_hat = 2 (0, 2) + 6 (3, 4) + (1, 0) = (19, 28), error (15, 25), 850; second token: 1.
    assert {name: term.item() for name, term in loss.terms.items()} == {"mse_loss": (850 + 1) / 2}
    assert float(loss.l0) == 1
    assert loss.active.tolist() == [False, True, True]


def test_training_and_inference_encode_the_same() -> None:
    sae, x = random_sae("topk"), torch.randn(16, 12)
    assert torch.equal(sae.train().encode(x), sae.eval().encode(x))


def test_every_token_has_k_latents_where_enough_are_positive() -> None:
    sae = random_sae("topk", k=3)
    sae.load_state_dict(sae.state_dict() | {"b_enc": torch.full((40,), 50.0)})
    assert (sae.encode(torch.randn(16, 12)) != 0).sum(dim=1).tolist() == [3] * 16


def test_an_annealed_k_is_rounded() -> None:
    sae = random_sae("topk", k=2, k_start=5, k_anneal=1.0)
    sae.load_state_dict(sae.state_dict() | {"b_enc": torch.full((40,), 50.0)})
    # 5, 4.25, 3.5, 2.75 and 2 latents a token; a half goes to the even neighbour.
    assert [float(sae.loss(torch.randn(16, 12), LossContext(progress=i / 4)).l0) for i in range(5)] == [5, 4, 4, 3, 2]


def test_k_start_is_a_whole_number() -> None:
    with pytest.raises(ValidationError, match=r"k_start\n.*input_value=4\.5"):
        TopKConfig(d_sae=40, k=2, k_start=4.5)  # type: ignore[arg-type]


def test_the_inference_form_has_unit_rows_and_says_so() -> None:
    inference = with_weights("topk", WEIGHTS, k=2).to_inference()
    assert inference.saelens_fields() == {"k": 2, "rescale_acts_by_decoder_norm": False}
    torch.testing.assert_close(inference.W_dec.norm(dim=1), torch.ones(3))
    assert inference.encode(X).tolist() == [[0, 4, 30], [0, 0, 0]]


@pytest.mark.parametrize("k", [0, 5])
def test_k_is_between_1_and_d_sae(k: int) -> None:
    rule = "`k` must satisfy 0 < k <= d_sae, but got k=5 and d_sae=4" if k else "k\n.*input_value=0"
    with pytest.raises(ValidationError, match=rule):
        TopKConfig(d_sae=4, k=k)


def test_the_inference_form_of_a_transcoder_has_the_mean_cut_of_its_batches_for_a_threshold() -> None:
    sae, batches = random_sae("topk", d_out=9, k=3), torch.randn(4, 16, 12).unbind()
    sae.calibrate(batches)
    scores = [(x @ sae.W_enc + sae.b_enc) * sae.W_dec.norm(dim=1) for x in batches]
    cuts = torch.stack([score.flatten().topk(16 * 3).values[-1] for score in scores])
    inference = sae.to_inference()
    assert isinstance(inference, JumpReLU)
    torch.testing.assert_close(inference.threshold.detach(), cuts.mean().expand(40))
    torch.testing.assert_close(inference.encode(batches[0]), scores[0] * (scores[0] > cuts.mean()))


def test_an_sae_has_no_threshold() -> None:
    sae = random_sae("topk")
    assert "threshold" not in sae.state_dict() and "threshold" in random_sae("topk", d_out=9).state_dict()
    sae.calibrate([torch.randn(16, 12)])
    assert sae.inference_architecture == "topk" and sae.to_inference().config.architecture == "topk"
