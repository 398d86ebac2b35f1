"""Pareto fronts of sparsity against quality, and what can be read off them: hypervolume and values at matched L0.

Choices worth knowing:
- A run enters when it is finished (where the table has a `status`) and both its values are known; every other run is left
  out explicitly, never as a NaN.
- A point is on the front when no other point is at least as good in both values and better in one. Equal points do not
  dominate each other: duplicates are all on the front.
- Hypervolume lives in (log2 L0, y), because L0 is read in doublings. The front counts as a step function: the best y that
  is reached at this L0 or sparser. So a point left of the window counts from the window's edge on, one beyond it not at all.
- Values at matched L0 are interpolated, straight in (ln L0, ln y), between neighbours on the front. Beyond its ends the line is
  continued by at most END_TOLERANCE, so that a front asked to end at L0 64 is read at 64 where it ends at 62.
"""

from collections.abc import Sequence

import moocore
import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from analysis.table import orientation, over_seeds
from sae_core.errors import ConfigError

L0_WINDOW = (8.0, 128.0)
"""Where fronts are compared unless told otherwise, in active latents per token."""

REFERENCES = {"fvu": 1.0, "delta_ce": 2.0}
"""Reference value of y in the hypervolume: an SAE that is no better adds nothing."""

END_TOLERANCE = 0.1
"""How far beyond an end of the front an L0 may lie and still be read off it, as a fraction: as far as a target L0 may be missed."""

SLOPE_SPAN = 2**0.5
"""Factor of L0 that the slope beyond an end is taken over, at least: between close neighbours a slope is noise."""


def nondominated(points: ArrayLike) -> NDArray[np.bool_]:
    """Which rows no other row dominates, all columns minimised.

    Args:
        points: [n, 2] finite values.

    Returns:
        [n] booleans. Of equal rows all are kept.

    Raises:
        ValueError: a value is NaN or infinite.
    """
    values = np.array(points, dtype=float)
    if not np.isfinite(values).all():
        raise ValueError(f"points must be finite, but got {values[~np.isfinite(values).all(axis=1)][0]}. Leave unfinished runs out first.")
    return np.asarray(moocore.is_nondominated(values, keep_weakly=True), dtype=bool)


def pareto_front(
    table: pd.DataFrame, x: str = "l0", y: str = "fvu", *, by: str | Sequence[str] | None = None, direction: str | None = None
) -> pd.Series:
    """Which runs are on the front of `x` (always minimised) against `y`.

    Args:
        by: columns that split the table into groups with a front each, e.g. "architecture".
        direction: "min" or "max" for `y`; by default what the table's specs say.

    Returns:
        Booleans on the table's index; False for runs that are not finished or lack a value.
    """
    points = _points(table, x, y, direction)
    groups = [points] if by is None else [points.loc[rows.index.intersection(points.index)] for _, rows in table.groupby(_columns(by))]
    front = pd.Series(False, index=table.index, name="on_front")
    for group in groups:
        front.loc[group.index] = nondominated(group)
    return front


def settings_with_front(table: pd.DataFrame, y: str = "fvu") -> pd.DataFrame:
    """Means over seeds of every finished setting, with a column `on_front`: is it on its architecture's front?

    Settings with L0 0 say nothing about a frontier and are left out, and so are those without `y`.
    """
    settings = over_seeds(table.dropna(subset=["l0", y]))  # each mean is over the same seeds
    settings = settings[settings["l0"] > 0]
    if settings.empty:  # no run has the metric, so no record says which way is better
        return settings.assign(on_front=pd.Series(dtype=bool))
    return settings.assign(on_front=pareto_front(settings, "l0", y, by="architecture")).sort_values("l0")


def hypervolume(
    table: pd.DataFrame,
    x: str = "l0",
    y: str = "fvu",
    *,
    window: tuple[float, float] = L0_WINDOW,
    reference: float | None = None,
    direction: str | None = None,
) -> float:
    """Area between the front and the reference value in (log2 x, y), over a window of x.

    With the defaults the best possible value is (7 - 3) * 1 = 4 for FVU and 8 for delta CE.

    Args:
        window: bounds of x, in active latents per token.
        reference: value of y that counts as worthless; by default from REFERENCES.
        direction: "min" or "max" for `y`; by default what the table's specs say.

    Raises:
        ConfigError: there is no finished run, the window is empty, or `y` has no reference.
    """
    low, high = window
    if not 0 < low < high:
        raise ConfigError(f"`window` must satisfy 0 < low < high, but got {window}. Give bounds of {x}.")
    reference = REFERENCES.get(y) if reference is None else reference
    if reference is None:
        raise ConfigError(f"`reference` must be given for a metric without one, but got {y!r}. Known ones: {REFERENCES}.")
    points = _points(table, x, y, direction)
    if points.empty:
        raise ConfigError(f"at least one finished run with {x} and {y} is needed, but got {len(table)} rows without. Finish a run first.")
    bound = reference * orientation(table, y, direction)
    corners = np.column_stack([np.log2(points[x].clip(lower=low)), points[y]])
    inside = corners[(corners[:, 0] < np.log2(high)) & (corners[:, 1] < bound)]
    return float(moocore.hypervolume(inside, ref=[np.log2(high), bound])) if len(inside) else 0.0


