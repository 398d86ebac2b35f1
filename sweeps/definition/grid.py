"""Sections of a definition -> axes -> points of the grid.

A field's value is one point, or a list of them: an axis. A field whose own type is a sequence (`matryoshka_widths`) takes a
flat list as its value and a list of lists as an axis. In a search a field may also hold a range, `{low: 1e-3, high: 3e-2, log: true}`.
A `Grid` maps the path of a field in `RunConfig` (`("train", "lr")`) to its axis; its points are the cartesian product.
"""

import itertools
import math
import typing
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Self

from pydantic import BaseModel, ValidationError, model_validator

from sae_core.config.base import Config
from sae_core.errors import ConfigError
from sweeps.definition.problems import Problems, collect, model_in, shown, unknown_key

FieldPath = tuple[str, ...]

_LARGEST = 1e100
"""End of a range: its sums and ratios must be numbers too."""
_MOST_STEPS = 10**9
_TOLERANCE = 1e-6
"""Of a step: how far a number may lie beside it."""


class Range(Config):
    """Numbers between two ends, both included."""

    low: float | int
    high: float | int
    log: bool = False
    """Whether equal ratios are equally likely, instead of equal differences."""
    step: float | int | None = None
    """Only low, low + step, low + 2 step, ... are taken."""

    @model_validator(mode="after")
    def _ends_are_in_order(self) -> Self:
        least = 1 / _LARGEST if self.log else -_LARGEST
        if not least <= self.low < self.high <= _LARGEST:
            rule = f"{least:g} <= low < high <= {_LARGEST:g}{' with `log: true`' if self.log else ''}"
            raise ConfigError(f"`low` must satisfy {rule}, but got low={self.low:g} and high={self.high:g}. Correct them.")
        width = self.high - self.low
        if self.step is not None and (self.log or not width / _MOST_STEPS <= self.step <= width):
            rule = f"at most high - low, at least a {_MOST_STEPS:,}th of that, and without `log`"
            given = f"step={self.step:g}, low={self.low:g}, high={self.high:g} and log={self.log}"
            raise ConfigError(f"`step` must be {rule}, but got {given}. Correct it or leave it out.")
        return self

    @property
    def whole(self) -> bool:
        """Whether it is given in whole numbers."""
        return all(isinstance(number, int) for number in (self.low, self.high, self.step or 0))

    @property
    def last(self) -> float | int:
        """The largest number that is taken: `high`, or the last step that is not above it."""
        if self.step is None:
            return self.high
        low, high, step = (_exact(number) for number in (self.low, self.high, self.step))
        last = low + (high - low) // step * step
        return int(last) if self.whole else float(last)

    def takes(self, number: float | int) -> bool:
        """Whether a number lies in the range and, with `step`, on one of its steps."""
        if self.step is None or not self.low <= number <= self.last:
            return self.low <= number <= self.last
        steps = (_exact(number) - _exact(self.low)) / _exact(self.step)
        return abs(steps - round(steps)) < _TOLERANCE

    def at(self, fraction: float, *, whole: bool) -> float | int:
        """The number at a fraction of the range, 0 to 1; the nearest that is taken."""
        number = self.low * (self.high / self.low) ** fraction if self.log else self.low + (self.high - self.low) * fraction
        step = self.step or (1 if whole else 0)
        return min(self.low + round((number - self.low) / step) * step if step else number, self.last)

    def between(self, *, whole: bool) -> tuple[float | int, ...]:
        """Its ends and a number between: values to check a space with."""
        middle = math.sqrt(self.low * self.high) if self.log else (self.low + self.high) / 2
        return tuple(dict.fromkeys((self.low, round(middle) if whole else middle, self.last)))


def _exact(number: float | int) -> Fraction:
    """A number as it is written in decimal: three steps of 0.1 are 0.3."""
    return Fraction(str(number))


@dataclass(frozen=True, slots=True)
class Axis:
    """The values a field takes over the sweep; a fixed field has one."""

    place: str
    """Where the definition gives it, e.g. "architectures.topk.k"."""
    values: tuple[Any, ...]
    """All of them; of a range its ends and one between."""
    range: Range | None = None
    whole: bool = False
    """Whether the range stands for whole numbers only."""
    follows: FieldPath | None = None
    """Path of the axis that this one is paired with: its first value comes with the first of that, and so on."""

    @property
    def varies(self) -> bool:
        """Whether it takes more than one value."""
        return self.range is not None or len(self.values) > 1

    @property
    def is_searched(self) -> bool:
        """Whether a search decides it: not what comes with another axis."""
        return self.varies and self.follows is None


Grid = dict[FieldPath, Axis]
Fields = dict[str, tuple[FieldPath, Any]]
"""Key of a section -> path of its field in `RunConfig`, and the field's type."""


def fields_of(model: type[BaseModel], path: FieldPath) -> Fields:
    """The fields of a config class that is at `path` in `RunConfig`; those that a definition has another name for, under both."""
    fields = {name: ((*path, name), field.annotation) for name, field in model.model_fields.items()}
    others = model.other_names if issubclass(model, Config) else {}
    return fields | {other: fields[name] for other, name in others.items()}


