"""A sweep, from YAML or Python: its runs, or the space of its search."""

import importlib.resources
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from sae_core.config.run import ARCHITECTURES, RunConfig
from sae_core.errors import ConfigError, UnknownNameError, border
from sweeps.definition.expansion import expand
from sweeps.definition.local_data import absolute
from sweeps.definition.plain import check_plain
from sweeps.definition.problems import Problems, printable, shown
from sweeps.definition.sections import Definition
from sweeps.definition.space import Space, space_of
from sweeps.definition.yaml_text import MOST_CHARACTERS, dump_yaml, load_yaml, with_overrides

_LONGEST_NAME = 255
"""Bytes of a file name."""


class Sweep(Definition):
    """A set of runs, from YAML or Python.

    Raises:
        ConfigError: an unknown section, or one of the wrong type. The fields inside are checked by `runs`.
    """

    @classmethod
    def from_dict(cls, definition: Mapping[str, Any], overrides: Sequence[str] = ()) -> Self:
        """A sweep from what a YAML file holds.

        Args:
            overrides: `key=value` settings, applied in order; the key is a dotted path and the value YAML. One of `target_l0` takes the
                place of the definition's coefficients and `k`.

        Raises:
            ConfigError: it is not a mapping of sections, or not as `Sweep` wants them.
        """
        if not isinstance(definition, Mapping):
            raise ConfigError(f"a definition must be a mapping of sections, but got {shown(definition)}. {_remedy()}")
        if (
            isinstance(overrides, str)
            or not isinstance(overrides, Sequence)
            or not all(isinstance(override, str) for override in overrides)
        ):
            raise ConfigError(f"overrides must be a list of key=value, but got {shown(overrides)}. Write e.g. ['train.lr=1e-3'].")
        problems = Problems()
        check_plain(definition, problems)
        if problems:
            raise problems.error()
        content = with_overrides(definition, overrides)
        if content.get("target_l0") is not None and any(override.partition("=")[0].strip() == "target_l0" for override in overrides):
            content = with_overrides(_without_sparsity(definition), overrides)
        return cls(**content)

    @classmethod
    def from_yaml(cls, path_or_name: str | Path, overrides: Sequence[str] = ()) -> Self:
        """A sweep from a YAML file, or a ready one by its name, e.g. "demo".

        Raises:
            ConfigError: there is no such file or ready sweep, or it is not a definition.
        """
        text, where = _read(str(path_or_name))
        content = load_yaml(text, where)
        if not isinstance(content, dict):
            raise ConfigError(f"{printable(where)}: a definition must be a mapping of sections, but got {shown(content)}. {_remedy()}")
        return cls.from_dict(content, overrides)

    def to_yaml(self) -> str:
        """This sweep as a definition that gives the same runs from any directory: local paths are absolute."""
        content = {key: value for key, value in self.model_dump(mode="json", exclude_unset=True).items() if value is not None}
        for section, field in (("model", "name"), ("data", "dataset")):
            given = content.get(section, {}).get(field)
            if given is not None:
                content[section][field] = [absolute(name) for name in given] if isinstance(given, list) else absolute(given)
        return dump_yaml(content)

    def runs(self) -> list[RunConfig]:
        """Every run of a grid, validated: architectures in the order given, then the grid, seeds fastest.

        Raises:
            ConfigError: all problems, one a line: `<place>: <rule>, but got <value>. <remedy>.`
        """
        if self.search is not None:
            raise ConfigError(
                f"runs of a search must be proposed by it, but got search={str(self.search)[:80]}. Use `space()`, or leave `search` out."
            )
        return expand(self)

    def space(self) -> Space:
        """The space that `search` proposes runs from, validated.

        Raises:
            ConfigError: all problems, one a line.
        """
        return space_of(self)


def _without_sparsity(definition: Mapping[str, Any]) -> dict[str, Any]:
    """A definition without the fields that set the sparsity of its architectures."""
    parameters = {ARCHITECTURES[name].Config.sparsity_parameter for name in ARCHITECTURES}

    def rest(section: Any) -> Any:
        return {key: value for key, value in section.items() if key not in parameters} if isinstance(section, Mapping) else section

    content = dict(definition)
    if "sae" in content:
        content["sae"] = rest(content["sae"])
    if isinstance(own := content.get("architectures"), Mapping):
        content["architectures"] = {name: rest(section) for name, section in own.items()}
    return content


def _read(path_or_name: str) -> tuple[str, str]:
    """Text of a definition, and what to call it in messages."""
    if path_or_name in _ready():
        return importlib.resources.files("sweeps").joinpath("definitions", f"{path_or_name}.yaml").read_text(encoding="utf-8"), path_or_name
    name = shown(path_or_name)
    with border(f"a definition must be a readable text file, but {name} is not", "Correct the path, or save it as UTF-8."):
        path = Path(path_or_name).expanduser()
        if path.is_file():
            # A byte more than there may be, so that `load_yaml` notices, and no file fills the memory.
            with path.open("rb") as file:
                return file.read(4 * MOST_CHARACTERS + 1).decode("utf-8-sig"), path_or_name
        if path.exists():
            raise ConfigError(f"a definition must be a file, but {name} is a directory or a device. {_remedy()}")
        if path.suffix in (".yaml", ".yml") or "/" in path_or_name:
            raise ConfigError(f"a definition file must exist, but {name} is missing. Correct it, or take a ready one: {_ready()}.")
    raise UnknownNameError.of("definition", path_or_name[:_LONGEST_NAME], _ready(), "Or give the path of a YAML file.")


def _remedy() -> str:
    return f"Start from a ready one: {_ready()}."


def _ready() -> list[str]:
    """Names of the definitions that come with the package."""
    directory = importlib.resources.files("sweeps").joinpath("definitions")
    return sorted(entry.name.removesuffix(".yaml") for entry in directory.iterdir() if entry.name.endswith(".yaml"))
