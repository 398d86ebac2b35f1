import pytest
import torch
from small_runs import D_IN, D_SAE, run_of, stream_of
from torch import Tensor

from sae_core.config.run import ARCHITECTURES
from sae_core.training.loop import Learner
from sae_core.training.resampling import ENCODER_SCALE, resample

DEAD = torch.zeros(D_SAE, dtype=torch.bool).index_fill(0, torch.tensor([3, 10, 11]), True)


def learner(name: str = "standard") -> tuple[Learner, Tensor]:
    """A run after three steps, and the next batch."""
    run = run_of(name, lr=3e-3)
    started = Learner.start(run, D_IN, torch.device("cpu"))
    batches = stream_of(run).batches()
    for _ in range(3):
        started.train_step(next(batches))
    return started, next(batches)


def state(part: Learner) -> dict[str, Tensor]:
    """Parameters and moments, latents first."""
    found = {}
    for name, parameter in part.sae.named_parameters():
        moments = part.optimizer.exp_avg[name], part.optimizer.exp_avg_sq[name]
        for key, value in (("", parameter), ("/exp_avg", moments[0]), ("/exp_avg_sq", moments[1])):
            found[name + key] = (value.T if name == "W_enc" else value).detach().clone()
    return found


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_dead_latents_are_new_and_the_others_as_before(name: str) -> None:
    part, x = learner(name)
    before = state(part)
    resample(part.sae, part.optimizer, DEAD, x, seed=0)
    after = state(part)
    for key, value in after.items():
        if key.startswith("b_dec"):
            assert torch.equal(value, before[key])
            continue
        assert torch.equal(value[~DEAD], before[key][~DEAD]), key
        assert "/" not in key or not value[DEAD].any(), key
    for key, value in part.sae.initial_values().items():
        assert torch.equal(after[key][DEAD], value[DEAD])


def test_new_weights_point_from_b_dec_to_tokens() -> None:
    part, x = learner()
    resample(part.sae, part.optimizer, DEAD, x, seed=0)
    W_dec, W_enc = part.sae.W_dec.detach(), part.sae.W_enc.detach().T
    cosines = torch.nn.functional.normalize(W_dec[DEAD]) @ torch.nn.functional.normalize(x - part.sae.b_dec.detach()).T
    torch.testing.assert_close(cosines.max(dim=1).values, torch.ones(3))
    assert len(cosines.argmax(dim=1).unique()) == 3
    torch.testing.assert_close(torch.cosine_similarity(W_enc[DEAD], W_dec[DEAD]), torch.ones(3))
    torch.testing.assert_close(W_dec[DEAD].norm(dim=1), W_dec[~DEAD].norm(dim=1).mean().expand(3))
    torch.testing.assert_close(W_enc[DEAD].norm(dim=1), ENCODER_SCALE * W_enc[~DEAD].norm(dim=1).mean().expand(3))


def chosen(part: Learner, x: Tensor, seed: int) -> Tensor:
    """Which token each dead latent was made of."""
    resample(part.sae, part.optimizer, DEAD, x, seed=seed)
    directions = torch.nn.functional.normalize(x - part.sae.b_dec.detach())
    return (part.sae.W_dec.detach()[DEAD] @ directions.T).argmax(dim=1)


def test_tokens_are_chosen_by_squared_error() -> None:
    part, x = learner()
    x = x[:5].clone()
    with torch.no_grad():
        part.sae.W_enc.zero_()
        part.sae.b_enc.fill_(-1)  # nothing is ever active, so the error is the distance to b_dec
        x[0] = part.sae.b_dec  # no error: never chosen
        x[1] = part.sae.b_dec + 100 * torch.eye(D_IN)[0]
    picks = torch.stack([chosen(part, x, seed) for seed in range(40)])
    assert (picks == 1).any(dim=1).all() and not (picks == 0).any()


def test_the_seed_decides_the_tokens() -> None:
    part, x = learner()
    assert torch.equal(chosen(part, x, 0), chosen(learner()[0], x, 0))
    assert any(not torch.equal(chosen(part, x, 0), chosen(part, x, seed)) for seed in range(1, 4))


def test_more_dead_latents_than_tokens() -> None:
    part, x = learner()
    resample(part.sae, part.optimizer, torch.ones(D_SAE, dtype=torch.bool), x[:2], seed=0)
    assert all(parameter.isfinite().all() for parameter in part.sae.parameters())
    assert part.sae.W_dec.norm(dim=1).min() > 0


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_without_a_finite_error_nothing_happens(value: float) -> None:
    part, x = learner()
    with torch.no_grad():
        part.sae.b_dec.zero_()
        part.sae.W_enc.zero_()
        part.sae.b_enc.zero_()
    before = state(part)
    resample(part.sae, part.optimizer, DEAD, torch.full_like(x, value), seed=0)
    assert all(torch.equal(after, before[key]) for key, after in state(part).items())


def test_a_resampled_latent_is_active_again() -> None:
    part, x = learner()
    with torch.no_grad():
        part.sae.get_parameter("b_enc")[DEAD] = -1e6
    assert not part.sae.encode(x)[:, DEAD].any()
    resample(part.sae, part.optimizer, DEAD, x, seed=0)
    assert part.sae.encode(x)[:, DEAD].any(dim=0).all()
