"""Direct logit effects: which next tokens a latent makes more or less likely, if no block above the hook point reacts to it.

    effect = ((W_dec[latent] - its mean over d_model) * weight of the final norm / scale) @ W_U

The final norm divides by a scale that depends on the rest of the residual stream. Here it is held at its harmonic mean over held-out
text (`sae_core.activations.language_model.direct`), so an effect is in nats of logit per unit of activation at a typical token; a final
norm that subtracts no mean (RMS norm) subtracts none here. Where tokens are layer-normed before the SAE, the unit is that of the
normed activation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from analysis.features.examples import BINS, Histogram

if TYPE_CHECKING:
    from analysis.features.run import LearnedRun

TEXT_TOKENS = 2_048
"""Held-out tokens, about, that the scale of the final norm is taken from."""
LOGITS = 2**24
"""Logits computed at a time: 64 MiB."""


@dataclass(frozen=True, slots=True)
class LogitEffects:
    """What one latent adds to the logits of the next token, per unit of its activation."""

    latent: int
    most_raised: tuple[tuple[int, float], ...]
    """(token, effect), largest first."""
    most_lowered: tuple[tuple[int, float], ...]
    """(token, effect), smallest first."""
    histogram: Histogram
    """Of the effects on all tokens."""


def logit_effects(run: LearnedRun, latents: Sequence[int], n: int = 10) -> list[LogitEffects]:
    """The direct logit effects of some latents, with the `n` tokens that each raises and lowers most.

    Raises:
        ConfigError: there is no such latent, no language model, or the hook point is not where something is added to the residual stream.
    """
    run.check_latents(latents)
    return list(iterate_logit_effects(run, latents, n))


def iterate_logit_effects(run: LearnedRun, latents: Sequence[int], n: int) -> Iterator[LogitEffects]:
    """As `logit_effects`, one at a time: for all latents of a large SAE."""
    import torch

    from sae_core.errors import ConfigError

    path = run.model.direct_path(_some_text(run))
    if path is None:
        raise ConfigError(
            f"direct logit effects need a hook point whose activations are added to the residual stream, but got "
            f"{run.facts.get('hook_point')!r}. Examples, steering and ablation work there."
        )
    at_a_time = max(1, LOGITS // path.d_vocab)
    for some in torch.tensor(list(latents), dtype=torch.long).split(at_a_time):
        effects = path.logits(run.sae.W_dec.detach()[some.to(run.sae.W_dec.device)]).cpu()
        highest, lowest = effects.topk(min(n, effects.shape[1])), (-effects).topk(min(n, effects.shape[1]))
        for row, latent in enumerate(some.tolist()):
            counts, edges = np.histogram(effects[row].numpy(), BINS)
            raised = zip(highest.indices[row].tolist(), highest.values[row].tolist(), strict=True)
            lowered = zip(lowest.indices[row].tolist(), (-lowest.values[row]).tolist(), strict=True)
            yield LogitEffects(latent, tuple(raised), tuple(lowered), Histogram(edges, counts))


def _some_text(run: LearnedRun):  # type: ignore[no-untyped-def]  # a tensor, which is not imported here
    """A few windows from all over the held-out text, [W, T]."""
    import torch

    windows = run.activations.windows
    assert windows is not None, "a language model reads text"
    n = min(len(windows), max(1, TEXT_TOKENS // windows.shape[1]))
    chosen = np.linspace(0, len(windows) - 1, n).round().astype(int)
    return torch.from_numpy(windows[chosen]).long().to(run.source.device)
