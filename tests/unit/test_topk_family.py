from itertools import pairwise
from typing import Any

import pytest
import torch
from hand_computed import WEIGHTS, X
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from small_runs import random_sae, run_of, stream_of, with_weights
from torch import Tensor

from sae_core.architectures.batchtopk import BatchTopKConfig
from sae_core.architectures.topk import TopK, TopKConfig
from sae_core.architectures.topk_family import TopKFamily
from sae_core.config.run import ARCHITECTURES
from sae_core.sae.loss import LossContext
from sae_core.training.loop import train_run

FAMILY = ("topk", "batchtopk", "matryoshka_batchtopk")


def topk(**fields: object) -> TopK:
    sae = with_weights("topk", WEIGHTS, **{"k": 1, **fields})
    assert isinstance(sae, TopK)
    return sae


def pre_acts_of(sae: TopKFamily, x: Tensor) -> Tensor:
    return sae.products(x) + sae.b_enc


def test_pre_activations_and_scores() -> None:
    pre_acts = pre_acts_of(topk(), X)
    assert pre_acts.tolist() == [[3, 2, 6], [-1, -1, -1]]
    assert (pre_acts * topk().score_factors()).tolist() == [[3, 4, 30], [-1, -2, -5]]
    assert topk(rescale_acts_by_decoder_norm=False).score_factors().tolist() == [1, 1, 1]


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("name", FAMILY)
def test_what_is_selected_are_pre_activations(name: str) -> None:
    sae, x = random_sae(name, k=3), torch.randn(16, 12)
    assert isinstance(sae, TopKFamily)
    active, values = sae.select(sae.products(x), 3)
    torch.testing.assert_close(values, pre_acts_of(sae, x).detach()[active.tokens, active.indices])
    assert values.numel() == 3 * 16 and not values.requires_grad


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
    pre_acts = pre_acts_of(sae, x)[:, :3]
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
    torch.testing.assert_close((X - folded["b_dec"]) @ folded["W_enc"] + folded["b_enc"], pre_acts_of(sae, X) * sae.score_factors())
    torch.testing.assert_close(folded["W_dec"].norm(dim=1), torch.ones(3))


def test_folding_leaves_a_row_of_zeros_finite() -> None:
    folded = with_weights("topk", WEIGHTS | {"W_dec": [[1.0, 0.0], [0.0, 0.0], [3.0, 4.0]]}, k=1)
    assert isinstance(folded, TopK)
    assert all(tensor.isfinite().all() for tensor in folded.folded_weights().values())


def test_k_stays_goes_and_arrives() -> None:
    linear = BatchTopKConfig(d_sae=64, k=8, k_start=32, k_cold_start=0.25, k_anneal=0.5)
    assert [linear.k_at(progress) for progress in (0, 0.1, 0.25, 0.5, 0.75, 0.9, 1)] == [32, 32, 32, 20, 8, 8, 8]
    exponential = linear.model_copy(update={"k_schedule": "exponential"})
    assert [exponential.k_at(progress) for progress in (0, 0.25, 0.5, 0.75, 1)] == [32, 32, pytest.approx(16), 8, 8]


def test_without_annealing_k_jumps_after_the_cold_start() -> None:
    config = TopKConfig(d_sae=64, k=8, k_start=32, k_cold_start=0.5, k_anneal=0.0)
    assert [config.k_at(progress) for progress in (0, 0.49, 0.5, 1)] == [32, 32, 8, 8]


def test_without_k_start_k_is_the_same_all_along() -> None:
    assert {TopKConfig(d_sae=64, k=8).k_at(progress) for progress in (0, 0.3, 1)} == {8}


