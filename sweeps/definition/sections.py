"""The sections of a definition, as they are given: what expansion and the space of a search read, and `Sweep` offers.

They are looser than `RunConfig`: any field may hold a list, an axis of the grid, so only the sections are checked here, and the
fields when the grid is expanded.
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator

from sae_core import plugins
from sae_core.config.base import Config, Count
from sae_core.config.snapshots import Point
from sae_core.errors import ConfigError, UnknownNameError, border
from sweeps.definition.plain import plain
from sweeps.definition.problems import Problems, collect, shown
from sweeps.samplers import SAMPLERS


class WandbConfig(Config):
    """Where Weights & Biases keeps one run per SAE."""

    mode: Literal["offline", "online", "disabled"] = "offline"
    project: str = "sae-sweep"
    entity: str | None = None
    artifacts: bool = False
    """Whether each SAE and its snapshots are uploaded with its finished run."""


class SearchConfig(Config):
    """Runs proposed one after another by Optuna, from the results of earlier ones, instead of a grid."""

    trials: Count
    """Points tried, of all launches together. Each trains one run per seed and per order of the tokens."""
    sampler: str = "tpe"
    """Name of the sampler: tpe, nsga2, random, or one of a plugin."""
    objectives: Annotated[list[str], Field(min_length=1)] = Field(default_factory=lambda: ["l0", "fvu"])
    """Held-out metrics to trade off, each in the direction it has; means over seeds and orders."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Decides the proposals."""
    points_to_evaluate: list[dict[str, Any]] = Field(default_factory=list)
    """Points tried first: place in the definition -> value, e.g. {architectures: topk, train.lr: 4e-3}; what is left out is proposed."""

    @field_validator("sampler")
    @classmethod
    def _sampler_exists(cls, sampler: str) -> str:
        if sampler not in SAMPLERS:
            raise UnknownNameError.of("sampler", sampler, SAMPLERS)
        return sampler


class EarlyStoppingConfig(Config):
    """Runs that others of their sparsity dominate are stopped before their end."""

    rungs: Annotated[list[Annotated[float, Field(gt=0, lt=1)]], Field(min_length=1)] = Field(default_factory=lambda: [0.1, 0.3])
    """Fractions of a run's steps at which it is compared."""
    reduction_factor: Annotated[float, Field(gt=1)] = 3.0
    """The best 1/reduction_factor of the runs compared with each other continue in any case."""
    l0_band: Annotated[float, Field(gt=1)] = 1.5
    """Runs are compared with each other where the L0 asked for, or else the coefficients, differ by at most this factor."""

    @field_validator("rungs")
    @classmethod
    def _rungs_rise(cls, rungs: list[float]) -> list[float]:
        if rungs != sorted(set(rungs)):
            raise ConfigError(f"`rungs` must increase, but got rungs={rungs}. Sort them and remove duplicates.")
        return rungs


class Definition(Config):
    """The sections of a sweep's definition. In them a list is an axis of the grid."""

    name: str
    """Names the results directory."""
    plugins: list[str] = Field(default_factory=list)
    """Modules (`my_package.my_sae`) and files (`./my_sae.py`) that register architectures, metrics, sources, ...; imported first."""
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
    zip: list[list[str]] = Field(default_factory=list)
    """Fields whose values come together, first with first, e.g. [[sae.d_sae, train.lr]], instead of in every combination."""
    seeds: list[int] = Field(default_factory=lambda: [0])
    """Each run is made once per seed."""
    data_seed: Any = 0
    """Decides the order of the training tokens. Of a list, each run is made once per order, as once per seed."""
    search: SearchConfig | None = None
    """Search the space that the fields span instead of training all of their combinations."""
    early_stopping: EarlyStoppingConfig | None = None
    """Stop runs that others of their sparsity dominate."""
    snapshots: list[Point] = Field(default_factory=list)
    """Points of training at which each run's SAE is exported and evaluated as well, e.g. [10%, 30%, log 5]."""
    keep_states: bool = False
    """Keep each run's state in training before its decay, so that a run of more tokens continues from it."""
    wandb: WandbConfig | None = None
    """Log runs to Weights & Biases."""
    loggers: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Further loggers, e.g. `tensorboard`: name -> its options."""

    def __init__(self, **fields: Any) -> None:
        # Python callers get the same errors as those who write YAML, not pydantic's own.
        content = plain(fields)
        plugins.load(locate_plugins(content, Path.cwd()))  # before any registry is asked for a name
        problems = Problems()
        try:
            super().__init__(**content)
        except ValidationError as error:
            collect(error, problems, lambda path: ".".join(part for part in path if not part.isdigit()), type(self))
        problems.raise_any()

    @field_validator("name")
    @classmethod
    def _names_a_directory(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}", name):
            raise ConfigError(
                "`name` must be 1 to 255 letters, digits, '.', '_' and '-' and start with a letter or digit, because it names the results "
                f"directory, but got name={shown(name)}. Choose another."
            )
        return name


def locate_plugins(content: dict[str, Any], directory: Path) -> list[str]:
    """Make the paths among a definition's plugins absolute; they are relative to `directory`.

    Returns:
        The plugins; none where they are not a list of text, which validation reports.
    """
    given = content.get("plugins")
    if not isinstance(given, list) or not all(isinstance(location, str) for location in given):
        return []
    with border(f"plugins must be modules or files, but got {shown(given)}", "Correct `plugins`."):
        content["plugins"] = [plugins.absolute(location, directory) for location in given]
    return content["plugins"]