def n_points(grid: Grid) -> int:
    """Number of points of a grid."""
    return math.prod(len(axis.values) for axis in grid.values() if axis.follows is None)


def read_section(
    section: Mapping[str, Any], fields: Fields, place: str, problems: Problems, hint: str = "", paired: Collection[str] = ()
) -> Grid:
    """Axes of one section.

    Args:
        section: what the definition gives: field -> value or list of values; nested for fields that are models themselves.
        place: path of the section in the definition, for messages.
        problems: gets what is wrong: unknown keys, empty axes, repeated values.
        hint: a sentence about unknown keys.
        paired: places of fields that are paired with others, so that values may repeat.
    """
    grid: Grid = {}
    for key, value in section.items():
        if problems.enough:
            break
        if key not in fields:
            problems.add(place, unknown_key(key, fields, hint))
            continue
        (path, annotation), here = fields[key], f"{place}.{key}"
        inner = model_in(annotation)
        if inner is not None and isinstance(value, Mapping) and value and not _is_range(value):
            grid |= read_section(value, fields_of(inner, path), here, problems, paired=paired)
        elif path in grid:
            names = f"`{grid[path].place.rpartition('.')[2]}` and `{key}`"
            problems.add(here, f"a field must be given once, but got {names}, which are two names of it. Remove one.")
        else:
            grid[path] = read_axis(value, annotation, here, problems, paired)
    return grid


def replaced(grid: Grid, own: Grid) -> Grid:
    """A grid with axes of its own in place of those with the same path; a section as a whole and its fields replace each other."""
    nested = {path for path in grid for other in own if path != other and path[: len(other)] == other[: len(path)]}
    return {path: axis for path, axis in grid.items() if path not in nested} | own


def read_axis(value: Any, annotation: Any, place: str, problems: Problems, paired: Collection[str] = ()) -> Axis:
    """The axis a field's value stands for; `annotation` is the field's own type."""
    if _is_range(value):
        return _range_axis(value, annotation, place, problems)
    sequence = _sequence_in(annotation)
    if not isinstance(value, list) or (sequence and not any(item is None or isinstance(item, list) for item in value)):
        return Axis(place, (_as(sequence, value),))
    if not value:
        problems.add(place, f"an axis must list at least one value, but got {place.rpartition('.')[2]}=[]. Add one or leave the field out.")
    if place in paired:
        return Axis(place, tuple(_as(sequence, item) for item in value))
    values: dict[Any, Any] = {}
    for item in value:
        # Equal values are one, also 1 and 1.0.
        key = repr(item) if isinstance(item, list | dict) else item
        if key in values:
            problems.add(place, f"an axis must list each value once, but got {shown(item)} twice. Remove one.")
        values.setdefault(key, _as(sequence, item))
    return Axis(place, tuple(values.values()))


Numbers = dict[FieldPath, int]
"""Path of an axis that follows no other -> the number of its value."""


def points(grid: Grid, part: str) -> Iterator[tuple[Numbers, dict[str, Any]]]:
    """Every combination of the axes under `part`, e.g. "train", as the nested mapping its config class takes; last axis fastest.

    An axis that is paired with another one takes the value of the same number. Where that is in another part, the numbers say which points
    of the two belong together.
    """
    axes = {path: axis for path, axis in grid.items() if path[0] == part}
    lengths = {axis.follows or path: len(axis.values) for path, axis in axes.items()}
    for chosen in itertools.product(*map(range, lengths.values())):
        numbers = dict(zip(lengths, chosen, strict=True))
        nested: dict[str, Any] = {}
        for path, axis in axes.items():
            _, *sections, name = path
            node = nested
            for section in sections:
                node = node.setdefault(section, {})
            node[name] = axis.values[numbers[axis.follows or path]]
        yield numbers, nested


def _is_range(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value.keys() & {"low", "high"})


def _range_axis(value: Mapping[str, Any], annotation: Any, place: str, problems: Problems) -> Axis:
    try:
        found = Range.model_validate(dict(value))
    except ValidationError as error:
        collect(error, problems, lambda path: ".".join((place, *path[:1])), Range)
        return Axis(place, ())
    # An L0 is a count, although targets need not be whole.
    whole = found.whole and (place.endswith("target_l0") or not _takes_fractions(annotation))
    return Axis(place, found.between(whole=whole), found, whole)


def _as(sequence: type | None, value: Any) -> Any:
    """YAML has only lists, strict configs want tuples."""
    return sequence(value) if sequence is not None and isinstance(value, list) else value


def _sequence_in(annotation: Any) -> type | None:
    """tuple or list, when the annotation is one or a union with one."""
    origin = typing.get_origin(annotation) or annotation
    if origin in (tuple, list):
        return typing.cast(type, origin)
    return next((found for part in typing.get_args(annotation) if (found := _sequence_in(part)) is not None), None)


def _takes_fractions(annotation: Any) -> bool:
    """Whether the annotation is float or a union with it."""
    return annotation is float or any(_takes_fractions(part) for part in typing.get_args(annotation))
