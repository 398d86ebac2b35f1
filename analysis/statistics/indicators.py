"""Numbers that sum a front up: hypervolume and additive epsilon on the common window, coverage apart, and attainment over seeds.

A hypervolume mixes how good a front is with how far its sweep went. So it is taken on the L0s that all fronts span, and `coverage` says how
much of all L0s each one spans. Fronts are those of means over repeats; for `attainment` each repeat has its own.

Computed by moocore. Sources: Zitzler et al. 2003, IEEE Trans. Evol. Comput. 7, "Performance assessment of multiobjective optimizers"
(epsilon); Grunert da Fonseca et al. 2001, EMO 2001, "Inferential performance assessment of stochastic optimisers and the attainment
function".
"""

from collections.abc import Sequence

import moocore
import numpy as np
import pandas as pd

from analysis import pareto
from analysis.interpolation import END_TOLERANCE, FloatArray
from analysis.pareto import By
from analysis.statistics.choosing import front_of
from analysis.statistics.pooling import grids_of, repeats_of
from analysis.statistics.samples import ALL, Samples, samples_of
from analysis.table import orientation
from sae_core.errors import ConfigError


def on_common_window(table: pd.DataFrame, metric: str = "fvu", *, by: By = "architecture", reference: float | None = None) -> pd.DataFrame:
    """Hypervolume of each arm's front on the L0s that all of them span, and how far each front goes.

    Args:
        table: rows that may be compared with each other.
        reference: value of the metric that counts as worthless; by default from `pareto.REFERENCES`.

    Returns:
        A row per arm: `hypervolume` in (log2 L0, metric); `low` and `high`, the L0s that its front spans; `coverage`, the share of all L0s
        between the lowest and the highest end of any front, in log2, that it spans. Hypervolumes are NaN where the fronts have no window in
        common.

    Raises:
        ConfigError: no run is finished, or the metric has no reference.
    """
    fronts = _fronts(table, metric, by)
    ends = pd.DataFrame({arm: {"low": points[:, 0].min(), "high": points[:, 0].max()} for arm, points in fronts.items()}).T
    low, high = float(ends["low"].max()), float(ends["high"].min())
    lowest, highest = np.log2(ends["low"].min()), np.log2(ends["high"].max())
    spanned = np.log2(ends["high"]) - np.log2(ends["low"])
    ends["coverage"] = spanned / (highest - lowest) if highest > lowest else 1.0
    direction = "min" if orientation(table, metric) > 0 else "max"
    ends.insert(
        0,
        "hypervolume",
        [
            pareto.hypervolume(
                pd.DataFrame(points, columns=["l0", metric]), y=metric, window=(low, high), reference=reference, direction=direction
            )
            if low < high
            else np.nan
            for points in fronts.values()
        ],
    )
    return ends


def epsilons(table: pd.DataFrame, metric: str = "fvu", *, by: By = "architecture") -> pd.DataFrame:
    """Additive epsilon of every arm (rows) against every other (columns), in (ln L0, ln metric), on the L0s that both reach.

    It is the least number by which both ln L0 and ln metric of the row's front must shrink so that it is nowhere worse than the column's:
    0.05 means 5 % off at the worst place, 0 or less that it is as good everywhere. Points sparser than the window count from its edge. A
    front reaches END_TOLERANCE beyond its end, as for values at matched L0: of fronts asked to end at L0 64 that end at 62 and 65, both
    ends count. What the column's front has beyond that need not be reached; `coverage` tells of it. Of the row's it counts, at its own L0.

    Returns:
        NaN on the diagonal, and where two fronts span no L0 in common. For a metric with values of 0 or less, ln L0 and the metric itself.
    """
    sign = orientation(table, metric)
    samples = samples_of(table, metric)
    fronts = {arm: _ln_front(samples, grid.runs, sign) for arm, grid in grids_of(table, samples, by).items()}
    found = pd.DataFrame(np.nan, index=list(fronts), columns=list(fronts))
    for arm, other in ((arm, other) for arm in fronts for other in fronts if arm != other):
        low = max(fronts[name][:, 0].min() for name in (arm, other))
        high = min(fronts[name][:, 0].max() for name in (arm, other))
        if low < high:
            points, against = (_from(fronts[name], low) for name in (arm, other))
            within = against[against[:, 0] <= high + np.log1p(END_TOLERANCE)]
            found.loc[arm, other] = float(moocore.epsilon_additive(points, ref=within))
    return found


def attainment(
    table: pd.DataFrame, metric: str = "fvu", *, by: By = "architecture", shares: Sequence[float] | None = None
) -> dict[str, dict[float, FloatArray]]:
    """Per arm, the fronts that a share of its repeats attain: as good or better, in L0 and metric together.

    Args:
        shares: in percent; by default those that the number of repeats can show, e.g. 33.3, 66.7 and 100 of three.

    Returns:
        Arm -> share -> points [N, 2] of L0 and metric, by L0.
    """
    sign, samples = orientation(table, metric), samples_of(table, metric)
    found: dict[str, dict[float, FloatArray]] = {}
    for arm, grid in grids_of(table, samples, by).items():
        runs = [own[own >= 0] for own in grid.runs.T]
        points = np.concatenate([np.column_stack([samples.x[ALL][own], sign * samples.y[ALL][own]]) for own in runs])
        sets = np.repeat(np.arange(len(runs)), [len(own) for own in runs])
        n = len(repeats_of(table, samples, grid))
        asked = [100 * (number + 1) / n for number in range(n)] if shares is None else list(shares)
        surfaces = moocore.eaf(points, sets, percentiles=asked)
        found[arm] = {round(share, 1): _as_measured(surfaces[np.isclose(surfaces[:, 2], share)][:, :2], samples, sign) for share in asked}
    return found


def _fronts(table: pd.DataFrame, metric: str, by: By) -> dict[str, FloatArray]:
    """Arm -> points [N, 2] of L0 and metric on its front."""
    sign, samples = orientation(table, metric), samples_of(table, metric)
    fronts = {arm: _as_measured(_ln_front(samples, grid.runs, sign), samples, sign) for arm, grid in grids_of(table, samples, by).items()}
    if not fronts:
        raise ConfigError(
            f"at least one finished run with l0 and {metric} is needed, but got {len(table)} rows without. Finish a run first."
        )
    return fronts


def _ln_front(samples: Samples, runs: "np.ndarray", sign: float) -> FloatArray:
    """[N, 2] ln L0 and the metric on the samples' scale, both minimized, of the means over repeats on the front."""
    front = runs[front_of(samples, runs, ALL, sign)]
    known = front >= 0
    x, y = (np.where(known, values[ALL][front], 0.0).sum(axis=1) / known.sum(axis=1) for values in (samples.x, samples.y))
    return np.column_stack([x, sign * y])


def _as_measured(points: FloatArray, samples: Samples, sign: float) -> FloatArray:
    """From ln L0 and the minimized scale back to L0 and the metric, by L0."""
    y = sign * points[:, 1]
    return np.column_stack([np.exp(points[:, 0]), y if samples.raw else np.exp(y)])[np.argsort(points[:, 0], kind="stable")]


def _from(points: FloatArray, low: float) -> FloatArray:
    """The front with what is sparser than ln L0 `low` moved there."""
    return np.column_stack([np.maximum(points[:, 0], low), points[:, 1]])
