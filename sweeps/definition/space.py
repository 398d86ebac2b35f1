"""The space of a search: a definition whose lists are choices and whose ranges are ranges.

A point is a mapping from places in the definition ("train.lr", "architectures.topk.k") to values; "architectures" is the first
choice, and an architecture's own fields belong to the points of that architecture only. A field that an architecture overrides
has another place, so it is another parameter. Points become runs by the code that expands grids.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sae_core.config.run import SOURCES, ActivationsConfig, RunConfig
from sae_core.errors import UnknownNameError
from sae_core.metrics import METRICS
from sae_core.metrics.evaluators import column_specs
from sweeps.definition.expansion import MOST_RUNS, Axes, check_number, check_points, check_read, read_axes, runs_of
from sweeps.definition.grid import Axis
from sweeps.definition.problems import Problems, shown, unknown_key
from sweeps.definition.sections import Definition, SearchConfig

if TYPE_CHECKING:
    from optuna import Trial

ARCHITECTURES = "architectures"
"""The parameter that says which architecture a point is of, where there are several."""
TARGET_L0 = "target_l0"
GOLDEN_RATIO = (5**0.5 - 1) / 2
MOST_CHECKED = 2_000
"""Most corner points of an architecture that are validated before work."""
MOST_SHOWN = 30
"""Choices of a parameter that a message or the plan lists."""

Point = dict[str, Any]


@dataclass(frozen=True)
class Space:
    """Points, and the runs that they stand for."""

    axes: Axes
    corners: tuple[RunConfig, ...]
    """Runs at the ends of the ranges and at the listed values."""

    @property
    def activations(self) -> ActivationsConfig:
        """The activations that all points share."""
        return self.corners[0].activations

    @property
    def most_tokens(self) -> int:
        """Training tokens of the longest run."""
        return max(run.train.tokens or run.activations.train_tokens for run in self.corners)

    @property
    def target_l0(self) -> Axis | None:
        """The searched L0 that all architectures are asked for; None where there is none."""
        axes = [self.parameters(name).get(TARGET_L0) for name in self.axes.architectures]
        return axes[0] if all(axis is not None for axis in axes) else None

    def level(self, axis: Axis, turn: int) -> Any:
        """A value of an axis as Optuna takes it, such that successive turns spread over all of it."""
        if axis.range is None:
            return _label(axis.values[turn % len(axis.values)])
        return axis.range.at(turn * GOLDEN_RATIO % 1, whole=axis.whole)

    def parameters(self, architecture: str) -> dict[str, Axis]:
        """What a search decides about the points of an architecture, by place."""
        return {axis.place: axis for axis in self.axes.architectures[architecture].values() if axis.is_searched}

    def __call__(self, trial: "Trial") -> None:
        """Let Optuna propose a point: define-by-run, so that parameters depend on the architecture."""
        architecture = next(iter(self.axes.architectures))
        if len(self.axes.architectures) > 1:
            architecture = trial.suggest_categorical(ARCHITECTURES, list(self.axes.architectures))
        for place, axis in self.parameters(architecture).items():
            if (one := axis.range) is None:
                trial.suggest_categorical(place, [_label(value) for value in axis.values])
            elif axis.whole:
                trial.suggest_int(place, int(one.low), int(one.last), log=one.log, step=int(one.step or 1))
            else:
                trial.suggest_float(place, one.low, one.last, log=one.log, step=one.step)

    def runs(self, point: Mapping[str, Any]) -> list[RunConfig]:
        """The runs of a proposed point, one per order of the tokens and seed.

        Raises:
            ConfigError: the point breaks a rule that its corners keep.
            KeyError: a parameter is missing.
        """
        architecture = point.get(ARCHITECTURES, next(iter(self.axes.architectures)))
        axes = self.axes.architectures[architecture]
        grid = {path: Axis(axis.place, (_value(axis, axes[axis.follows or path], point),)) for path, axis in axes.items()}
        problems = Problems()
        runs = runs_of(dataclasses.replace(self.axes, architectures={architecture: grid}), problems)
        problems.raise_any()
        return runs

    def identity(self, measured: Sequence[str]) -> str:
        """A hash of what makes results of one search useless to another: its parameters, what is fixed, and what is measured."""
        parameters = [
            [name, place, str(axis.range) if axis.range else [_label(value) for value in axis.values]]
            for name in self.axes.architectures
            for place, axis in self.parameters(name).items()
        ]
        content = [list(measured), parameters, sorted(run.run_id for run in self.corners)]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]

    def fixed_point(self, given: Mapping[str, Any], problems: Problems) -> Point:
        """A point of the definition, complete or in part, as Optuna takes it."""
        place, names = "search.points_to_evaluate", list(self.axes.architectures)
        asked = given.get(ARCHITECTURES)
        if ARCHITECTURES in given and (asked not in names or len(names) == 1):
            rule = f"must be one of {names}" if len(names) > 1 else "must be left out where there is only one"
            problems.add(place, f"`architectures` {rule}, but got {asked!r}. Correct it.")
            return {}
        axes = {key: axis for name in ([asked] if asked else names) for key, axis in self.parameters(name).items()}
        point = {ARCHITECTURES: asked} if asked else {}
        for key, value in given.items():
            if key == ARCHITECTURES:
                continue
            if key not in axes:
                problems.add(place, unknown_key(key, axes))
            elif not _contains(axes[key], value):
                problems.add(place, f"`{key}` must be in {_shown(axes[key])}, but got {key}={shown(value)}. Correct it.")
            else:
                point[key] = _label(value)
        return point

    def lines(self) -> list[str]:
        """The space as text, a line per parameter."""
        width = max(len(place) for name in self.axes.architectures for place in [ARCHITECTURES, *self.parameters(name)])
        rows = {ARCHITECTURES: ", ".join(self.axes.architectures)}
        for name in self.axes.architectures:
            rows |= {place: _shown(axis) for place, axis in self.parameters(name).items()}
        return [f"{place:<{width}}  {values}" for place, values in rows.items()]


def space_of(definition: Definition) -> Space:
    """The space of a definition with `search`.

    Raises:
        ConfigError: all problems, one per line.
    """
    search = definition.search
    assert search is not None, f"{definition=}"
    problems = Problems()
    axes = read_axes(definition, problems)
    for axis in axes.activations.values():
        if axis.is_searched:
            problems.add(axis.place, f"a search must have one stream of activations, but got {shown(axis.values)}. Choose one value.")
    for axis in (axis for grid in axes.architectures.values() for axis in grid.values() if axis.is_searched and axis.range is None):
        if len({repr(value) for value in axis.values}) < len(axis.values):
            rule = "a search must have each value once in the first field of a list in `zip`"
            problems.add(axis.place, f"{rule}, but got {shown(list(axis.values))}. Name the fields in another order there.")
    check_read(axes, problems)
    check_number(search.trials * axes.n_repeats, "search", problems)
    corners = runs_of(axes, problems, MOST_CHECKED) if axes.n_repeats <= MOST_RUNS else []
    check_points(definition, corners, problems)
    _check_objectives(search.objectives, axes.source, problems)
    problems.raise_any()
    space = Space(axes, tuple(corners))
    if not any(space.parameters(name) for name in axes.architectures) and len(axes.architectures) == 1:
        problems.add("search", "a search must have at least one range or choice, but got only fixed fields. Add a range or a list.")
    _check_points(space, search, problems)
    problems.raise_any()
    return space


def _check_points(space: Space, search: SearchConfig, problems: Problems) -> None:
    place, given = "search.points_to_evaluate", search.points_to_evaluate
    fixed = [space.fixed_point(point, problems) for point in given]
    if any(not point for point in given):
        problems.add(place, "a point must give at least one value, but got {}. Give one, or leave the point out.")
    for index, point in enumerate(fixed):
        if point and point in fixed[:index]:
            problems.add(place, f"points must be listed once each, but got {shown(given[index])} twice. Remove one.")
    if len(given) > search.trials:
        rule = f"there must be one trial per point, but got {len(given)} points and trials={search.trials}"
        problems.add(place, f"{rule}. Raise `search.trials`.")


def _check_objectives(objectives: Sequence[str], source: str, problems: Problems) -> None:
    place, specs = "search.objectives", column_specs()
    if len(set(objectives)) < len(objectives):
        problems.add(place, f"`objectives` must be listed once each, but got {list(objectives)}. Remove one.")
    for name in objectives:
        if name not in specs:
            problems.add(place, str(UnknownNameError.of("metric", name, specs)))
        elif specs[name].direction == "none":
            ranked = sorted(other for other, spec in specs.items() if spec.direction != "none")
            problems.add(place, f"an objective must have a direction (min or max), but got {name!r}. Choose among {ranked}.")
        elif source and name in METRICS and (needs := METRICS[name].needs) is not None and needs not in SOURCES[source].offers:
            rule = "an objective must be a metric of the source of activations"
            problems.add(place, f"{rule}, but got {name!r} for {source!r}. Choose another.")


def _label(value: Any) -> Any:
    """A choice as Optuna can store it: lists as JSON."""
    return value if value is None or isinstance(value, bool | int | float | str) else json.dumps(value)


def _value(axis: Axis, leader: Axis, point: Mapping[str, Any]) -> Any:
    """The value of an axis at a point, which has that of the axis that it is paired with, or its own."""
    if not leader.is_searched:
        return axis.values[0]
    label = point[leader.place]
    return (
        label
        if axis.range is not None
        else next(value for value, other in zip(axis.values, leader.values, strict=True) if _same(_label(other), label))
    )


def _same(one: Any, other: Any) -> bool:
    """Equal, and both or none a boolean: True is not 1."""
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


def _contains(axis: Axis, value: Any) -> bool:
    if axis.range is None:
        return any(_same(_label(known), _label(value)) for known in axis.values)
    number = isinstance(value, int if axis.whole else int | float) and not isinstance(value, bool)
    return number and axis.range.takes(value)


def _shown(axis: Axis) -> str:
    """An axis as text."""
    if axis.range is None:
        more = [f"... and {len(axis.values) - MOST_SHOWN} more"] if len(axis.values) > MOST_SHOWN else []
        return ", ".join([*(str(value) for value in axis.values[:MOST_SHOWN]), *more])
    step = f", step {axis.range.step:g}" if axis.range.step else ""
    return f"{axis.range.low:g} to {axis.range.high:g}{' (log)' if axis.range.log else ''}{step}"
