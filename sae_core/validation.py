"""What records and sweep.json hold, as types: sizes, and text that tables can hold. No torch.

A file with a checksum that matches is as it was written. One without, of an earlier version or edited by hand, may hold anything. Keys that
a reader can do without may be missing: earlier versions did not write them.
"""

import math
import reprlib
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

LARGEST = 1e100
"""No number of a run is larger: squares of float32 numbers, summed, are not."""
LONGEST_NAME = 255
"""Bytes that a file system allows for a name."""

Number = Annotated[float, Field(strict=True, ge=-LARGEST, le=LARGEST)]
Whole = Annotated[int, Field(strict=True, ge=-(2**63), lt=2**63)]
"""Tables have no larger whole numbers."""
Finite = Annotated[float, Field(strict=True, allow_inf_nan=False)]
"""A learning rate may be as large as somebody asks for."""
_MOST_NESTED = 30


_FIELDS: list[tuple[Any, tuple[str, ...]]] = [
    (dict, ("activations", "sae", "train")),
    (Annotated[Finite, Field(gt=0)], ("train.lr", "sae.target_l0")),
    (Annotated[Whole, Field(gt=0)], ("sae.d_sae", "train.batch_size")),
    (Whole, ("activations.model.context_size", "activations.train_tokens", "train.tokens", "seed", "data_seed")),
    (
        str,
        (
            "activations.model.name",
            "activations.model.hook_point",
            "activations.model.hook_out",
            "activations.data.dataset",
            "train.normalize_activations",
        ),
    ),
]
"""Fields of a config that tables and reports read."""
_CONFIG = {path: TypeAdapter[Any](kind, config=ConfigDict(strict=True)) for kind, paths in _FIELDS for path in paths}


def _checked(config: Any) -> Any:
    for path, kind in _CONFIG.items():
        try:
            if (value := at(config, path)) is not None:
                kind.validate_python(value)
        except ValidationError as error:
            raise ValueError(f"`config.{path}` cannot be {reprlib.repr(value)}") from error
    return tabular(config)


def _names_a_directory(name: str) -> str:
    if name in ("", ".", "..") or {"/", "\0"} & set(name) or len(name.encode()) > LONGEST_NAME:
        raise ValueError("it cannot be the name of a directory")
    return name


def tabular(content: Any, depth: int = 0) -> Any:
    """The same, if tables can hold what is in it: text that is Unicode, numbers of 64 bits, no nesting without end."""
    if isinstance(content, str):
        content.encode()
    elif isinstance(content, dict | list | tuple):
        if depth == _MOST_NESTED:
            raise ValueError(f"it is nested more than {_MOST_NESTED} levels deep")
        for value in [*content, *content.values()] if isinstance(content, dict) else content:
            tabular(value, depth + 1)
    elif isinstance(content, int | float) and not (-(2**63) <= content < 2**63 if isinstance(content, int) else math.isfinite(content)):
        raise ValueError(f"a number is {str(content)[:20]}")
    return content


ConfigDump = Annotated[dict[str, Any], AfterValidator(_checked)]
"""A RunConfig as JSON, of any version."""


class _Section(BaseModel):
    model_config = ConfigDict(strict=True)


class _Planned(_Section):
    run_id: Annotated[str, AfterValidator(_names_a_directory)]
    architecture: str | None = None
    sparsity_parameter: str | None = None
    sparsity_value: Number | None = None
    seed: Whole | None = None
    config: ConfigDump | None = None


class _Stage(_Section):
    stage: str
    seconds: Number | None = None


class _Launch(_Section):
    started_at: str | None = None
    ended_at: str | None = None
    definition: str | None = None
    definition_checksum: str | None = None


class _Sweep(_Section):
    name: str | None = None
    hardware: str | None = None
    runs: list[_Planned] | None = None
    stages: list[_Stage] | None = None
    launches: list[_Launch] | None = None


def wrong_in_sweep(facts: Mapping[str, Any]) -> str:
    """What is wrong with the content of sweep.json; empty where nothing is."""
    try:
        _Sweep.model_validate(facts)
        tabular(facts)
    except ValueError as error:
        return first_problem(error)
    return ""


def first_problem(error: ValueError) -> str:
    """What validation found wrong, or the first of it, in one line."""
    if not isinstance(error, ValidationError):
        return printable(str(error))
    detail = error.errors()[0]
    path = ".".join(str(part) for part in detail["loc"])
    return printable(f"`{path}` cannot be {reprlib.repr(detail['input'])}: {detail['msg']}")


def at(content: Any, path: str) -> Any:
    """The value of a field by its path, e.g. "train.lr"; None where there is none."""
    value = content
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def printable(text: str) -> str:
    """`text` in one line, with what no file can hold as UTF-8 spelled out."""
    return " ".join(text.encode("utf-8", "backslashreplace").decode().split())
