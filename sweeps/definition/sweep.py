"""A sweep, from YAML, TOML, JSON or Python: its runs, or the space of its search."""

import functools
import importlib.resources
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from sae_core.config.run import ARCHITECTURES, RunConfig
from sae_core.errors import ConfigError, UnknownNameError, border
from sae_core.notebook import table_of
from sweeps.definition.expansion import expand, local_paths, read_axes
from sweeps.definition.plain import plain
from sweeps.definition.problems import Problems, shown
from sweeps.definition.sections import Definition, locate_plugins
from sweeps.definition.space import Space, space_of
from sweeps.definition.text import MOST_CHARACTERS, apply_overrides, dump_yaml, load_text

_FILES = importlib.resources.files("sweeps").joinpath("definitions")
_TEMPLATE = "template"
_ENDINGS = (".yaml", ".yml", ".json", ".toml")


class Sweep(Definition):
    """A set of runs, from a file or Python.

    Raises:
        ConfigError: an unknown section, or one of the wrong type. The fields inside are checked by `runs`.
    """

    @classmethod
    def from_dict(cls, definition: Mapping[str, Any], overrides: Sequence[str] = ()) -> Self:
        """A sweep from the content of a definition file.

        Args:
            overrides: `key=value` settings, applied in order; the key is a dotted path and the value YAML. One of `target_l0` takes the
                place of the definition's coefficients and `k`.

        Raises:
            ConfigError: it is not a mapping of sections, or not as `Sweep` wants them.
        """
        if isinstance(overrides, str) or not all(isinstance(override, str) for override in overrides):
            raise ConfigError(f"overrides must be a list of key=value, but got {shown(overrides)}. Write e.g. ['train.lr=1e-3'].")
        content = plain(definition)
        if not isinstance(content, dict):
            raise ConfigError(f"a definition must be a mapping of sections, but got {shown(content)}. Start from one of {ready()}.")
        given: dict[str, Any] = {}
        apply_overrides(given, overrides)
        if given.get("target_l0") is not None:
            _remove_sparsity(content)
        _remove_other_names(content, given)
        apply_overrides(content, overrides)
        return cls(**content)

    @classmethod
    def from_yaml(cls, path_or_name: str | Path, overrides: Sequence[str] = ()) -> Self:
        """A sweep from a YAML, JSON or TOML file, or a ready one by its name, e.g. "demo".

        Raises:
            ConfigError: there is no such file or ready sweep, or it is not a definition.
        """
        name, shown_name = str(path_or_name), shown(str(path_or_name))
        if name in ready():
            return cls.from_dict(load_text(_FILES.joinpath(f"{name}.yaml").read_text(encoding="utf-8"), name), overrides)
        with border(f"a definition must be a readable text file, but {shown_name} is not", "Correct the path, or save it as UTF-8."):
            path = Path(name).expanduser()
            if not path.exists():
                if path.suffix in _ENDINGS or "/" in name:
                    raise ConfigError(f"a definition file must exist, but {shown_name} is missing. Correct it, or use one of {ready()}.")
                raise UnknownNameError.of("definition", name, ready(), "Or give the path of a file.")
            with path.open("rb") as file:  # one byte more than there may be, so that `load_text` notices
                text = file.read(4 * MOST_CHARACTERS + 1).decode("utf-8-sig")
        content = load_text(text, name, path.suffix)
        if isinstance(content, dict):
            locate_plugins(content, path.parent)
        return cls.from_dict(content, overrides)

    def to_yaml(self) -> str:
        """This sweep as a definition that gives the same runs from any directory: local paths are absolute."""
        content = {key: value for key, value in self.model_dump(mode="json", exclude_unset=True).items() if value is not None}
        for place, paths in local_paths(self).items():
            *sections, field = place.split(".")
            functools.reduce(dict.__getitem__, sections, content)[field] = paths
        return dump_yaml(content)

    def runs(self) -> list[RunConfig]:
        """Every run of a grid, validated: architectures in the order given, then the grid, seeds fastest.

        Raises:
            ConfigError: all problems, one per line: `<place>: <rule>, but got <value>. <remedy>.`
        """
        if self.search is not None:
            raise ConfigError(
                f"runs of a search must be proposed by it, but got search={str(self.search)[:80]}. Use `space()`, or leave `search` out."
            )
        return expand(self)

    def __repr__(self) -> str:
        return f"Sweep({', '.join(part for part in (repr(self.name), self._size, self._activations) if part)})"

    __str__ = __repr__

    def _repr_html_(self) -> str:
        facts = {
            "runs": self._size,
            "activations": self._activations,
            "target L0": shown(self.target_l0) if self.target_l0 is not None else "",
            "architectures": ", ".join(self.architectures),
            "seeds": ", ".join(map(str, self.seeds)),
        }
        content = {key: value for key, value in self.model_dump(mode="json", exclude_unset=True).items() if value is not None}
        return table_of(f"Sweep {self.name}", facts, dump_yaml(content))

    @property
    def _size(self) -> str:
        """How many runs or trials; empty where the definition cannot be read that far."""
        if self.search is not None:
            return f"search of {self.search.trials} trials"
        n_runs = read_axes(self, Problems()).n_runs
        return f"{n_runs:,} run{'s' * (n_runs != 1)}" if n_runs else ""

    @property
    def _activations(self) -> str:
        if not self.model:
            named = [(self.activations or {}).get("source")]
        else:
            named = [self.model.get("name"), self.model.get("hook_point", self.model.get("hook_in"))]
        text = " at ".join(name if isinstance(name, str) else shown(name) for name in named if name)
        hook_out = (self.model or {}).get("hook_out")
        return f"{text} to {hook_out if isinstance(hook_out, str) else shown(hook_out)}" if hook_out else text

    def space(self) -> Space:
        """The space that `search` proposes runs from, validated.

        Raises:
            ConfigError: all problems, one per line.
        """
        return space_of(self)


def ready() -> list[str]:
    """Names of the definitions that come with the package."""
    names = {entry.name.removesuffix(".yaml") for entry in _FILES.iterdir() if entry.name.endswith(".yaml")}
    return sorted(names - {_TEMPLATE})


def text_of(name: str) -> str:
    """Text of a definition that comes with the package."""
    return _FILES.joinpath(f"{name}.yaml").read_text(encoding="utf-8")


def write_template(path: Path) -> None:
    """Write a commented definition to start from, named after its file.

    Raises:
        ConfigError: the file exists, or cannot be written.
    """
    template = text_of(_TEMPLATE).replace("name: my-sweep", f"name: {path.stem}", 1)
    with border(f"a definition must be written to a new file, but got {str(path)!r}", "Choose another."), path.open("x") as file:
        file.write(template)


def _remove_other_names(content: dict[str, Any], given: Mapping[str, Any]) -> None:
    """Remove the hook point that a definition reads at, where an override gives it by its other name."""
    ours, theirs = content.get("model"), given.get("model")
    for name, other in (("hook_point", "hook_in"), ("hook_in", "hook_point")):
        if isinstance(ours, dict) and isinstance(theirs, dict) and name in theirs:
            ours.pop(other, None)


def _remove_sparsity(content: dict[str, Any]) -> None:
    """Remove the fields that set the sparsity of a definition's architectures."""
    architectures = content.get("architectures")
    own = architectures.values() if isinstance(architectures, dict) else ()
    for section in (section for section in (content.get("sae"), *own) if isinstance(section, dict)):
        for name in ARCHITECTURES:
            section.pop(ARCHITECTURES[name].Config.sparsity_parameter, None)
