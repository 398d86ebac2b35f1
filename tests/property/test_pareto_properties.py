"""What holds for every front and every hypervolume."""

import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from analysis.pareto import hypervolume, pareto_front

# Few distinct values, so that ties and duplicates are common.
POINTS = hnp.arrays(float, st.tuples(st.integers(1, 12), st.just(2)), elements=st.integers(0, 6).map(float))

L0S = (4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)


def dominates(a: np.ndarray, b: np.ndarray) -> bool:
    return bool((a <= b).all() and (a < b).any())


def table_of(points: np.ndarray) -> pd.DataFrame:
    """Grid coordinates -> L0 on doublings, FVU in eighths."""
    table = pd.DataFrame({"l0": [L0S[int(x)] for x, _ in points], "fvu": points[:, 1] / 8})
    table.attrs["metrics"] = {"fvu": {"name": "fvu", "label": "", "unit": "", "direction": "min"}}
    return table


def nondominated(points: np.ndarray) -> np.ndarray:
    return pareto_front(table_of(points)).to_numpy()


@given(POINTS)
@pytest.mark.slow
def test_front_equals_brute_force(points: np.ndarray) -> None:
    expected = [not any(dominates(other, point) for other in points) for point in points]
    assert list(nondominated(points)) == expected


@given(POINTS, st.randoms())
@pytest.mark.slow
def test_front_does_not_depend_on_the_order(points: np.ndarray, random: st.DataObject) -> None:
    order = list(range(len(points)))
    random.shuffle(order)  # type: ignore[attr-defined]
    assert list(nondominated(points[order])) == list(nondominated(points)[order])


@given(POINTS)
@pytest.mark.slow
def test_a_dominated_point_changes_nothing(points: np.ndarray) -> None:
    worse = points[0] + np.array([0, 1])
    front = nondominated(np.vstack([points, worse]))
    assert list(front[:-1]) == list(nondominated(points))
    assert not front[-1]


@given(POINTS)
@pytest.mark.slow
def test_the_front_of_a_front_is_itself(points: np.ndarray) -> None:
    assert nondominated(points[nondominated(points)]).all()


@given(POINTS)
@pytest.mark.slow
def test_inputs_are_not_changed(points: np.ndarray) -> None:
    table = table_of(points)
    before = table.copy()
    pareto_front(table)
    hypervolume(table)
    pd.testing.assert_frame_equal(table, before)


@given(POINTS)
@pytest.mark.slow
def test_hypervolume_equals_a_count_of_cells(points: np.ndarray) -> None:
    # Cells of the window: [3, 4), ..., [6, 7) in log2 L0 times eighths of FVU. A cell counts when a point is left of and below it.
    cells = itertools.product(range(3, 7), range(8))
    reached = sum(any(np.log2(L0S[int(x)]) <= left and y <= low for x, y in points) for left, low in cells)
    assert np.isclose(hypervolume(table_of(points)), reached / 8)


@given(POINTS, POINTS)
@pytest.mark.slow
def test_more_points_never_lower_the_hypervolume(points: np.ndarray, more: np.ndarray) -> None:
    assert hypervolume(table_of(np.vstack([points, more]))) >= hypervolume(table_of(points)) - 1e-12
