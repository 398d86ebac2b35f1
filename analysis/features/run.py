"""A trained SAE together with the activations that it was trained on: what everything here starts from.

`sweeps.open_run(results, run_id)` makes one from a sweep's directory. The language model is loaded when it is first needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.features.activations import LatentActivations, Progress, collect, unseen
from analysis.features.readable import TokenTexts
from sae_core.errors import ConfigError

if TYPE_CHECKING:
    from sae_core.activations.language_model.engine import HookedModel
    from sae_core.activations.source import ActivationSource
    from sae_core.sae.base import SparseAutoencoder


@dataclass
class LearnedRun:
    """An SAE in inference form, and the source of its activations."""

    run_id: str
    sweep: str
    """Name of the sweep's directory."""
    sae: SparseAutoencoder
    source: ActivationSource
    cache: Path
    """The source's prepared cache: held-out text, as the evaluation reads it."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What its record says, for readers: `architecture`, `model`, `hook_point`, `hook_out`, `dataset`, `seed`, `l0`, `fvu`, `delta_ce`."""
    progress: Progress = unseen

    @property
    def has_model(self) -> bool:
        """Whether the activations are those of a language model that can be run."""
        return hasattr(type(self.source), "model")

    @property
    def can_intervene(self) -> bool:
        """Whether the language model can be run with a latent changed: there is one, and one hook point."""
        return self.has_model and not self.sae.parts

    @property
    def model(self) -> HookedModel:
        """The language model, cut at the hook point: of a transcoder where it writes.

        Raises:
            ConfigError: the source has none, it cannot be loaded, or the SAE is a crosscoder.
        """
        if self.sae.parts:
            raise ConfigError(
                "logit effects, steering, ablation, probes and exports of latents need an SAE of one hook point, but got a crosscoder of "
                f"{list(self.sae.parts)}. Densities, examples and matching work with it."
            )
        if not self.has_model:
            raise ConfigError(
                "logit effects, steering and ablation need a language model, but got activations of source "
                f"{self.source.config.source!r}. Densities, examples and matching work without one."
            )
        return getattr(self.source, "model_out")  # noqa: B009 - only sources with a language model have it

    @cached_property
    def texts(self) -> TokenTexts:
        """Tokens as readers see them."""
        from sae_core.activations.language_model.loading import tokenizer_or_none

        return TokenTexts(tokenizer_or_none(self.source.config.model.name) if self.has_model else None)

    @cached_property
    def special_ids(self) -> list[int]:
        """Tokens that do not count, whose activations no change touches."""
        return self.source.special_ids(self.cache) if self.has_model else []  # type: ignore[attr-defined]

    @cached_property
    def activations(self) -> LatentActivations:
        """Where every latent is active on the held-out text: one pass over it, made when it is first needed."""
        return collect(self.sae, self.source, self.cache, l0=self.facts.get("l0"), progress=self.progress)

    def check_latents(self, latents: Sequence[int]) -> None:
        """Make sure that the SAE has these latents.

        Raises:
            ConfigError: it does not.
        """
        d_sae = self.sae.d_sae
        if wrong := [latent for latent in latents if not 0 <= latent < d_sae]:
            raise ConfigError(
                f"a latent must be a number from 0 to d_sae - 1, but got {', '.join(map(str, wrong))} and d_sae={d_sae} of run "
                f"{self.run_id!r}. Choose another."
            )
