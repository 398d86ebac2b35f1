"""What "fraction of variance unexplained" has to satisfy. Each property rejects at least one formula in public use:

| formula | perfect | predict-the-mean | halfway | shift | rescale | split | bias |
|---|---|---|---|---|---|---|---|
| pooled, vector mean (ours) | ok | ok | ok | ok | ok | ok | ok |
| sparsify, per batch | ok | ok | ok | ok | ok | fails | ok |
| dictionary_learning, variance of the residual | ok | ok | ok | ok | ok | fails | fails |
| overcomplete, scalar mean | ok | fails | fails | ok | ok | fails | ok |
| OpenAI, uncentred | ok | fails | fails | fails | ok | ok | ok |
| SAELens 6.18, SAEBench | ok | fails | fails | fails | fails | ok | ok |
| "legacy", mean of per-token ratios | ok | ok | ok | ok | ok | fails | ok |
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from observations import Evaluated, made_up, value
from torch import Tensor

few = settings(max_examples=40)
numbers = st.floats(-8, 8, width=32)


@st.composite
def activations(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """x and x_hat, [N, d_in], float64, with some variance in x."""
    shape = draw(st.tuples(st.integers(2, 12), st.integers(1, 4)))
    x, x_hat = (torch.from_numpy(draw(hnp.arrays(np.float64, shape, elements=numbers))) for _ in range(2))
    assume(float((x - x.mean(dim=0)).pow(2).sum()) > 1e-3)
    return x, x_hat


def evaluated(x: Tensor, x_hat: Tensor) -> Evaluated:
    return replace(made_up(len(x), x.shape[1]), x=x, x_hat=x_hat)


def fvu(x: Tensor, x_hat: Tensor, *cuts: int) -> float:
    """FVU, with the text cut into chunks at `cuts`."""
    data, ends = evaluated(x, x_hat), [*sorted(cuts), len(x)]
    found = value("fvu", *(data.rows(slice(start, end)) for start, end in zip([0, *ends], ends, strict=False)))
    assert found is not None
    return found


@few
@given(activations())
@pytest.mark.slow
def test_perfect_is_0(pair: tuple[Tensor, Tensor]) -> None:
    x, _ = pair
    assert fvu(x, x) == 0


@few
@given(activations())
@pytest.mark.slow
def test_predicting_the_mean_is_1(pair: tuple[Tensor, Tensor]) -> None:
    x, _ = pair
    assert fvu(x, x.mean(dim=0).expand_as(x)) == pytest.approx(1, rel=1e-6)


@few
@given(activations())
@pytest.mark.slow
def test_halfway_to_the_mean_explains_three_quarters(pair: tuple[Tensor, Tensor]) -> None:
    x, _ = pair
    halfway = evaluated(x, (x + x.mean(dim=0)) / 2)
    assert value("explained_variance", halfway) == pytest.approx(3 / 4, rel=1e-6)


@few
@given(activations(), st.floats(-50, 50))
@pytest.mark.slow
def test_shifting_both_changes_nothing(pair: tuple[Tensor, Tensor], shift: float) -> None:
    x, x_hat = pair
    assert fvu(x + shift, x_hat + shift) == pytest.approx(fvu(x, x_hat), rel=1e-5, abs=1e-9)


@few
@given(activations(), st.floats(0.01, 100), st.booleans())
@pytest.mark.slow
def test_rescaling_both_changes_nothing(pair: tuple[Tensor, Tensor], scale: float, flip: bool) -> None:
    x, x_hat = pair
    factor = -scale if flip else scale
    assert fvu(factor * x, factor * x_hat) == pytest.approx(fvu(x, x_hat), rel=1e-6)


@few
@given(activations(), st.lists(st.integers(0, 12), max_size=4))
@pytest.mark.slow
def test_splitting_into_batches_changes_nothing(pair: tuple[Tensor, Tensor], cuts: list[int]) -> None:
    x, x_hat = pair
    assert fvu(x, x_hat, *(min(cut, len(x)) for cut in cuts)) == pytest.approx(fvu(x, x_hat), rel=1e-6, abs=1e-12)


@few
@given(activations(), numbers)
@pytest.mark.slow
def test_a_bias_scores_worse_by_its_square(pair: tuple[Tensor, Tensor], bias: float) -> None:
    x, x_hat = pair
    x_hat = x_hat + (x - x_hat).mean(dim=0)  # errors of mean 0, so that any bias only adds to them
    added = x.numel() * bias**2 / float((x - x.mean(dim=0)).pow(2).sum())
    assert fvu(x, x_hat + bias) == pytest.approx(fvu(x, x_hat) + added, rel=1e-5, abs=1e-9)


@few
@given(activations())
@pytest.mark.slow
def test_explained_variance_is_the_rest(pair: tuple[Tensor, Tensor]) -> None:
    assert value("explained_variance", evaluated(*pair)) == pytest.approx(1 - fvu(*pair), rel=1e-12, abs=1e-12)


@few
@given(st.integers(1, 40), hnp.arrays(np.float64, 3, elements=st.floats(-100, 100)))
def test_constant_activations_have_no_fvu(n_tokens: int, row: np.ndarray) -> None:
    x = torch.from_numpy(row).expand(n_tokens, 3)
    assert value("fvu", evaluated(x, x + 1)) is None
    assert value("explained_variance", evaluated(x, x + 1)) is None
