"""Values at matched L0 with their intervals, for tables and plots: rows of one comparison, an arm per architecture."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from analysis.documents import DocumentSums
from analysis.estimates import Band, Estimate
from analysis.pareto import By
from analysis.statistics.choosing import Grid
from analysis.statistics.curves import Curves, Spread
from analysis.statistics.pooling import grids_of
from analysis.statistics.samples import Samples, samples_of
from analysis.statistics.uncertainty import Read, band_of, estimate_at, of_settings
from analysis.statistics.uncertainty import of_runs as runs_of
from analysis.table import evenly, finished, orientation, specs_of

COMPARED = {"fvu": "FVU", "delta_ce": "delta CE"}
"""The metrics architectures are compared by, where records have them, and their names."""
MOST_MATCHED = 4
"""L0s at which architectures are put side by side, at most."""


def label_of(table: pd.DataFrame, metric: str) -> str:
    """A metric's name in a sentence: its label without what explains it, e.g. "FVU", "explained variance"; its own name where unknown."""
    spec = specs_of(table).get(metric)
    if metric in COMPARED or spec is None:
        return COMPARED.get(metric, metric)
    label = spec.label.partition(" (")[0]
    return label[:1].lower() + label[1:] if label[1:2].islower() else label


def curves_by_arm(rows: pd.DataFrame, samples: Samples, metric: str, by: By) -> dict[str, Curves]:
    """The curves of each arm, in reading order."""
    sign = orientation(rows, metric)
    return {arm: Curves.of(samples, grid, sign) for arm, grid in grids_of(rows, samples, by).items()}


def compared_metrics(table: pd.DataFrame) -> list[str]:
    """Those of COMPARED that any finished run has."""
    return [name for name in COMPARED if name in table and table.loc[finished(table), name].notna().any()]


def matched_l0s(table: pd.DataFrame, metric: str | None = None, *, by: By = "architecture") -> list[float]:
    """L0s to put arms side by side at: those requested, or else powers of two; of what any front reaches, an even choice."""
    metric = metric or next(iter(compared_metrics(table)), None)
    if metric is None:
        return []
    targets = table.loc[finished(table), "target_l0"] if "target_l0" in table else pd.Series(dtype=float)
    candidates = sorted(set(targets)) if len(targets) and targets.notna().all() else [2.0**power for power in range(17)]
    arms = curves_by_arm(table, samples_of(table, metric), metric, by).values()
    reached = np.any([curves.reaches(np.log(candidates))[0] for curves in arms], axis=0) if arms else np.zeros(len(candidates), bool)
    known = [l0 for l0, any_arm in zip(candidates, reached, strict=True) if any_arm]
    return [known[index] for index in evenly(len(known), MOST_MATCHED)]


def at_matched_l0(
    table: pd.DataFrame, metric: str, l0s: Sequence[float], *, by: By = "architecture", documents: DocumentSums | None = None
) -> dict[str, list[Estimate | None]]:
    """Per arm, in reading order: the metric at each L0 on its front, with seeds and documents in its interval.

    None where the front of any repeat does not reach: a mean over those that happen to reach would compare unlike things.

    Args:
        documents: sums per document of the runs; by default read from the directories that `load_table` noted.
    """
    arms = curves_by_arm(table, samples_of(table, metric, documents), metric, by)
    return {arm: estimates_at(curves, l0s) for arm, curves in arms.items()}


def estimates_at(curves: Curves, l0s: Sequence[float]) -> list[Estimate | None]:
    """An arm's value at each L0."""
    places = np.log(np.asarray(l0s, dtype=float))
    reached, beyond = curves.reaches(places)
    read = Read.of(curves, places)
    return [estimate_at(read, place, extrapolated=bool(beyond[place])) if reached[place] else None for place in range(len(places))]


def bands(table: pd.DataFrame, metric: str, *, by: By = "architecture") -> dict[str, Band]:
    """Per arm, in reading order: its front with a 95 % band (at each L0 by itself), between the ends that every repeat was measured to."""
    samples, sign = samples_of(table, metric), orientation(table, metric)
    return {arm: _band(samples, grid, sign) for arm, grid in grids_of(table, samples, by).items()}


def _band(samples: Samples, grid: Grid, sign: float) -> Band:
    key = (grid.runs.shape, grid.runs.tobytes(), grid.is_chosen, sign)
    if key not in samples.bands:
        samples.bands[key] = band_of(Curves.of(samples, grid, sign))
    return samples.bands[key]


def of_runs(table: pd.DataFrame, metric: str) -> dict[str, Estimate]:
    """Run id -> the metric of this run, with its interval over held-out documents alone."""
    return runs_of(table, samples_of(table, metric))


def settings_of(table: pd.DataFrame, metric: str, *, by: By = "architecture") -> dict[str, Estimate]:
    """Setting hash -> mean of the metric over its repeats, at their own L0s, with seeds and documents in its interval.

    The spread over seeds is pooled over the settings of an arm that have all repeats; the others have an interval over documents alone.
    """
    samples = samples_of(table, metric)
    hashes = table["setting_hash"].to_numpy()[samples.rows]
    found: dict[str, Estimate] = {}
    for grid in grids_of(table, samples, by).values():
        complete = (grid.runs >= 0).all(axis=1)
        runs = grid.runs[complete]
        spread = Spread.of(samples.y[0][runs].T) if grid.n_repeats > 1 and len(runs) else None
        found |= {str(hashes[own[0]]): of_settings(samples, runs, number, spread) for number, own in enumerate(runs)}
        for own in grid.runs[~complete]:
            known = own[own >= 0]
            found[str(hashes[known[0]])] = of_settings(samples, known[None], 0, None)
    return found
