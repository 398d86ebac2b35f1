"""Pareto fronts of sparsity against quality, and what can be read off them: hypervolume and values at matched L0.

Choices worth knowing:
- A run enters when it is finished (where the table has a `status`) and both its values are known and finite; every other run is
  left out explicitly, never as a NaN.
- A point is on the front when no other point is at least as good in both values and better in one. Equal points do not
  dominate each other: duplicates are all on the front.
- Hypervolume lives in (log2 L0, y), because L0 is read in doublings. The front counts as a step function: the best y that
  is reached at this L0 or sparser. So a point left of the window counts from the window's edge on, one beyond it not at all.
- Values at matched L0 are interpolated along the front, monotone in (ln L0, ln y): `interpolation.py`. Beyond its ends it is
  continued by at most END_TOLERANCE, so that a front asked to end at L0 64 is read at 64 where it ends at 62.

All take `by`, columns that split the table into groups with a front each, and `direction`, "min" or "max" for `y`: by default what the
specs say that came with the table. All raise ConfigError where a column is missing or holds something else than numbers.
"""

from collections.abc import Sequence

import moocore
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis import interpolation
from analysis.table import check_columns, finished, numbers, orientation, over_seeds
from sae_core.errors import ConfigError, border

By = str | Sequence[str]
"""Columns that split a table into groups with a front each."""

L0_WINDOW = (8.0, 128.0)
"""Where fronts are compared unless told otherwise, in active latents per token."""

REFERENCES = {"fvu": 1.0, "delta_ce": 2.0}
"""Reference value of y in the hypervolume: an SAE that is no better adds nothing."""


def pareto_front(table: pd.DataFrame, x: str = "l0", y: str = "fvu", *, by: By | None = None, direction: str | None = None) -> pd.Series:
    """Which runs are on the front of `x` (always minimized) against `y`: single runs, so of several seeds the luckiest.

    Report and terminal draw fronts of means over repeats: `settings_with_front`.

    Returns:
        Booleans on the table's index, in its order; False for runs that are not finished or lack a value.
    """
    front = _on_front(_points(table, x, y, direction), _groups(table, by))
    return pd.Series(front, index=table.index, name="on_front")


def settings_with_front(table: pd.DataFrame, y: str = "fvu") -> pd.DataFrame:
    """Means over repeats of every finished setting, with a column `on_front`: is it on its architecture's front?

    Settings with L0 0 say nothing about a frontier and are left out, and so are those without `y`.
    """
    check_columns(table, ["l0", y])
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

    Raises:
        ConfigError: there is no finished run, the window is empty, or `y` has no reference.
    """
    with border(f"`window` must satisfy 0 < low < high, but got {window}", f"Give bounds of {x}."):
        low, high = (float(bound) for bound in window)
        if not 0 < low < high < np.inf:
            raise ValueError("it does not")
    reference = REFERENCES.get(y) if reference is None else reference
    if reference is None:
        raise ConfigError(f"`reference` must be given for a metric without one, but got {y!r}. Known ones: {REFERENCES}.")
    if not np.isfinite(reference):
        raise ConfigError(f"`reference` must be a finite number, but got {reference!r}. Give the value of {y} that counts as worthless.")
    points = _points(table, x, y, direction)
    if points.empty:
        raise ConfigError(f"at least one finished run with {x} and {y} is needed, but got {len(table)} rows without. Finish a run first.")
    bound = reference * orientation(table, y, direction)
    corners = np.column_stack([np.log2(points["x"].clip(lower=low)), points["y"]])
    inside = corners[(corners[:, 0] < np.log2(high)) & (corners[:, 1] < bound)]
    return float(moocore.hypervolume(inside, ref=[np.log2(high), bound])) if len(inside) else 0.0


def l0_spans(table: pd.DataFrame, y: str = "fvu", *, by: By = "architecture", direction: str | None = None) -> pd.DataFrame:
    """Smallest and largest L0 (columns `low`, `high`) on each group's front; groups with a single L0 span nothing and are left out."""
    points, groups = _points(table, "l0", y, direction), _groups(table, by)
    front = points[_on_front(points, groups)[points.index] & (points["x"] > 0)]
    spans = front["x"].groupby(_columns_of(groups, front)).agg(low="min", high="max")
    return spans[spans["low"] < spans["high"]]


def common_window(
    table: pd.DataFrame, y: str = "fvu", *, by: By = "architecture", direction: str | None = None
) -> tuple[float, float] | None:
    """The L0s that the front of every group spans, so that none is rewarded for where its points lie.

    Groups that span nothing are left out. None where fewer than two are left, or their fronts do not overlap.
    """
    spans = l0_spans(table, y, by=by, direction=direction)
    low, high = spans["low"].max(), spans["high"].min()
    return (float(low), float(high)) if len(spans) > 1 and low < high else None


