import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_runs import D_IN, run_of, stream_of
from torch import Tensor

from sae_core.architectures.standard import StandardConfig
from sae_core.architectures.topk import TopKConfig
from sae_core.config.run import ARCHITECTURES, ArchitectureConfig, RunConfig
from sae_core.errors import ConfigError
from sae_core.sae.base import SparseAutoencoder
from sae_core.sae.loss import LossContext
from sae_core.training import initialization
from sae_core.training.initialization import NORMS, Sample, best_norm, geometric_median, initialize, needs_sample


def fresh(config: ArchitectureConfig, seed: int = 0) -> SparseAutoencoder:
    sae: SparseAutoencoder = ARCHITECTURES[config.architecture](config, D_IN, generator=torch.Generator().manual_seed(seed))
    return sae.train()


def initialized(run: RunConfig) -> tuple[SparseAutoencoder, Sample]:
    sae, sample = fresh(run.sae), Sample(stream_of(run))
    initialize(sae, sample, run)
    return sae, sample


def distances(x: Tensor, point: Tensor) -> float:
    return float(torch.linalg.vector_norm(x.double() - point.double(), dim=1).sum())


def cloud(seed: int, n: int, d_in: int = 3) -> Tensor:
    return torch.randn(n, d_in, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_defaults_need_no_sample() -> None:
    assert not needs_sample(StandardConfig(d_sae=8)) and not needs_sample(StandardConfig(d_sae=8, encoder_init="independent"))
    for field, value in (("decoder_init", "data"), ("decoder_init_norm", "search"), ("b_dec_init", "mean")):
        assert needs_sample(StandardConfig.model_validate({"d_sae": 8, field: value}))


def test_the_sample_is_the_first_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(initialization, "SAMPLE_TOKENS", 200)
    stream = stream_of(run_of("topk"))  # batches of 64
    batches = stream.batches(0)
    assert torch.equal(Sample(stream).x, torch.cat([next(batches) for _ in range(3)]))
    monkeypatch.setattr(initialization, "SAMPLE_TOKENS", 10)
    assert len(Sample(stream).x) == 64


def test_b_dec_starts_at_the_mean_or_the_geometric_median() -> None:
    for init, point in (("mean", "mean"), ("geometric_median", "geometric_median")):
        sae, sample = initialized(run_of(TopKConfig.model_validate({"d_sae": 64, "k": 4, "b_dec_init": init})))
        assert torch.equal(sae.b_dec, getattr(sample, point)) and sae.b_dec.any()
        assert torch.equal(sae.W_dec, fresh(TopKConfig(d_sae=64, k=4)).W_dec)


@pytest.mark.parametrize("d_sae", [64, 500])
def test_rows_from_the_data_point_at_tokens(d_sae: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(initialization, "SAMPLE_TOKENS", 256)
    config = TopKConfig(d_sae=d_sae, k=4, decoder_init="data", decoder_init_norm=0.3, b_dec_init="mean")
    sae, sample = initialized(run_of(config))
    cosines = torch.nn.functional.normalize(sae.W_dec) @ torch.nn.functional.normalize(sample.x - sae.b_dec).T
    torch.testing.assert_close(cosines.max(dim=1).values, torch.ones(d_sae))
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.full((d_sae,), 0.3))
    assert torch.equal(sae.W_enc, sae.W_dec.T)


def test_no_token_is_chosen_twice_where_there_are_enough() -> None:
    tokens = cloud(0, 40)
    assert sorted(initialization._chosen_tokens(tokens, 40, seed=0).tolist()) == list(range(40))
    assert len(initialization._chosen_tokens(tokens, 41, seed=0)) == 41
    tokens[7] = 0
    assert 7 not in initialization._chosen_tokens(tokens, 500, seed=0)


def test_the_seed_chooses_the_rows() -> None:
    config = TopKConfig(d_sae=64, k=4, decoder_init="data")
    one, again, other = (initialized(run_of(config, seed=seed))[0].W_dec for seed in (0, 0, 1))
    assert torch.equal(one, again) and not torch.equal(one, other)


def test_an_independent_encoder_stays_so() -> None:
    sae, _ = initialized(run_of(TopKConfig(d_sae=64, k=4, decoder_init="data", encoder_init="independent")))
    assert torch.equal(sae.W_enc, fresh(TopKConfig(d_sae=64, k=4, encoder_init="independent")).W_enc)


def test_rows_need_tokens_away_from_b_dec() -> None:
    with pytest.raises(ConfigError, match="but got none to choose n=3 rows from"):
        initialization._chosen_tokens(torch.zeros(5, 2), 3, seed=0)


def test_norms_are_a_logarithmic_grid() -> None:
    assert NORMS[0] == 0.05 and NORMS[-1] == pytest.approx(2.0)
    assert {round(after / before, 6) for before, after in itertools.pairwise(NORMS)} == {round(40 ** (1 / 16), 6)}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["standard", "batchtopk", "jumprelu"])
