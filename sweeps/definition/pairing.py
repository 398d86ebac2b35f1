"""Paired axes: fields whose values come together, first with first, instead of in every combination.

A definition names them under `zip`; a source of activations pairs some itself, such as where transcoders read and where they write.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import TYPE_CHECKING

from sweeps.definition.grid import Grid
from sweeps.definition.problems import Problems, shown, unknown_key
from sweeps.definition.sections import Definition

if TYPE_CHECKING:
    from sae_core.activations.source import ActivationSource


def check_zip(definition: Definition, grids: Iterable[Grid], problems: Problems) -> None:
    """Note what is wrong with `zip` as such: places that are no field of the definition, or are named twice."""
    known = {
        axis.place for grid in grids for path, axis in grid.items() if path not in (("sae", "architecture"), ("activations", "source"))
    }
    known |= {f"sae.{field}" for field in definition.sae} | {f"train.{field}" for field in definition.train}  # also where all replace them
    for place, number in Counter(chain(*definition.zip)).items():
        if place not in known:
            problems.add("zip", unknown_key(place, known, "`zip` names fields that the definition gives, as `--set` does."))
        elif number > 1:
            problems.add("zip", f"a field must be paired once, but got {place!r} {number} times. Put all that belongs to it in one list.")
    for group in definition.zip:
        if len(group) < 2:
            problems.add("zip", f"at least two fields must be paired, but got {shown(group)}. Add one, or remove the list.")


def zipped(groups: Sequence[Sequence[str]], grid: Grid, problems: Problems) -> Grid:
    """The same axes, with those of each group paired. A grid may lack some of them: other architectures have them."""
    for group in groups:
        members = [path for path, axis in grid.items() if axis.place in group]
        roots = list(dict.fromkeys(grid[path].follows or path for path in members))
        lengths = {grid[path].place: len(grid[path].values) for path in members}
        ranges = [grid[path] for path in members if grid[path].range is not None]
        for axis in ranges:
            problems.add(axis.place, f"paired fields must be lists, but got {axis.range} in `zip`. List values, or remove it there.")
        if not ranges and len(set(lengths.values())) > 1:
            numbers = ", ".join(f"{number} of {place}" for place, number in lengths.items())
            problems.add("zip", f"paired fields must have as many values as each other, but got {numbers}. Add or remove some.")
        elif not ranges:
            # What follows one of them already, as `hook_out` does `hook_in`, follows their leader too.
            followers = [path for path, axis in grid.items() if (axis.follows or path) in roots[1:]]
            grid = {**grid, **{path: dataclasses.replace(grid[path], follows=roots[0]) for path in followers}}
    return grid


def paired_by_source(source: "type[ActivationSource]", grid: Grid, problems: Problems) -> Grid:
    """The same with the axes paired that belong together: where transcoders read, and where they write."""
    followers = {("activations", *field): ("activations", *other) for field, other in source.paired_fields.items()}
    for path, other in followers.items():
        axis, leader = grid.get(path), grid.get(other)
        if axis is None:
            if leader is not None and leader.place.rpartition(".")[2] != other[-1]:
                rule = f"`{leader.place.rpartition('.')[2]}` must come with `{path[-1]}`, but got none"
                problems.add(leader.place, f"{rule}. Add it, or write `{other[-1]}`.")
        elif leader is None or len(axis.values) == len(leader.values):
            grid = {**grid, path: dataclasses.replace(axis, follows=None if leader is None else other)}
        else:
            there, here = shown(list(leader.values)), shown(list(axis.values))
            rule = f"`{path[-1]}` must have as many values as `{leader.place.rpartition('.')[2]}`, since they are paired"
            problems.add(axis.place, f"{rule}, but got {here} for {there}. Add or remove some.")
            grid = {**grid, path: dataclasses.replace(axis, values=axis.values[:1])}
    return grid