@given(
    k=st.floats(0.5, 64), k_start=st.floats(0.5, 64), schedule=st.sampled_from(["linear", "exponential"]),
    cold=st.floats(0, 0.5), anneal=st.floats(0.01, 0.5), at=st.lists(st.floats(0, 1), min_size=2),
)  # fmt: skip
@pytest.mark.slow
def test_k_moves_one_way_from_k_start_to_k(k: float, k_start: float, schedule: Any, cold: float, anneal: float, at: list[float]) -> None:
    if k == k_start:
        return
    config = BatchTopKConfig(d_sae=64, k=k, k_start=k_start, k_schedule=schedule, k_cold_start=cold, k_anneal=anneal)
    ks = [config.k_at(progress) for progress in (0, *sorted(at), 1)]
    assert ks[0] == k_start and ks[-1] == k
    assert all((after - before) * (k - k_start) >= -1e-9 for before, after in pairwise(ks))


@pytest.mark.parametrize("name", FAMILY)
def test_the_loss_follows_the_schedule_and_encoding_does_not(name: str) -> None:
    schedule = {"k": 4, "k_start": 20, "k_schedule": "exponential", "k_cold_start": 0.1, "k_anneal": 0.6}
    sae, plain, x = random_sae(name, **schedule), random_sae(name, k=4), torch.randn(16, 12)
    for each in (sae, plain):
        each.load_state_dict(each.state_dict() | {"b_enc": torch.full((40,), 50.0)})  # enough positive ones
    for progress in (0.0, 0.05, 0.4, 0.69, 0.8, 1.0):
        k = sae.config.k_at(progress)  # type: ignore[attr-defined]
        wanted = round(k) if name == "topk" else int(k * 16) / 16
        assert float(sae.loss(x, LossContext(progress=progress)).l0) == wanted
    assert torch.equal(sae.loss(x, LossContext()).total, plain.loss(x, LossContext()).total)
    sae.loss(x, LossContext(progress=0.0))
    assert torch.equal(sae.train().encode(x), plain.train().encode(x))
    assert torch.equal(sae.eval().encode(x), plain.eval().encode(x))


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.slow
def test_a_run_anneals_k(name: str) -> None:
    config = ARCHITECTURES[name].Config(d_sae=64, k=4, k_start=16, k_cold_start=0.2, k_anneal=0.5)
    run = run_of(config, n_steps=20, batch_size=64)
    history = train_run(run, stream_of(run)).history
    l0 = [row["l0"] for row in history]
    assert all(float(found or 0) <= config.k_at(step / 20) + 0.5 for step, found in enumerate(l0))  # TopK rounds
    assert float(l0[0] or 0) > 4 and l0[-1] == pytest.approx(4, abs=0.5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"k_schedule": "exponential"}, "schedule of k must come with `k_start`, but got k_schedule='exponential' alone"),
        ({"k_anneal": 0.5}, r"schedule of k must come with `k_start`, but got k_anneal=0\.5 alone"),
        ({"k_cold_start": 0.1}, r"schedule of k must come with `k_start`, but got k_cold_start=0\.1 alone"),
        ({"k_start": 8}, "`k_start` must satisfy 0 < k_start <= d_sae and differ from k, but got k_start=8, k=8 and d_sae=64"),
        ({"k_start": 65}, "`k_start` must satisfy 0 < k_start <= d_sae and differ from k, but got k_start=65, k=8 and d_sae=64"),
        ({"k_start": 0}, "k_start\n.*input_value=0"),
        (
            {"k_start": 9, "k_anneal": 0.0},
            r"`k_anneal` \+ `k_cold_start` must be above 0 and at most 1 .*, but got 0\.0 \+ 0\.0\. Change one",
        ),
        ({"k_start": 9, "k_anneal": 0.6, "k_cold_start": 0.5}, r"at most 1 .*, but got 0\.6 \+ 0\.5\. Change one"),
    ],
)
@pytest.mark.parametrize("name", FAMILY)
def test_schedules_that_do_nothing_or_do_not_fit_are_refused(name: str, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ARCHITECTURES[name].Config(d_sae=64, k=8, **fields)


def test_a_stored_config_with_all_its_fields_is_valid() -> None:
    for fields in ({}, {"k_start": 16, "k_anneal": 0.5}):
        config = TopKConfig(d_sae=64, k=8, **fields)  # type: ignore[arg-type]
        assert TopKConfig.model_validate_json(config.model_dump_json()) == config
