"""Configuration: everything that decides a run's result, frozen and strict. `run_id` is a hash of it.

Validators check and nothing else: no derived state, no files read. Derived values are properties.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from functools import cached_property
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, SerializeAsAny, model_validator

from sae_core.config.base import Config, Count, Fraction, Positive, Tokens, require
from sae_core.config.coefficients import Coefficient
from sae_core.config.kl_stage import KlStageConfig
from sae_core.config.spans import Span, fraction_of_run, steps_of
from sae_core.errors import ConfigError, UnknownNameError
from sae_core.registry import Registry


class ArchitectureConfig(Config):
    """What every SAE has. Each architecture's file extends this with its own fields."""

    sparsity_parameter: ClassVar[str]
    """Name of the field that sets how sparse the latents are."""
    coefficient_times_l0: ClassVar[float] = 10.0
    """About how much coefficient times L0 comes to: where the search for a wanted L0 starts. It need not be exact."""
    has_coefficient: ClassVar[bool] = True
    """Whether the field named by `sparsity_parameter` multiplies a term of the loss."""
    is_tied: ClassVar[bool] = False
    """Whether the encoder is the transpose of the decoder, so that there is no W_enc."""
    left_out: ClassVar[tuple[str, ...]] = ("aligned",)

    architecture: str
    d_sae: Count
    """Number of latents."""
    decoder_init: Literal["random", "data"] = "random"
    """Directions of the decoder rows at the start: random, or tokens of the data minus b_dec (saev's datapoint initialisation). A
    definition of transcoders that does not say takes data."""
    decoder_init_norm: Positive | Literal["search"] = 0.1
    """Norm of each decoder row at the start (SAELens: 0.1; Anthropic April 2024: 0.05 to 1); search: the one of a grid from 0.05 to 2
    with which the SAE reconstructs a sample best (as in Language-Model-SAEs)."""
    encoder_init: Literal["transpose", "independent"] = "transpose"
    """W_enc at the start: the transpose of W_dec (Gao et al. 2024, arXiv:2406.04093), or random itself, its columns with the norms of the
    decoder rows (Bricken et al. 2023 draw both). In place of the transpose, that of a transcoder reads the tokens that the decoder rows
    are of, where `decoder_init` is data, and is independent where that is random."""
    b_dec_init: Literal["zeros", "mean", "geometric_median"] = "zeros"
    """b_dec at the start: zeros (SAELens), or the mean or the geometric median of a sample (Bricken et al. 2023; Gao et al. 2024). A
    definition of transcoders that does not say takes the mean."""
    aligned: bool = False
    """Whether decoder rows are held at norm 1, and the product of each with its latent's encoder column at 1 too (aligned training,
    arXiv:2605.18629)."""
    target_l0: Positive | None = None
    """L0 wanted. Where a coefficient sets the sparsity, it is only the start: it is adjusted while the SAE trains (docs/sparsity.md)."""

    @model_validator(mode="after")
    def _rows_start_at_norm_1(self) -> Self:
        rule = f"`decoder_init_norm` must be 1 where decoder rows are held at norm 1, but got {self.decoder_init_norm!r}. Set it to 1."
        require(self.decoder_init_norm == 1 or not self.unit_rows, rule)
        return self

    @model_validator(mode="after")
    def _target_fits(self) -> Self:
        if self.target_l0 is not None:
            rule = f"`target_l0` must be <= d_sae, but got target_l0={self.target_l0:g} and d_sae={self.d_sae}. Lower it or raise `d_sae`."
            require(self.target_l0 <= self.d_sae, rule)
        return self

    @property
    def skips(self) -> bool:
        """Whether the output has a part that is linear in x, beside that of the latents."""
        return False

    @property
    def unit_rows(self) -> bool:
        """Whether decoder rows are held at norm 1 in training."""
        return self.aligned

    @property
    def sparsity_value(self) -> float:
        """Value of the field named by `sparsity_parameter`."""
        return float(getattr(self, self.sparsity_parameter))

    @property
    def coefficients(self) -> Mapping[str, Coefficient]:
        """Further coefficients of the loss, with warm-ups of their own: what each is now, the loss finds in `ctx.coefficients`."""
        return {}

    @property
    def expected_l0(self) -> float:
        """L0 at the end of training, at most d_sae: what is asked for, or about what the coefficient leads to."""
        l0 = self.sparsity_value
        if self.target_l0 is not None:
            l0 = self.target_l0
        elif self.has_coefficient:
            l0 = self.coefficient_times_l0 / l0 if l0 else math.inf
        return min(l0, float(self.d_sae))

    @property
    def schedule_end(self) -> float:
        """Fraction of the run at which the sparsity is that of its end, where the architecture has a schedule of its own."""
        return 0.0

    @property
    def n_forms(self) -> int:
        """Further forms that a trained SAE is measured in: those of `SparseAutoencoder.forms`."""
        return 0

    @property
    def controls_l0(self) -> bool:
        """Whether the sparsity coefficient is adjusted in training to reach `target_l0`."""
        return self.target_l0 is not None

    @classmethod
    def aimed_at(cls, target_l0: float, given: Mapping[str, Any]) -> dict[str, Any]:
        """Fields of a run that is asked for an L0 instead of a coefficient; `given` are the others, not validated yet."""
        return {"target_l0": target_l0, cls.sparsity_parameter: cls.coefficient_times_l0 / target_l0}

    @classmethod
    def example(cls, d_in: int, d_sae: int) -> Self:
        """A small valid instance for `d_in`-dimensional activations: what the contract tests run."""
        raise NotImplementedError


