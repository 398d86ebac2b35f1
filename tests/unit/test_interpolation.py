"""Monotone curves through fronts, against SciPy."""

import numpy as np
import pytest
from scipy.interpolate import PchipInterpolator

from analysis.interpolation import is_beyond, reaches, read


@pytest.mark.parametrize("n_knots", [2, 3, 4, 9])
def test_it_is_scipys_pchip_for_every_curve_at_once(n_knots: int) -> None:
    rng = np.random.default_rng(n_knots)
    x = np.sort(rng.uniform(0, 5, (7, 3, n_knots)), axis=-1) + 0.1 * np.arange(n_knots)
    y = rng.normal(size=x.shape)  # also curves that rise and fall
    y[0] = np.sort(y[0], axis=-1)[..., ::-1]
    y[1, 0, :2] = 1.0  # a level piece
    at = np.linspace(1.5, 4, 33)
    values = read(x, y, at)
    for curve in np.ndindex(7, 3):
        inside = ~is_beyond(x[curve], at)
        expected = PchipInterpolator(x[curve], y[curve])(at[inside])
        np.testing.assert_allclose(values[curve][inside], expected, atol=1e-12)


def test_the_order_of_the_knots_does_not_matter() -> None:
    x, y, at = np.log([8.0, 16, 32, 64]), np.array([0.0, -1, -1.5, -2]), np.log([9.0, 30, 50])
    shuffled = [2, 0, 3, 1]
    np.testing.assert_array_equal(read(x, y, at), read(x[shuffled], y[shuffled], at))


def test_beyond_the_ends_it_is_a_line() -> None:
    x, y = np.log([16.0, 32, 60, 61]), -np.log([16.0, 32, 60, 61])
    at = np.log([15.0, 64, 100])
    np.testing.assert_allclose(read(x, y, at), -at, atol=1e-12)
    assert reaches(x, at).tolist() == [True, True, False]
    assert is_beyond(x, np.log([15.0, 16, 61, 64])).tolist() == [True, False, False, True]


def test_a_short_curve_is_level_beyond_its_ends_and_not_to_be_read_there() -> None:
    x, y = np.log([30.0, 32]), np.array([1.0, 0.0])
    np.testing.assert_allclose(read(x, y, np.log([29.0, 33])), [1.0, 0.0])
    assert reaches(x, np.log([29.0, 31, 33])).tolist() == [False, True, False]
    assert read(x[:1], y[:1], np.log([8.0, 64])).tolist() == [1.0, 1.0]
