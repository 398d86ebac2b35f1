"""A sweep's definition, from YAML or Python: `Sweep`. Its `runs` are made in expansion.py; a search's `space` in space.py.

The definition's shape is looser than `RunConfig`: any field may hold a list, an axis of the grid, so only the sections are
checked here, and the fields when the grid is expanded.
"""

import importlib.resources
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, field_validator

from sae_core.config.run import ARCHITECTURES, Config, Count, RunConfig
from sae_core.errors import ConfigError, UnknownNameError, border
from sweeps.definition.local_data import absolute
from sweeps.definition.plain import check_plain
from sweeps.definition.problems import Problems, collect, printable, shown
from sweeps.definition.yaml_text import MOST_CHARACTERS, dump_yaml, load_yaml, with_overrides

if TYPE_CHECKING:
    from sweeps.definition.space import Space


_LONGEST_NAME = 255
"""Bytes of a file name."""


class WandbConfig(Config):
    """Where Weights & Biases keeps one run per SAE."""

    mode: Literal["offline", "online", "disabled"] = "offline"
    project: str = "sae-sweep"
    entity: str | None = None


class SearchConfig(Config):
    """Runs proposed one after another by Optuna, from what the earlier ones gave, instead of a grid."""

    trials: Count
    """Points tried, of all launches together. Each trains one run per seed and per order of the tokens."""
    sampler: Literal["tpe", "nsga2", "random"] = "tpe"
    """Who proposes: tree-structured Parzen estimators, a genetic algorithm, or chance."""
    objectives: Annotated[list[str], Field(min_length=1)] = Field(default_factory=lambda: ["l0", "fvu"])
    """Held-out metrics to trade off, each in the direction it has; means over seeds and orders."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Decides the proposals."""
    points_to_evaluate: list[dict[str, Any]] = Field(default_factory=list)
    """Points tried first: place in the definition -> value, e.g. {architectures: topk, train.lr: 4e-3}; what is left out is proposed."""


class EarlyStoppingConfig(Config):
    """Runs that others of their sparsity dominate are stopped before their end."""

    rungs: Annotated[list[Annotated[float, Field(gt=0, lt=1)]], Field(min_length=1)] = Field(default_factory=lambda: [0.1, 0.3])
    """Fractions of a run's steps at which it is compared."""
    reduction_factor: Annotated[float, Field(gt=1)] = 3.0
    """The best 1/reduction_factor of the runs compared with each other go on in any case."""
    l0_band: Annotated[float, Field(gt=1)] = 1.5
    """Runs are compared with each other where the L0 asked for, or else the coefficients, differ by at most this factor."""

    @field_validator("rungs")
    @classmethod
    def _rungs_rise(cls, rungs: list[float]) -> list[float]:
        if rungs != sorted(set(rungs)):
            raise ConfigError(f"`rungs` must increase, but got rungs={rungs}. Sort them, each once.")
        return rungs


class Sweep(Config):
    """A set of runs. In the sections a list is an axis of the grid.

    Raises:
        ConfigError: an unknown section, or one of the wrong type. The fields inside are checked by `runs`.
    """

    name: str
    """Names the results directory."""
    model: dict[str, Any] | None = None
    """Which language model, and where in it: `name`, `hook_point`, `context_size`, ..."""
    data: dict[str, Any] | None = None
    """Which text, and how much of it: `dataset`, `text_column`, ..., `train_tokens`, `eval_tokens`."""
    activations: dict[str, Any] | None = None
    """Instead of `model` and `data`, another source of activations: `{source: NAME, ...}`."""
    sae: dict[str, Any] = Field(default_factory=dict)
    """Fields common to all architectures, e.g. `d_sae`."""
    train: dict[str, Any] = Field(default_factory=dict)
    """Fields of `TrainConfig`."""
    target_l0: Any = None
    """L0 that every architecture is to reach, or a list of them, instead of the sparsity coefficients below."""
    architectures: dict[str, dict[str, Any] | None]
    """Architecture name -> its own fields, and those of `sae` and `train` that differ for it."""
    seeds: list[int] = Field(default_factory=lambda: [0])
    """Each run is made once per seed."""
    data_seed: Any = 0
    """Decides the order of the training tokens. Of a list, each run is made once per order, as once per seed."""
    search: SearchConfig | None = None
    """Search the space that the fields span instead of training all of their combinations."""
    early_stopping: EarlyStoppingConfig | None = None
    """Stop runs that others of their sparsity dominate."""
    wandb: WandbConfig | None = None

    def __init__(self, **fields: Any) -> None:
        # Python callers get the same errors as those who write YAML, not pydantic's own.
        problems = Problems()
        check_plain(fields, problems)
        if problems:
            raise problems.error()
        try:
            super().__init__(**fields)
        except ValidationError as error:
            collect(error, type(self), problems, lambda path: ".".join(part for part in path if not part.isdigit()))
            raise problems.error() from None

    @field_validator("name")
    @classmethod
    def _names_a_directory(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise ConfigError(
                f"`name` must start with a letter or digit and go on with those, '.', '_' or '-', because it names the results directory, "
                f"but got name={shown(name)}. Choose another."
            )
        if len(name) > _LONGEST_NAME:
            raise ConfigError(
                f"`name` must have at most {_LONGEST_NAME} characters, because it names a directory, "
                f"but got {len(name)}: name={shown(name)}. Shorten it."
            )
        return name

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
        from sweeps.definition.expansion import expand

        return expand(self)

    def space(self) -> "Space":
        """The space that `search` proposes runs from, validated.

        Raises:
            ConfigError: all problems, one a line.
        """
        from sweeps.definition.space import space_of

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