class TranscoderConfig(ArchitectureConfig):
    """What an architecture has that can be a transcoder too: an SAE that reads at one place and writes at another."""

    transcoder_start: ClassVar[Mapping[str, str]] = MappingProxyType({"decoder_init": "data", "b_dec_init": "mean"})
    """Initial values of transcoders where a definition does not say: what trained best (docs/settings.md)."""

    left_out: ClassVar[tuple[str, ...]] = ("skip_connection",)

    skip_connection: bool = False
    """Whether x @ W_skip.T is added to the output of a transcoder (Paulo et al. 2025, arXiv:2501.18823)."""

    @property
    def skips(self) -> bool:
        return self.skip_connection


class ActivationsConfig(Config):
    """Where x comes from. Each activation source extends this with its own fields."""

    source: str
    train_tokens: Tokens
    """Tokens trained on, special tokens excluded."""
    eval_tokens: Tokens
    """Held-out tokens evaluated on, special tokens excluded."""

    @classmethod
    def example(cls) -> Self:
        """A small valid instance that needs no download: what the contract tests run."""
        raise NotImplementedError


ARCHITECTURES: Registry[Any] = Registry("architecture", "sae_core.architectures")
"""Architecture name -> SparseAutoencoder subclass (its config class is `.Config`)."""

SOURCES: Registry[Any] = Registry("activation source", "sae_core.activations")
"""Source name -> ActivationSource subclass (its config class is `.Config`)."""


NORMALIZATIONS: Registry[Any] = Registry("normalization of activations", "sae_core.sae")
"""Value of `normalize_activations` -> function that makes the normalization; see `sae.normalization`."""


