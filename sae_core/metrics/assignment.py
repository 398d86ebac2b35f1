"""The best one-to-one assignment of rows to columns. In NumPy, because nothing else here needs SciPy.

Shape letters: R rows, C columns.
"""

import numpy as np
from numpy.typing import NDArray


def best_assignment(scores: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The pairs (row, column), each row and each column in one at most, whose scores have the largest sum.

    Hungarian method by shortest augmenting paths (Jonker & Volgenant 1987): rows are assigned one after the other, each along the
    cheapest path through the rows assigned before; dual variables keep reduced costs from being negative. O(R^2 C) for R <= C.

    Args:
        scores: [R, C], finite.

    Returns:
        Rows and columns of the min(R, C) pairs, sorted by row: scipy.optimize.linear_sum_assignment(scores, maximize=True).
    """
    if scores.shape[0] > scores.shape[1]:
        columns, rows = best_assignment(scores.T)
        order = np.argsort(rows)
        return rows[order], columns[order]
    costs = -np.ascontiguousarray(scores)
    n_rows, n_columns = costs.shape
    row_dual, column_dual = np.zeros(n_rows), np.zeros(n_columns)
    row_of, column_of = np.full(n_columns, -1), np.full(n_rows, -1)
    for start in range(n_rows):
        distance, came_from = np.full(n_columns, np.inf), np.full(n_columns, -1)
        open_columns = np.ones(n_columns, dtype=bool)
        row, length = start, 0.0
        while row >= 0:  # Dijkstra's algorithm, until a free column is nearest
            reduced = length + costs[row] - row_dual[row] - column_dual
            shorter = open_columns & (reduced < distance)
            distance[shorter], came_from[shorter] = reduced[shorter], row
            column = int(np.where(open_columns, distance, np.inf).argmin())
            length, open_columns[column] = float(distance[column]), False
            row = int(row_of[column])
        passed = np.flatnonzero(~open_columns & (row_of >= 0))
        row_dual[start] += length
        row_dual[row_of[passed]] += length - distance[passed]
        column_dual[passed] -= length - distance[passed]
        while row != start:  # shift the assignments along the path
            row = int(came_from[column])
            row_of[column] = row
            column, column_of[row] = int(column_of[row]), column
    return np.arange(n_rows), column_of
