"""How curves spread over seeds: analysis of variance, pooling, weights."""

import numpy as np
import pytest
from scipy import stats
from scipy.interpolate import PchipInterpolator

from analysis.statistics.curves import Spread, weights_of


def test_the_parts_are_those_of_an_analysis_of_variance() -> None:
    values = np.random.default_rng(1).normal(size=(4, 5)) + np.random.default_rng(1).normal(size=(4, 1))
    spread = Spread.of(values)
    assert spread.pooled
    deviations = values - values.mean(axis=0)
    sd2 = (deviations**2).sum() / 15
    means = deviations.mean(axis=1)
    between, within = 5 * (means**2).sum() / 3 / sd2, ((deviations - means[:, None]) ** 2).sum() / 12 / sd2
    assert (spread.between, spread.within) == (pytest.approx(between), pytest.approx(within))
    even = spread.parts(np.full(5, 0.2))
    assert sum(part for part, _ in even) == pytest.approx(deviations.mean(axis=1).var(ddof=1))  # the mean over levels: its own variance
    one = spread.parts(np.eye(5)[2])
    assert sum(part for part, _ in one) == pytest.approx(sd2)  # one level: the pooled variance
    assert [df for _, df in one] == [15, 3]


def test_bartletts_test_is_scipys_and_decides_on_pooling() -> None:
    rng = np.random.default_rng(2)
    alike = rng.normal(size=(3, 6))
    assert Spread.of(alike).p == pytest.approx(stats.bartlett(*alike.T).pvalue)
    unlike = alike * np.array([1, 1, 1, 1, 30, 30])
    spread = Spread.of(unlike)
    assert not spread.pooled
    squares = ((unlike - unlike.mean(axis=0)) ** 2).sum(axis=0)
    assert spread.sd[0] == pytest.approx(np.sqrt(squares[:2].sum() / 4))  # itself and its one neighbour
    assert spread.sd[2] == pytest.approx(np.sqrt(squares[1:4].sum() / 6))
    assert spread.df.tolist() == [4, 6, 6, 6, 6, 4]


def test_seeds_that_do_not_differ_spread_by_nothing() -> None:
    spread = Spread.of(np.tile([1.0, 2.0, 3.0], (3, 1)))
    assert sum(part for part, _ in spread.parts(np.ones(3) / 3)) == 0
    assert spread.p == 1.0


def test_a_single_level_has_its_own_variance() -> None:
    spread = Spread.of(np.array([[1.0], [2.0], [4.0]]))
    assert sum(part for part, _ in spread.parts(np.ones(1))) == pytest.approx(np.var([1, 2, 4], ddof=1))


def test_weights_are_derivatives_of_the_curve() -> None:
    levels, means = np.log([8.0, 16, 32, 64]), -0.6 * np.log([8.0, 16, 32, 64]) + np.array([0, 0.02, -0.01, 0])
    places = np.log([8.0, 20, 45, 64])
    weights = weights_of(levels, means, places)
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-3)
    np.testing.assert_allclose(weights[[0, 3]], [[1, 0, 0, 0], [0, 0, 0, 1]], atol=1e-6)
    moved = means + 1e-6 * np.eye(4)[1]
    expected = (PchipInterpolator(levels, moved)(places) - PchipInterpolator(levels, means)(places)) / 1e-6
    np.testing.assert_allclose(weights[:, 1], expected, atol=1e-3)
