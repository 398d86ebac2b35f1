"""The sections of a definition, as they are given: what expansion and the space of a search read, and `Sweep` offers.

They are looser than `RunConfig`: any field may hold a list, an axis of the grid, so only the sections are checked here, and the
fields when the grid is expanded.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator

from sae_core.config.run import Config, Count
from sae_core.errors import ConfigError
from sweeps.definition.plain import check_plain
from sweeps.definition.problems import Problems, collect, shown

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


class Definition(Config):
    """The sections of a sweep's definition, as they are given. In them a list is an axis of the grid.

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