def test_the_search_finds_the_norm_of_least_error(name: str) -> None:
    example: ArchitectureConfig = ARCHITECTURES[name].Config.example(D_IN, 64)
    run = run_of(type(example).model_validate(example.model_dump() | {"decoder_init_norm": "search"}))
    sae, sample = initialized(run)
    norm = float(sae.W_dec.detach()[0].norm())
    torch.testing.assert_close(sae.W_dec.detach().norm(dim=1), torch.full((64,), norm))
    assert torch.equal(sae.W_enc, sae.W_dec.T) and min(abs(norm - tried) for tried in NORMS) < 1e-5

    def error(factor: float) -> float:
        other = fresh(run.sae)
        with torch.no_grad():
            other.W_enc.copy_(sae.W_enc * factor)
            other.W_dec.copy_(sae.W_dec * factor)
        batches = sample.x[:4096].split(64)
        return sum(float(other.loss(x, LossContext()).terms["mse_loss"].detach()) for x in batches)

    assert all(error(1.0) <= error(factor) * (1 + 1e-6) for factor in (0.5, 0.8, 1.25, 2))


@pytest.mark.slow
def test_the_search_leaves_the_sae_alone() -> None:
    sae = fresh(TopKConfig(d_sae=64, k=4, decoder_init_norm="search"))
    before = {key: value.clone() for key, value in sae.state_dict().items()}
    best_norm(sae, Sample(stream_of(run_of("topk"))), batch_size=5000)  # larger than what is searched with
    assert all(torch.equal(value, before[key]) for key, value in sae.state_dict().items())


@given(st.integers(0, 1000), st.integers(1, 30))
@pytest.mark.slow
def test_no_point_nearby_has_a_smaller_sum_of_distances(seed: int, n: int) -> None:
    x = cloud(seed, n)
    median = geometric_median(x)
    least = distances(x, median)
    for scale in (1e-4, 1e-2, 1.0):
        assert all(distances(x, median + scale * step) >= least - 1e-9 for step in cloud(seed + 1, 20))
    assert all(distances(x, point) >= least - 1e-9 for point in x)


@given(st.integers(0, 1000), st.integers(2, 20), st.floats(-50, 50), st.floats(0.01, 100))
@pytest.mark.slow
def test_the_median_moves_with_the_points(seed: int, n: int, shift: float, scale: float) -> None:
    x = cloud(seed, n)
    rotation = torch.linalg.qr(cloud(seed + 1, 3))[0]
    moved = geometric_median(scale * x @ rotation + shift)
    torch.testing.assert_close(moved, scale * geometric_median(x) @ rotation + shift, rtol=1e-5, atol=1e-5 * scale)


def test_points_far_away_do_not_drag_the_median_along() -> None:
    x = torch.cat([cloud(0, 60), 1e6 + cloud(1, 40)])  # two fifths outliers
    assert float(geometric_median(x).norm()) < 3
    assert float(x.mean(dim=0).norm()) > 1e5


def test_medians_known_in_closed_form() -> None:
    square = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    torch.testing.assert_close(geometric_median(square), torch.tensor([0.5, 0.5]))
    # In a triangle with an angle above 120 degrees the median is that corner.
    corner = torch.tensor([[0.0, 0.0], [1.0, 0.1], [-1.0, 0.1]])
    assert geometric_median(corner).tolist() == [0.0, 0.0]
    # On a line it is the ordinary median; here the mean, where the iteration starts, is a point and not the median.
    line = torch.tensor([[0.0], [1.0], [2.0], [3.0], [19.0], [5.0], [5.0]])
    assert float(line.mean()) == 5 and float(geometric_median(line)) == 3
    # A point with as much weight as all others holds the median.
    heavy = torch.tensor([[2.0, 2.0]] * 3 + [[9.0, 1.0], [-4.0, 0.0], [7.0, 7.0]])
    assert geometric_median(heavy).tolist() == [2.0, 2.0]
    assert geometric_median(torch.full((4, 2), 0.1)).tolist() == pytest.approx([0.1, 0.1], rel=1e-7)
    assert math.isfinite(float(geometric_median(torch.zeros(1, 2)).sum()))
