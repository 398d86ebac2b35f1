"""Configuration: everything that decides a run's result, frozen and strict. `run_id` is a hash of it.

Validators check and nothing else: no derived state, no files read. Derived values are properties.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SerializeAsAny, model_validator

from sae_core.errors import ConfigError
from sae_core.registry import Registry

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


class Config(BaseModel):
    """Base of every configuration: frozen, unknown keys are errors, types are not coerced."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True)


class ArchitectureConfig(Config):
    """What every SAE has. Each architecture's file extends this with its own fields."""

    sparsity_parameter: ClassVar[str]
    """Name of the field that sets how sparse the latents are."""
    coefficient_times_l0: ClassVar[float] = 10.0
    """About how much coefficient times L0 comes to: where the search for a wanted L0 starts. It need not be exact."""

    architecture: str
    d_sae: Count
    """Number of latents."""
    decoder_init_norm: Positive = 0.1
    """Norm of each decoder row at initialisation; W_enc starts as the transpose of W_dec."""
    target_l0: Positive | None = None
    """L0 wanted. Where a coefficient sets the sparsity, it is only the start: it is adjusted while the SAE trains (docs/sparsity.md)."""

    @property
    def sparsity_value(self) -> float:
        """Value of the field named by `sparsity_parameter`."""
        return float(getattr(self, self.sparsity_parameter))

    @property
    def controls_l0(self) -> bool:
        """Whether the sparsity coefficient is adjusted in training to reach `target_l0`."""
        return self.target_l0 is not None

    @classmethod
    def aimed_at(cls, target_l0: float) -> dict[str, Any]:
        """Fields of a run that is asked for an L0 instead of a coefficient."""
        return {"target_l0": target_l0, cls.sparsity_parameter: cls.coefficient_times_l0 / target_l0}

    @classmethod
    def example(cls, d_in: int, d_sae: int) -> Self:
        """A small valid instance for `d_in`-dimensional activations: what the contract tests run."""
        raise NotImplementedError


class ActivationsConfig(Config):
    """Where x comes from. Each activation source extends this with its own fields."""

    source: str
    train_tokens: Count
    """Tokens trained on, special tokens excluded."""
    eval_tokens: Count
    """Held-out tokens evaluated on, special tokens excluded."""

    @classmethod
    def example(cls) -> Self:
        """A small valid instance that needs no download: what the contract tests run."""
        raise NotImplementedError


ARCHITECTURES: Registry[Any] = Registry("architecture", "sae_core.architectures")
"""Architecture name -> SparseAutoencoder subclass (its config class is `.Config`)."""

SOURCES: Registry[Any] = Registry("activation source", "sae_core.activations")
"""Source name -> ActivationSource subclass (its config class is `.Config`)."""


def _by_name(registry: Registry[Any], key: str) -> BeforeValidator:
    """A validator that turns a mapping into the config class its `key` names."""

    def parse(value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        if not isinstance(value.get(key), str):
            raise ConfigError(f"`{key}` must be the name of one, but got {value.get(key)!r}. Choose one of {list(registry)}.")
        return registry[value[key]].Config.model_validate(dict(value))

    return BeforeValidator(parse)


class TrainConfig(Config):
    """How a run is trained: optimizer, schedules, precision."""

    lr: Positive = 1e-3
    """Peak learning rate of Adam."""
    batch_size: Count = 2048
    """Tokens per step."""
    lr_schedule: Literal["constant", "cosine", "cosine_restarts"] = "constant"
    """Shape between warm-up and decay; with `constant` and `lr_decay` 1 the rate falls linearly all along."""
    lr_warm_up: Fraction = 0.05
    """Fraction of the steps over which the rate rises linearly to `lr`."""
    lr_decay: Fraction = 0.2
    """Fraction of the steps, at the end, over which the rate falls linearly to 0."""
    lr_min_factor: Fraction = 0.1
    """Lowest rate of the cosine shapes, as a fraction of `lr`."""
    n_restarts: Annotated[int, Field(ge=0)] = 2
    """Restarts of the `cosine_restarts` shape."""
    sparsity_warm_up: Fraction = 0.05
    """Fraction of the steps over which sparsity coefficients rise linearly from 0."""
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    adam_eps: Positive = 1e-8
    max_grad_norm: Positive | None = 1.0
    """Gradients with a larger norm, over all parameters of the run, are scaled down to it."""
    dead_after_tokens: Count = 10_000_000
    """A latent is dead when it was inactive for this many tokens (Gao et al. 2024)."""
    autocast: Literal["off", "bfloat16"] = "off"
    """Precision of the matrix products; parameters and optimizer state stay float32."""

    @model_validator(mode="after")
    def _phases_fit(self) -> Self:
        if self.lr_warm_up + self.lr_decay > 1:
            raise ConfigError(
                f"`lr_warm_up` + `lr_decay` must be <= 1 (fractions of the steps), but got {self.lr_warm_up} + {self.lr_decay}. Lower one."
            )
        return self


class RunConfig(Config):
    """One SAE to train and evaluate."""

    activations: Annotated[SerializeAsAny[ActivationsConfig], _by_name(SOURCES, "source")]
    sae: Annotated[SerializeAsAny[ArchitectureConfig], _by_name(ARCHITECTURES, "architecture")]
    train: TrainConfig = TrainConfig()
    seed: Annotated[int, Field(ge=0)] = 0
    """Decides the initialisation; data and their order stay the same across seeds."""
    data_seed: Annotated[int, Field(ge=0)] = 0
    """Decides the order of the training tokens."""

    @model_validator(mode="after")
    def _at_least_one_step(self) -> Self:
        if self.n_steps < 1:
            raise ConfigError(
                f"`train_tokens` must be >= `batch_size`, but got train_tokens={self.activations.train_tokens} and "
                f"batch_size={self.train.batch_size}. Raise `data.train_tokens` or lower `train.batch_size`."
            )
        return self

    @property
    def n_steps(self) -> int:
        """Training steps: whole batches in the token budget."""
        return self.activations.train_tokens // self.train.batch_size

    @property
    def run_id(self) -> str:
        """Readable prefix and a hash of every field: the same config has the same id on every machine."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return f"{self.sae.architecture}-{hashlib.sha256(canonical.encode()).hexdigest()[:12]}"
