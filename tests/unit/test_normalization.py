import pytest
import torch
from small_runs import D_IN, tokens
from torch import Tensor

from sae_core.config.run import NORMALIZATIONS
from sae_core.errors import ConfigError
from sae_core.sae import normalization
from sae_core.sae.normalization import SHRINKAGE, Affine, LayerNorm, layer_norm, whitening


def spread(n: int = 5_000, d_in: int = 6) -> Tensor:
    """Correlated rows with a mean, their standard deviations from 1 to 1000."""
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(n, d_in, generator=generator) @ torch.randn(d_in, d_in, generator=generator)
    return 20 + mixed * torch.logspace(0, 3, d_in)


def test_affine_by_hand() -> None:
    matrix = torch.tensor([[2.0, 1.0], [1.0, 1.0]])
    y = Affine("whitening", matrix, matrix.inverse(), torch.tensor([1.0, 0.0]))(torch.tensor([[2.0, 3.0]]))
    assert y.tolist() == [[5.0, 4.0]]  # (1, 3) @ matrix
    assert Affine("expected_norm", 3.0, 1 / 3)(torch.tensor([[2.0, 3.0]])).tolist() == [[6.0, 9.0]]


@pytest.mark.parametrize("name", NORMALIZATIONS)
def test_every_name_has_a_normalisation(name: str) -> None:
    x = tokens(1_000)
    found = NORMALIZATIONS[name](3.0, [x])
    assert found.name == found.to(torch.device("cpu")).name == name
    y = found(x)
    torch.testing.assert_close(y, {"expected_norm": 3 * x, "none": x}.get(name, y))
    if name in ("layer_norm", "whitening"):
        assert float(y.pow(2).sum(dim=1).mean()) == pytest.approx(D_IN, rel=0.15)  # nearly the units of expected_norm; some tokens are 0


def test_whitened_activations_have_no_mean_and_no_correlations() -> None:
    x = tokens(20_000)
    y = whitening(1.0, [x])(x)
    torch.testing.assert_close(y.mean(dim=0), torch.zeros(D_IN), rtol=0, atol=1e-4)
    torch.testing.assert_close(y.T.cov(correction=0), torch.eye(D_IN), rtol=0, atol=0.02)


def test_whitening_shrinks_variances_towards_their_mean() -> None:
    # Variances 4 and 0 along the axes, so 2 on average.
    x = torch.tensor([[2.0, 1.0], [-2.0, 1.0]])
    found = whitening(1.0, [x])
    expected = torch.tensor([(1 - SHRINKAGE) * 4 + SHRINKAGE * 2, SHRINKAGE * 2]).rsqrt().diag()
    torch.testing.assert_close(found.matrix, expected)
    assert found.mean is not None and found.mean.tolist() == [0.0, 1.0]


def test_whitening_is_symmetric_and_can_be_undone() -> None:
    x = spread()
    found = whitening(1.0, [x])
    assert isinstance(found.matrix, Tensor) and found.mean is not None
    torch.testing.assert_close(found.matrix, found.matrix.T)
    torch.testing.assert_close(found.map_decoder(found(x)) + found.mean, x, rtol=1e-4, atol=1e-2)


def test_whitening_does_not_depend_on_how_rows_are_cut_into_shards() -> None:
    x = tokens(4_000)
    one, other = whitening(1.0, [x]), whitening(1.0, [x[:1], x[1:3_000], x[3_000:]])
    torch.testing.assert_close(one.matrix, other.matrix)
    torch.testing.assert_close(one.mean, other.mean)


def test_only_the_first_rows_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(normalization, "WHITENING_TOKENS", 100)
    x, read = tokens(300), []

    def shards():
        for shard in (x[:60], x[60:150], x[150:]):
            read.append(len(shard))
            yield shard

    assert torch.equal(whitening(1.0, shards()).matrix, whitening(1.0, [x[:60], x[60:100]]).matrix)
    assert read == [60, 90]


def test_activations_that_do_not_vary_cannot_be_whitened() -> None:
    with pytest.raises(ConfigError, match="must vary to be whitened, but got variance=0 over n_tokens=8"):
        whitening(1.0, [torch.ones(8, 4)])


def test_layer_norm_by_hand() -> None:
    # Mean 2, deviations -1 0 1: unbiased standard deviation 1.
    y, mean, std = layer_norm(torch.tensor([[1.0, 2.0, 3.0]]))
    torch.testing.assert_close(y, torch.tensor([[-1.0, 0.0, 1.0]]) / (1 + 1e-5))
    assert mean.tolist() == [[2.0]] and std.tolist() == [[1.0]]


def test_layer_norm_is_the_same_after_shifting_and_rescaling_a_token() -> None:
    x = tokens(50)
    torch.testing.assert_close(LayerNorm()(7 * x + 3), LayerNorm()(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", NORMALIZATIONS)
def test_what_is_normalized_can_be_undone(name: str) -> None:
    x = tokens(1_000) + 0.1
    found = NORMALIZATIONS[name](3.0, [x])
    torch.testing.assert_close(found.undone(found(x), x), x, rtol=1e-3, atol=1e-3)