def l0_spans(
    table: pd.DataFrame, y: str = "fvu", *, by: str | Sequence[str] = "architecture", direction: str | None = None
) -> pd.DataFrame:
    """Smallest and largest L0 (columns `low`, `high`) on each group's front; groups with a single L0 span nothing and are left out."""
    front = table[pareto_front(table, "l0", y, by=by, direction=direction) & (table["l0"] > 0)]
    l0s = front.groupby(_columns(by))["l0"]
    spans = pd.DataFrame({"low": l0s.min(), "high": l0s.max()})
    return spans[spans["low"] < spans["high"]]


def common_window(
    table: pd.DataFrame,
    y: str = "fvu",
    *,
    by: str | Sequence[str] = "architecture",
    direction: str | None = None,
) -> tuple[float, float] | None:
    """The L0s that the front of every group spans, so that none is rewarded for where its points lie.

    Groups that span nothing are left out. None where less than two are left, or their fronts do not overlap.
    """
    spans = l0_spans(table, y, by=by, direction=direction)
    if len(spans) < 2:
        return None
    low, high = spans["low"].max(), spans["high"].min()
    return (float(low), float(high)) if low < high else None


def interpolate_at_l0(
    table: pd.DataFrame,
    l0s: Sequence[float],
    y: str = "fvu",
    *,
    by: str | Sequence[str] = "architecture",
    direction: str | None = None,
) -> pd.DataFrame:
    """Each group's `y` at given L0s, along its front, straight in (ln L0, ln y).

    Args:
        l0s: active latents per token.
        by: columns that split the table into groups with a front each.
        direction: "min" or "max" for `y`; by default what the table's specs say.

    Returns:
        A row per group, a column per L0; NaN more than END_TOLERANCE beyond the ends of the front, and beyond them at all where it
        spans less than SLOPE_SPAN. Points with L0 or `y` of 0 or less have no logarithm and are left out.
    """
    positive = table[(table["l0"] > 0) & (table[y] > 0)]
    front = positive[pareto_front(positive, "l0", y, by=by, direction=direction)]
    names = _columns(by)
    values = {key: _interpolate(rows.sort_values("l0"), y, l0s) for key, rows in front.groupby(names)}
    groups = pd.MultiIndex.from_frame(pd.DataFrame(list(values), columns=names))
    index = groups if len(names) > 1 else groups.get_level_values(0)
    return pd.DataFrame(list(values.values()), index=index, columns=[float(l0) for l0 in l0s], dtype=float)


def _columns(by: str | Sequence[str]) -> list[str]:
    return [by] if isinstance(by, str) else list(by)


def _interpolate(front: pd.DataFrame, y: str, l0s: Sequence[float]) -> NDArray[np.float64]:
    x, log_y = _continued(np.log(front["l0"].to_numpy(float)), np.log(front[y].to_numpy(float)))
    asked = np.log(np.asarray(l0s, dtype=float))
    inside = (asked >= x[0]) & (asked <= x[-1])
    return np.where(inside, np.exp(np.interp(asked, x, log_y)), np.nan)


def _continued(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The points with one more beyond each end, in line with the end and the nearest point that is SLOPE_SPAN away from it."""
    span, reach = np.log(SLOPE_SPAN), np.log1p(END_TOLERANCE)
    if x[-1] - x[0] < span:
        return x, y
    right, left = np.nonzero(x >= x[0] + span)[0][0], np.nonzero(x <= x[-1] - span)[0][-1]
    below = y[0] - reach * (y[right] - y[0]) / (x[right] - x[0])
    above = y[-1] + reach * (y[-1] - y[left]) / (x[-1] - x[left])
    return np.array([x[0] - reach, *x, x[-1] + reach]), np.array([below, *y, above])


def _points(table: pd.DataFrame, x: str, y: str, direction: str | None) -> pd.DataFrame:
    """The finished runs' (x, y), both minimised, on the table's index."""
    finished = table["status"].eq("finished") if "status" in table else pd.Series(True, index=table.index)
    known = table[finished & table[x].notna() & table[y].notna()]
    return pd.DataFrame({x: known[x].astype(float), y: known[y].astype(float) * orientation(table, y, direction)})
