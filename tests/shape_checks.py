"""The run-time type checker of the import hook in conftest.py: beartype, as strict as mypy and no stricter."""

from collections.abc import Callable
from typing import Any, Self, get_origin

from beartype import BeartypeConf, beartype

_as_mypy_does = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is a float


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """Check arguments and results where that is possible: see `_is_checkable`."""
    for name, hint in function.__annotations__.items():
        if not _is_checkable(hint):
            function.__annotations__[name] = Any
    return _as_mypy_does(function)


def _is_checkable(hint: object) -> bool:
    """Not `Self`, because a method alone does not know its class; not forward references, whose class may not exist yet; not a
    registry, because looking at its items imports a whole package, perhaps in the middle of importing it."""
    is_registry = getattr(get_origin(hint), "__module__", "") == "sae_core.registry"
    return hint is not Self and not isinstance(hint, str) and not is_registry
