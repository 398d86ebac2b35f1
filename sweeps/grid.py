"""Sections of a definition -> axes -> points of the grid.

A field's value is one point, or a list of them: an axis. A field whose own type is a sequence (`matryoshka_widths`) takes a
flat list as its value and a list of lists as an axis. A `Grid` maps the path of a field in `RunConfig`
(`("train", "lr")`) to its axis; its points are the cartesian product.
"""

import itertools
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from sweeps.problems import Problems, model_in, shown, unknown_key

FieldPath = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Axis:
    """The values a field takes over the sweep; a fixed field has one."""

    place: str
    """Where the definition gives it, e.g. "architectures.topk.k"."""
    values: tuple[Any, ...]


Grid = dict[FieldPath, Axis]


def read_section(
    section: Mapping[str, Any],
    model: type[BaseModel],
    *,
    path: FieldPath,
    place: str,
    problems: Problems,
    known: Sequence[str] | None = None,
) -> Grid:
    """Axes of one section.

    Args:
        section: what the definition gives: field -> value or list of values; nested for fields that are models themselves.
        model: the config class that says which fields there are and which take a sequence.
        path: path of the section in `RunConfig`.
        place: path of the section in the definition, for messages.
        problems: gets what is wrong: unknown keys, empty axes, repeated values.
        known: the fields that may be given here; all of the model's if None.
    """
    fields = model.model_fields
    known = list(fields) if known is None else known
    grid: Grid = {}
    for key, value in section.items():
        if key not in known:
            problems.add(place, unknown_key(key, known))
            continue
        annotation, here = fields[key].annotation, f"{place}.{key}"
        inner = model_in(annotation)
        if inner is not None and isinstance(value, Mapping):
            grid |= read_section(value, inner, path=(*path, key), place=here, problems=problems)
        else:
            grid[*path, key] = read_axis(value, annotation, place=here, problems=problems)
    return grid


def read_axis(value: Any, annotation: Any, *, place: str, problems: Problems) -> Axis:
    """The axis a field's value stands for; `annotation` is the field's own type."""
    sequence = _sequence_in(annotation)
    if not _is_axis(value, sequence):
        return Axis(place, (_as(sequence, value),))
    if not value:
        problems.add(place, f"an axis must list at least one value, but got {place.rsplit('.', 1)[-1]}=[]. Add one or leave the field out.")
    values: list[Any] = []
    for item in value:
        item = _as(sequence, item)
        if item in values:
            problems.add(place, f"an axis must list each value once, but got {shown(item)} twice. Remove one.")
        else:
            values.append(item)
    return Axis(place, tuple(values))


def points(grid: Grid, part: str) -> Iterator[dict[str, Any]]:
    """Every combination of the axes under `part`, e.g. "train", as the nested mapping its config class takes; last axis fastest."""
    axes = {path[1:]: axis for path, axis in grid.items() if path[0] == part}
    for values in itertools.product(*(axis.values for axis in axes.values())):
        nested: dict[str, Any] = {}
        for (*sections, name), value in zip(axes, values, strict=True):
            node = nested
            for section in sections:
                node = node.setdefault(section, {})
            node[name] = value
        yield nested


def _is_axis(value: Any, sequence: type | None) -> bool:
    if not isinstance(value, list | tuple):
        return False
    return sequence is None or any(item is None or isinstance(item, list | tuple) for item in value)


def _as(sequence: type | None, value: Any) -> Any:
    """YAML has only lists, strict configs want tuples."""
    return sequence(value) if sequence is not None and isinstance(value, list | tuple) else value


def _sequence_in(annotation: Any) -> type | None:
    """tuple or list, when the annotation is one or a union with one."""
    origin = typing.get_origin(annotation) or annotation
    if origin in (tuple, list):
        return typing.cast(type, origin)
    return next((found for part in typing.get_args(annotation) if (found := _sequence_in(part)) is not None), None)