def interpolate_at_l0(
    table: pd.DataFrame, l0s: Sequence[float], y: str = "fvu", *, by: By = "architecture", direction: str | None = None
) -> pd.DataFrame:
    """Each group's `y` at given L0s, along its front: monotone cubic in (ln L0, ln y).

    Args:
        l0s: active latents per token.

    Returns:
        A row per group, a column per L0; NaN more than END_TOLERANCE beyond the ends of the front, and beyond them at all where it
        spans less than SLOPE_SPAN. Points with L0 or `y` of 0 or less have no logarithm and are left out (`n_without_logarithm`).
        `is_extrapolated` says which values lie beyond the ends.
    """
    return _read_fronts(table, l0s, y, by, direction)[0]


def is_extrapolated(
    table: pd.DataFrame, l0s: Sequence[float], y: str = "fvu", *, by: By = "architecture", direction: str | None = None
) -> pd.DataFrame:
    """Which values of `interpolate_at_l0`, of the same arguments, lie beyond the ends of their front."""
    return _read_fronts(table, l0s, y, by, direction)[1]


def n_without_logarithm(table: pd.DataFrame, y: str) -> int:
    """Finished runs with L0 above 0 and a `y` of 0 or less: `interpolate_at_l0` leaves them out."""
    return int((finished(table) & (numbers(table, "l0") > 0) & (numbers(table, y) <= 0)).sum())


def _read_fronts(table: pd.DataFrame, l0s: Sequence[float], y: str, by: By, direction: str | None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`y` at the L0s on the front of each group, and which values lie beyond its ends."""
    with border(f"L0s must be finite numbers above 0, but got {l0s!r}", "Give active latents per token, e.g. [16, 32]."):
        asked = np.asarray(l0s, dtype=float).reshape(-1)
        if not (np.isfinite(asked) & (asked > 0)).all():
            raise ValueError("one is not")
    points, groups = _points(table, "l0", y, direction), _groups(table, by)
    raw = pd.Series(numbers(table, y))[points.index]
    points = points[(points["x"] > 0) & (raw > 0)]
    front = points.loc[_on_front(points, groups)[points.index]].assign(y=raw[points.index]).sort_values("x", kind="stable")
    values, beyond, at = {}, {}, np.log(asked)
    for key, rows in front.groupby(_columns_of(groups, front)):
        rows = rows.drop_duplicates("x")  # equal points are all on the front
        x, y_at = np.log(rows["x"].to_numpy(float)), np.log(rows["y"].to_numpy(float))
        values[key] = np.where(interpolation.reaches(x, at), np.exp(interpolation.read(x, y_at, at)), np.nan)
        beyond[key] = np.isfinite(values[key]) & interpolation.is_beyond(x, at)
    keys = pd.MultiIndex.from_frame(pd.DataFrame(list(values), columns=list(groups)))
    index = keys if groups.shape[1] > 1 else keys.get_level_values(0)
    read, outside = (pd.DataFrame(list(rows.values()), index=index, columns=asked.tolist()) for rows in (values, beyond))
    return read.astype(float), outside.astype(bool)


def _points(table: pd.DataFrame, x: str, y: str, direction: str | None) -> pd.DataFrame:
    """The finished runs' values, both minimized: columns `x` and `y`, numbered by row of the table, because its index may repeat."""
    check_columns(table, [x, y])
    points = pd.DataFrame({"x": numbers(table, x), "y": numbers(table, y) * orientation(table, y, direction)})
    return points[finished(table)].dropna()


def _groups(table: pd.DataFrame, by: By | None) -> pd.DataFrame:
    """The columns that split the table into groups, numbered by row of the table."""
    with border(f"`by` must name columns of names or numbers, but got {by!r}", "Name at least one, e.g. by='architecture'."):
        names = [] if by is None else [by] if isinstance(by, str) else list(dict.fromkeys(by))
        check_columns(table, names)
        groups = table[names].reset_index(drop=True)
        if by is not None:
            groups.groupby(names).ngroups  # noqa: B018 - raises for no columns, and for values that cannot be told apart
    return groups


def _on_front(points: pd.DataFrame, groups: pd.DataFrame) -> NDArray[np.bool_]:
    """By row of the table. A group is a distinct row of `groups`, which covers the whole table; rows without a group are on no front."""
    front = np.zeros(len(groups), dtype=bool)
    columns = _columns_of(groups, points)
    for rows in (rows for _, rows in points.groupby(columns)) if columns else [points]:
        front[rows.index] = moocore.is_nondominated(rows.to_numpy(dtype=float), keep_weakly=True)
    return front


def _columns_of(groups: pd.DataFrame, points: pd.DataFrame) -> list[pd.Series]:
    """What groups of points are told apart by."""
    return [column.loc[points.index] for _, column in groups.items()]
