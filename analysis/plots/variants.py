"""What was measured beside runs: the paths of their training over L0, and the forms of one SAE among separate SAEs.

A point is a mean over seeds. Neither is on a front, or in any other number: they are drawn here, and rows of the table.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.columns import VARIANT_OF
from analysis.plots import PLOTS, Plot, style
from analysis.plots.frontier import FrontierInfo, L0DeltaCe, L0Fvu, draw_fronts
from analysis.table import evenly, over_seeds, specs_of, variants_as_runs
from analysis.words import count, in_order, setting
from sae_core.records import VariantKind

MOST_PATHS = 6
"""Paths of an architecture that are drawn, evenly over its settings."""
LEAST_SPACING = 0.045
"""Part of the axis that two texts must lie apart."""


@dataclass(frozen=True, slots=True)
class Stop:
    """A variant of a setting, or the setting itself."""

    x: float
    """L0."""
    y: float
    y_range: tuple[float, float]
    """Smallest and largest over seeds."""
    tokens: float
    """That the SAE was trained on."""
    run_id: str
    """Of the first run, where it is the setting itself; else empty."""


@dataclass(frozen=True, slots=True)
class VariantPath:
    """The variants of a setting and itself, in the order in which they are joined."""

    architecture: str
    setting: str
    stops: tuple[Stop, ...]


@dataclass(frozen=True, slots=True)
class PathsInfo:
    """Paths of all architectures."""

    paths: tuple[VariantPath, ...]
    y_label: str
    n_left_out: int = 0
    """Settings whose path is left out because there are too many to see."""
    fronts: FrontierInfo | None = None
    """Fronts of separate SAEs, beside forms of one."""


class VariantsPlot(Plot):
    """Base of the plots of variants: L0 against a metric `y`, both logarithmic."""

    base: ClassVar[type[L0Fvu] | type[L0DeltaCe]]
    """Plot of finished runs with the same axes."""
    kind: ClassVar[VariantKind]
    joined_by: ClassVar[str]
    """Column that orders a path."""

    @classmethod
    def info(cls, table: pd.DataFrame, histories: Mapping[str, Path]) -> PathsInfo | None:
        """Paths through the means over seeds."""
        if VARIANT_OF not in table or cls.base.y not in table:
            return None
        paths = _paths(table, cls.kind, cls.base.y, cls.joined_by)
        shown = [path for own in paths.values() for path in (own[index] for index in evenly(len(own), MOST_PATHS))]
        if not shown:
            return None
        fronts = _of_others(cls.base.fronts(table), shown) if cls.kind == "form" else None
        n_left_out = sum(map(len, paths.values())) - len(shown)
        return PathsInfo(tuple(shown), style.axis_label(specs_of(table).get(cls.base.y), cls.base.y), n_left_out, fronts)

    @classmethod
    def note(cls, info: PathsInfo) -> str:
        """What is left out."""
        return f"{info.n_left_out:,} more settings have such a path and are not drawn." if info.n_left_out else ""

    @classmethod
    def figure(cls, info: PathsInfo) -> Figure:
        """Draw the paths, over the fronts where there are some."""
        figure = Figure(figsize=(7.4, 4.2), layout="constrained")
        axes = figure.subplots()
        axes.grid(True)
        looks = style.looks([*(path.architecture for path in info.paths), *(info.fronts.series if info.fronts else ())])
        points = [(stop.x, end) for path in info.paths for stop in path.stops for end in stop.y_range]
        if info.fronts:
            draw_fronts(axes, info.fronts)
            points += [(end, y) for series in info.fronts.series.values() for p in series for end in p.x_range for y in p.y_range]
        named: set[str] = set()
        for path in info.paths:
            look = looks[path.architecture]
            cls.draw(axes, path, look, "" if look.label in named else look.label)
            named.add(look.label)
        style.l0_axis(axes.xaxis, [x for x, _ in points if x > 0])
        style.log_axis(axes.yaxis, [y for _, y in points if y > 0])
        axes.set_xlabel("L0 (active latents per token)")
        axes.set_ylabel(info.y_label)
        cls.annotate(axes, info)
        figure.legend(loc="outside right upper")
        return figure

    @classmethod
    def annotate(cls, axes: Axes, info: PathsInfo) -> None:
        """Add text, once the axes have their limits."""

    @classmethod
    def draw(cls, axes: Axes, path: VariantPath, look: style.Look, name: str) -> None:
        """Draw one path; `name` is for the legend, where it is the first of its architecture."""
        raise NotImplementedError


class TrainingPaths(VariantsPlot):
    """Base of the paths of training."""

    section = "Training"
    caption = (
        "What each SAE was at points of its training, measured on the held-out text: dots, larger the more tokens it had seen; "
        "the marker at the end is the finished SAE. Snapshots are on no front and in no other number of this report."
    )
    kind = "snapshot"
    joined_by = "train_tokens"

    @classmethod
    def note(cls, info: PathsInfo) -> str:
        """When the snapshots were taken."""
        tokens = sorted({stop.tokens for path in info.paths for stop in path.stops})
        ends = f"From {count(tokens[0])} to {count(tokens[-1])} tokens."
        return " ".join(text for text in (ends, super().note(info)) if text)

    @classmethod
    def annotate(cls, axes: Axes, info: PathsInfo) -> None:
        """The tokens at the stops of the longest path, where there is room for them."""
        path = max(info.paths, key=lambda path: path.stops[0].y / path.stops[-1].y)
        low, high = np.log(axes.get_ylim())
        last, unit = np.inf, " tokens"
        for stop in path.stops:
            height = (np.log(stop.y) - low) / (high - low)
            if abs(height - last) >= LEAST_SPACING:
                place: dict[str, Any] = {"xytext": (7, 0), "textcoords": "offset points", "va": "center", "fontsize": 7.5}
                axes.annotate(f"{count(stop.tokens)}{unit}", (stop.x, stop.y), color=style.FAINT, **place)
                unit = ""
                last = height

    @classmethod
    def draw(cls, axes: Axes, path: VariantPath, look: style.Look, name: str) -> None:
        """Dots that grow along a line, and a marker at its end."""
        x, y = [stop.x for stop in path.stops], [stop.y for stop in path.stops]
        axes.plot(x, y, color=look.color, linewidth=1.1, alpha=0.55, zorder=2)
        sizes = np.linspace(6, 22, max(len(x) - 1, 1))[: len(x) - 1]
        axes.scatter(x[:-1], y[:-1], s=sizes, color=look.color, linewidths=0, zorder=3)
        end: dict[str, Any] = {"markersize": 6.5, "markeredgecolor": "white", "markeredgewidth": 0.6, "linestyle": "", "zorder": 4}
        axes.plot(x[-1:], y[-1:], color=look.color, marker=look.marker, label=name or None, **end)
        if path.stops[-1].run_id:
            axes.scatter(x[-1:], y[-1:], s=60, alpha=0, zorder=5).set_urls([f"#{path.stops[-1].run_id}"])


class OneSae(VariantsPlot):
    """Base of the plots of one SAE in several forms."""

    section = "Frontiers"
    caption = (
        "Lower left is better. Dashed, hollow: one SAE per seed, used with fewer active latents than it was trained for at most. "
        "Solid: fronts of separate SAEs, each trained for its own L0. The forms of one SAE are on no front."
    )
    kind = "form"
    joined_by = "l0"

    @classmethod
    def draw(cls, axes: Axes, path: VariantPath, look: style.Look, name: str) -> None:
        """Hollow markers on a dashed line, with whiskers over seeds."""
        x, y = [stop.x for stop in path.stops], [stop.y for stop in path.stops]
        line: dict[str, Any] = {"linestyle": "--", "linewidth": 1.4, "markersize": 6, "markerfacecolor": "white", "markeredgewidth": 1.2}
        whole = f"{name},\none SAE in all forms" if name else None
        axes.plot(x, y, color=look.color, marker=look.marker, label=whole, zorder=4, **line)
        low, high = ([stop.y_range[end] for stop in path.stops] for end in (0, 1))
        axes.vlines(x, low, high, color=look.color, linewidth=1, zorder=3)


@PLOTS.register("snapshots_fvu")
class SnapshotsFvu(TrainingPaths):
    """Paths of training, sparsity against reconstruction."""

    title = "Paths of training: reconstruction"
    order = 31
    base = L0Fvu


@PLOTS.register("snapshots_delta_ce")
class SnapshotsDeltaCe(TrainingPaths):
    """Paths of training, sparsity against added cross-entropy."""

    title = "Paths of training: added cross-entropy"
    order = 32
    base = L0DeltaCe


@PLOTS.register("forms_fvu")
class FormsFvu(OneSae):
    """One SAE at every L0 among separate ones, by reconstruction."""

    title = "One SAE in several forms: reconstruction"
    order = 18
    base = L0Fvu


@PLOTS.register("forms_delta_ce")
class FormsDeltaCe(OneSae):
    """One SAE at every L0 among separate ones, by added cross-entropy."""

    title = "One SAE in several forms: added cross-entropy"
    order = 19
    base = L0DeltaCe


def _of_others(fronts: FrontierInfo | None, paths: Sequence[VariantPath]) -> FrontierInfo | None:
    """The fronts without architectures all of whose settings are at the end of a path."""
    ends = {stop.run_id for path in paths for stop in path.stops}
    series = {} if fronts is None else fronts.series
    others = {name: points for name, points in series.items() if not all(point.run_ids[0] in ends for point in points)}
    return replace(fronts, series=others) if fronts and others else None


def _paths(table: pd.DataFrame, kind: VariantKind, y: str, joined_by: str) -> dict[str, list[VariantPath]]:
    """Architecture -> the paths of its settings that have variants of a kind, by their L0."""
    rows = variants_as_runs(table, kind)
    rows = rows[((rows["l0"] > 0) & (rows[y] > 0)).fillna(False).to_numpy(dtype=bool)]
    hashes = dict(zip(table["run_id"], table["setting_hash"], strict=True))
    is_variant = rows[VARIANT_OF].notna()
    of_setting = dict(zip(rows["setting_hash"], rows[VARIANT_OF].fillna(rows["run_id"]).map(hashes), strict=True))
    with_variants = {of_setting[own] for own in rows.loc[is_variant, "setting_hash"]}
    settings = over_seeds(rows)
    ranges = rows.groupby("setting_hash")[y].agg(["min", "max"])
    found: dict[str, list[VariantPath]] = {}
    paths = settings.assign(_of=settings["setting_hash"].map(of_setting)).sort_values(joined_by, kind="stable")
    for whole, own in paths.groupby("_of", sort=False):
        if whole in with_variants:
            stops = tuple(_stop(row, y, tuple(ranges.loc[row["setting_hash"]]), whole) for row in own.to_dict("records"))
            last = own.iloc[-1]
            found.setdefault(str(last["architecture"]), []).append(VariantPath(str(last["architecture"]), setting(last), stops))
    return {name: sorted(found[name], key=lambda path: path.stops[-1].x) for name in in_order(found)}


def _stop(row: Mapping[Any, Any], y: str, y_range: tuple[float, float], whole: object) -> Stop:
    run_id = row["run_ids"][0] if row["setting_hash"] == whole else ""
    return Stop(float(row["l0"]), float(row[y]), y_range, float(row["train_tokens"]), run_id)
