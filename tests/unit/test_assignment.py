import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from sae_core.metrics.assignment import best_assignment


def by_trying_all(scores: NDArray[np.float64]) -> float:
    narrow = scores if scores.shape[0] <= scores.shape[1] else scores.T
    rows = np.arange(narrow.shape[0])
    return float(max(narrow[rows, list(columns)].sum() for columns in itertools.permutations(range(narrow.shape[1]), narrow.shape[0])))


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (5, 1), (3, 5), (5, 3), (5, 5), (6, 6)])
@pytest.mark.parametrize("values", ["continuous", "with ties", "negative"])
def test_no_other_pairing_scores_more(shape: tuple[int, int], values: str) -> None:
    rng = np.random.default_rng(sum(shape))
    for _ in range(10):
        scores = rng.integers(0, 3, shape).astype(float) if values == "with ties" else rng.random(shape) - (values == "negative")
        rows, columns = best_assignment(scores)
        assert len(set(rows)) == len(set(columns)) == len(rows) == min(shape)
        assert list(rows) == sorted(rows)
        assert scores[rows, columns].sum() == pytest.approx(by_trying_all(scores), rel=1e-12)


def test_a_permutation_is_found_again() -> None:
    permutation = np.random.default_rng(0).permutation(60)
    rows, columns = best_assignment(np.eye(60)[permutation] + 0.5 * np.random.default_rng(1).random((60, 60)))
    assert list(rows) == list(range(60))
    assert list(columns) == list(permutation)


def test_the_best_of_a_row_may_have_to_go_to_another() -> None:
    # Greedy takes 9 + 1 = 10; 8 + 7 = 15 is more.
    rows, columns = best_assignment(np.array([[9.0, 8.0], [7.0, 1.0]]))
    assert (list(rows), list(columns)) == ([0, 1], [1, 0])
