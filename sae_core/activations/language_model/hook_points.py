"""The hook points of a definition: patterns as what they stand for, those of a crosscoder, and where transcoders write.

A crosscoder's are `{together: [a, b]}` in a definition and "a + b" everywhere else: in configs, records, tables and exported SAEs.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from sae_core.activations.language_model.loading import BESIDE
from sae_core.activations.language_model.model_spec import ModelSpec, is_pattern, model_spec
from sae_core.errors import ConfigError

FIELDS = (("model", "hook_point"), ("model", "hook_out"))
"""Fields of the config that hold hook points."""
TOGETHER = "together"
"""Key under which a definition lists the hook points of a crosscoder."""


def expanded_hook_points(axes: Mapping[tuple[str, ...], Sequence[Any]]) -> dict[tuple[str, ...], list[Any]]:
    """`ActivationSource.expanded` of a language model: patterns with the hook points that they stand for in their place, and those that a
    crosscoder reads as one name.

    Raises:
        ConfigError: a pattern matches none, or there are several models; or `together` does not list hook points.
    """
    names = axes.get(("model", "name"), ())
    expanded: dict[tuple[str, ...], list[Any]] = {}
    for field in FIELDS:
        hook_points, place = axes.get(field, ()), ".".join(field)
        if not any(is_pattern(value) or isinstance(value, Mapping) for value in hook_points):
            continue
        found: list[Any] = []
        for value in hook_points:
            if isinstance(value, Mapping):
                some = [BESIDE.join(_matching(names, _listed(value, place), place))]
            else:
                some = _matching(names, [value], place)
            found += [one for one in some if one not in found]  # values need not be hashable yet
        expanded[field] = found
    return expanded


def _listed(value: Mapping[str, Any], field: str) -> list[str]:
    """The hook points and patterns that `together` lists."""
    listed = value.get(TOGETHER) if value.keys() == {TOGETHER} else None
    hook_points = [listed] if isinstance(listed, str) else listed if isinstance(listed, list) else []
    if not hook_points or not all(isinstance(name, str) for name in hook_points) or len(set(hook_points)) < len(hook_points):
        raise ConfigError(
            f"`{field}` must be a hook point, or `{{{TOGETHER}: [...]}}` with those of a crosscoder, each once, but got {dict(value)!r}. "
            f"Write e.g. `{{{TOGETHER}: [blocks.0.hook_resid_post, blocks.1.hook_resid_post]}}`."
        )
    return hook_points


def _matching(names: Sequence[Any], hook_points: Sequence[Any], field: str) -> list[Any]:
    """Hook points, with what patterns stand for in their place, each once. `names` are those of the models."""
    if any(map(is_pattern, hook_points)) and (len(names) != 1 or not isinstance(names[0], str)):
        raise ConfigError(
            f"a pattern of hook points must come with one model, but got {list(hook_points)} and {list(names)}. List the hook "
            "points, or use one sweep for each model."
        )
    found: list[Any] = []
    for hook_point in hook_points:
        some = _matches(names[0], hook_point, field) if is_pattern(hook_point) else [hook_point]
        found += [one for one in some if one not in found]
    return found


@functools.lru_cache(maxsize=32)
def _matches(name: str, pattern: str, field: str) -> list[str]:
    """The hook points of a model that a pattern stands for."""
    spec = model_spec(name)
    if found := spec.matching(pattern):
        return found
    named, path = next(iter(spec.names), spec.paths[-1]), f"{spec.layout.blocks}.0"
    raise ConfigError(
        f"`{field}` must be a hook point of the model, or a pattern that matches some (`*` is one part of a name), but got "
        f"{pattern!r}, which matches none of {name!r}. It has e.g. {named!r} and {path!r}."
    )


def widths_read(spec: ModelSpec, hook_points: Sequence[str]) -> dict[str, int]:
    """Hook point -> width of its activations, of those that an SAE reads.

    Raises:
        ConfigError: there is no such hook point, or two of a crosscoder are one place.
    """
    widths = {hook_point: spec.d_in(hook_point) for hook_point in hook_points}
    places: dict[Any, str] = {}
    for hook_point in hook_points:
        if (other := places.setdefault(spec.place(hook_point), hook_point)) != hook_point:
            raise ConfigError(
                f"`model.hook_point` must name each place of a crosscoder once, but got {hook_point!r}, which is where {other!r} is. "
                "Leave one out."
            )
    return widths


def width_written(spec: ModelSpec, hook_point: str, hook_out: str) -> int:
    """Width of the activations that a transcoder writes.

    Raises:
        ConfigError: there is no such hook point, or it is where the transcoder reads.
    """
    try:
        width = spec.d_in(hook_out)
    except ConfigError as error:
        raise ConfigError(str(error).replace("`model.hook_point`", "`model.hook_out`")) from error
    if spec.place(hook_out) == spec.place(hook_point):
        raise ConfigError(
            f"`model.hook_out` must be another place than the one that is read, but got {hook_out!r}, which is where {hook_point!r} is. "
            "Leave it out to train SAEs."
        )
    return width