def _by_name(registry: Registry[Any], key: str) -> BeforeValidator:
    """A validator that turns a mapping into the config class its `key` names."""

    def parse(value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        if not isinstance(value.get(key), str):
            raise ConfigError(f"`{key}` must be a registered name, but got {value.get(key)!r}. Choose one of {list(registry)}.")
        return registry[value[key]].Config.model_validate(dict(value))

    return BeforeValidator(parse)


def _registered(name: str) -> str:
    NORMALIZATIONS[name]  # raises where there is none
    return name


class TrainConfig(Config):
    """How a run is trained: optimizer, schedules, precision."""

    left_out: ClassVar[tuple[str, ...]] = ("tokens", "init_from", "kl_stage")

    tokens: Tokens | None = None
    """Tokens trained on, in whole batches; None: the `train_tokens` of the activations, each once. Of more they are repeated, in another
    order each time; fewer are the first of the same order, so that a shorter run is the beginning of a longer one."""
    init_from: str | None = None
    """SAE whose weights a run starts from: a directory, `hub:user/repo[/folder][@revision]`, or the id of a run beside this one, or of a
    variant. The fields of `sae` that say how a new one starts then have no effect. See `training.init_from`."""
    lr: Positive = 1e-3
    """Peak learning rate of Adam."""
    lr_factors: dict[str, Positive] = {}  # noqa: RUF012  pydantic copies it
    """Parameter name -> its learning rate as a multiple of `lr`, on top of the architecture's own factors."""
    batch_size: Count = 2048
    """Tokens per step."""
    lr_schedule: Literal["constant", "cosine", "cosine_restarts"] = "constant"
    """Shape between warm-up and decay; with `constant` and `lr_decay` 1 the rate falls linearly all along."""
    lr_warm_up: Span = 0.05
    """How long the rate rises linearly to `lr`: a fraction of the steps, or e.g. "500 steps", "2M tokens"."""
    lr_decay: Span = 0.2
    """How long, at the end, the rate falls linearly to 0: a fraction of the steps, or steps, or tokens."""
    lr_min_factor: Fraction = 0.1
    """Lowest rate of the cosine shapes, as a fraction of `lr`."""
    n_restarts: Annotated[int, Field(ge=0)] = 2
    """Restarts of the `cosine_restarts` shape."""
    sparsity_warm_up: Span = 0.05
    """How long sparsity coefficients rise linearly from 0: a fraction of the steps, or steps, or tokens."""
    sparsity_decay: Span = 0.0
    """How long, at the end, sparsity coefficients fall linearly to `sparsity_decay_to`: a fraction of the steps, or steps, or tokens."""
    sparsity_decay_to: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """What `sparsity_decay` ends at, as a fraction of the coefficient."""
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    adam_eps: Positive = 1e-8
    max_grad_norm: Positive | None = 1.0
    """Gradients with a larger norm, over all parameters of the run, are scaled down to it."""
    normalize_activations: Annotated[str, AfterValidator(_registered)] = "expected_norm"
    """Units that training works in: x times one scalar so that E||x|| = sqrt(d_in); x as it is; each token with mean 0 and standard
    deviation 1; or all tokens with mean 0 and covariance 1 (ZCA). Coefficients and thresholds are in these units."""
    dead_after_tokens: Count = 10_000_000
    """A latent is dead when it was inactive for this many tokens (Gao et al. 2024)."""
    resample_every_steps: Count | None = None
    """Dead latents are made anew, from badly reconstructed tokens, each time this many steps have passed (Bricken et al. 2023)."""
    resample_until: Fraction = 0.5
    """Fraction of the steps after which no latent is resampled, so that all have time to train."""
    autocast: Literal["off", "bfloat16"] = "off"
    """Precision of the matrix products; parameters and optimizer state stay float32."""
    kl_stage: KlStageConfig | None = None
    """A last stage of training on what the language model makes of reconstructions; None: there is none."""

    @model_validator(mode="after")
    def _fields_have_an_effect(self) -> Self:
        ones = [name for name, factor in self.lr_factors.items() if factor == 1]
        require(not ones, f"`lr_factors` must differ from 1, but got {', '.join(ones)}=1. Leave it out: 1 has no effect.")
        require(
            self.sparsity_decay_to == 0 or self.sparsity_decay != 0,
            f"`sparsity_decay_to` must come with `sparsity_decay`, but got sparsity_decay_to={self.sparsity_decay_to} and "
            "sparsity_decay=0. Set `sparsity_decay`, e.g. to 0.2, or leave both out.",
        )
        require(
            self.resample_every_steps is not None or not self.changed("resample_until"),
            f"`resample_until` must come with `resample_every_steps`, but got {self.changed('resample_until')} and "
            "resample_every_steps=None. Set `resample_every_steps`, or leave both out.",
        )
        return self


class RunConfig(Config):
    """One SAE to train and evaluate."""

    left_out: ClassVar[tuple[str, ...]] = ("plugins", "init_hash")

    activations: Annotated[SerializeAsAny[ActivationsConfig], _by_name(SOURCES, "source")]
    sae: Annotated[SerializeAsAny[ArchitectureConfig], _by_name(ARCHITECTURES, "architecture")]
    train: TrainConfig = TrainConfig()
    seed: Annotated[int, Field(ge=0)] = 0
    """Decides the initialisation; data and their order stay the same across seeds."""
    data_seed: Annotated[int, Field(ge=0)] = 0
    """Decides the order of the training tokens."""
    plugins: dict[str, str] = Field(default_factory=dict)
    """Name -> checksum of the plugins that the result depends on, so that an edited plugin makes new runs."""

    init_hash: str | None = None
    """Checksum of the SAE that `train.init_from` names, so that other content makes new runs; None for a run, whose id stands for it."""

    @model_validator(mode="after")
    def _schedules_fit(self) -> Self:
        train, n_steps = self.train, self.n_steps
        name, place = ("train_tokens", "data.train_tokens") if train.tokens is None else ("tokens", "train.tokens")
        require(
            n_steps >= 1,
            f"`{name}` must be >= `batch_size`, but got {name}={train.tokens or self.activations.train_tokens} and "
            f"batch_size={train.batch_size}. Raise `{place}` or lower `train.batch_size`.",
        )
        for names in (("lr_warm_up", "lr_decay"), ("sparsity_warm_up", "sparsity_decay")):
            first, second = (getattr(train, name) for name in names)
            require(
                sum(fraction_of_run(span, n_steps, train.batch_size) for span in (first, second)) <= 1,
                f"`{names[0]}` + `{names[1]}` must be <= 1 (fractions of the run's {n_steps} steps), but got {first!r} + {second!r}. "
                "Shorten one, or train for more steps.",
            )
        for name, coefficient in self.sae.coefficients.items():
            require(
                fraction_of_run(coefficient.warm_up, n_steps, train.batch_size) <= 1,
                f"the warm-up of the coefficient {name!r} must be at most the run's {n_steps} steps, but got {coefficient.warm_up!r}. "
                "Shorten it, or train for more steps.",
            )
        last = self.last_resampling
        require(
            train.resample_every_steps is None or (last and last * train.batch_size >= train.dead_after_tokens),
            f"a latent must be able to be dead at one of the resamplings, but got dead_after_tokens={train.dead_after_tokens}, "
            f"resample_every_steps={train.resample_every_steps} and resample_until={train.resample_until:g}: the last resampling is at "
            f"step {last} of {n_steps}, after {last * train.batch_size} tokens. Lower `train.dead_after_tokens`, or resample more often or "
            "longer.",
        )
        return self

    @model_validator(mode="after")
    def _training_fits_the_architecture(self) -> Self:
        sae, decay = self.sae, self.train.sparsity_decay
        require(
            decay == 0 or sae.has_coefficient,
            f"`sparsity_decay` must be left to architectures with a sparsity coefficient, but got sparsity_decay={decay!r} for "
            f"{sae.architecture!r}. Give it under the architectures that it is meant for.",
        )
        require(
            decay == 0 or not sae.controls_l0,
            f"`sparsity_decay` must be 0 where the coefficient is adjusted to reach `target_l0`, but got sparsity_decay={decay!r} and "
            f"target_l0={sae.target_l0}. Remove one: they would work against each other.",
        )
        require(
            not sae.is_tied or self.train.normalize_activations != "whitening",
            f"`normalize_activations` must be a scale where encoder and decoder are tied, but got 'whitening' for {sae.architecture!r}. "
            "Take 'expected_norm', 'layer_norm' or 'none'.",
        )
        known = ARCHITECTURES[sae.architecture].parameter_names(sae) if self.train.lr_factors else ()
        for name in sorted(self.train.lr_factors.keys() - set(known)):
            what = f"`lr_factors`: a parameter of {sae.architecture!r}"
            raise UnknownNameError.of(what, name, known, "Correct it, or give it under the architectures that have it.")
        return self

    @model_validator(mode="after")
    def _kl_stage_fits(self) -> Self:
        if (stage := self.train.kl_stage) is None:
            return self
        reason = SOURCES[self.activations.source].why_no_text_batch(self.activations)
        stage.check(reason, self.n_steps, self.train.batch_size, self.train.sparsity_decay)
        return self

    @property
    def kl_stage_start(self) -> int:
        """Steps done when the KL stage begins; `n_steps` where there is none."""
        stage = self.train.kl_stage
        return self.n_steps - (steps_of(stage.tokens, self.n_steps, self.train.batch_size) if stage else 0)

    @property
    def last_resampling(self) -> int:
        """Steps done when dead latents are resampled for the last time, which is before the last step; 0: never."""
        if self.train.resample_every_steps is None:
            return 0
        until = min(round(self.train.resample_until * self.n_steps), self.n_steps - 1)
        return until - until % self.train.resample_every_steps

    @property
    def n_steps(self) -> int:
        """Training steps: whole batches in the token budget."""
        return (self.train.tokens or self.activations.train_tokens) // self.train.batch_size

    @property
    def n_tokens(self) -> int:
        """Tokens trained on: whole batches."""
        return self.n_steps * self.train.batch_size

    @cached_property
    def run_id(self) -> str:
        """Readable prefix and a hash of every field: the same config has the same id on every machine."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return f"{self.sae.architecture}-{hashlib.sha256(canonical.encode()).hexdigest()[:12]}"

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy, which has a run id of its own."""
        copied = super().model_copy(update=update, deep=deep)
        copied.__dict__.pop("run_id", None)
        return copied

    @property
    def identity(self) -> dict[str, Any]:
        """Fields of a record and of sweep.json that say which run it is, with the config as JSON."""
        return {
            "run_id": self.run_id,
            "architecture": self.sae.architecture,
            "sparsity_parameter": self.sae.sparsity_parameter,
            "sparsity_value": self.sae.sparsity_value,
            "seed": self.seed,
            "config": self.model_dump(mode="json"),
        }
