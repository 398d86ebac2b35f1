"""The hook points of a definition: patterns as what they stand for, and where transcoders write."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from sae_core.activations.language_model.model_spec import ModelSpec, is_pattern, model_spec
from sae_core.errors import ConfigError

FIELDS = (("model", "hook_point"), ("model", "hook_out"))
"""Fields of the config that hold hook points."""


def expanded_hook_points(axes: Mapping[tuple[str, ...], Sequence[Any]]) -> dict[tuple[str, ...], list[Any]]:
    """`ActivationSource.expanded` of a language model: patterns with the hook points that they stand for in their place.

    Raises:
        ConfigError: a pattern matches none, or there are several models.
    """
    names = axes.get(("model", "name"), ())
    expanded: dict[tuple[str, ...], list[Any]] = {}
    for field in FIELDS:
        hook_points = axes.get(field, ())
        if not any(map(is_pattern, hook_points)):
            continue
        if len(names) != 1 or not isinstance(names[0], str):
            raise ConfigError(
                f"a pattern of hook points must come with one model, but got {list(hook_points)} and {list(names)}. List the hook "
                "points, or use one sweep for each model."
            )
        found: list[Any] = []
        for hook_point in hook_points:
            some = _matching(names[0], hook_point, ".".join(field)) if is_pattern(hook_point) else [hook_point]
            found += [one for one in some if one not in found]  # values need not be hashable yet
        expanded[field] = found
    return expanded


@functools.lru_cache(maxsize=32)
def _matching(name: str, pattern: str, field: str) -> list[str]:
    """The hook points of a model that a pattern stands for."""
    spec = model_spec(name)
    if found := spec.matching(pattern):
        return found
    named, path = next(iter(spec.names), spec.paths[-1]), f"{spec.layout.blocks}.0"
    raise ConfigError(
        f"`{field}` must be a hook point of the model, or a pattern that matches some (`*` is one part of a name), but got "
        f"{pattern!r}, which matches none of {name!r}. It has e.g. {named!r} and {path!r}."
    )


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
