"""What latents do to the language model, measured for many of them at a time: for the page.

Ablation is measured where a latent is most active, one place of the text at a time: the prefix up to that place is read with and
without the latent, and the predictions of the next token are compared. Steering continues one text, the same for all latents.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from analysis.features.examples import Example, activations_in
from analysis.features.interventions import TokenChange, changes, continued, next_logits

if TYPE_CHECKING:
    from torch import Tensor

    from analysis.features.run import LearnedRun

Job = TypeVar("Job")

TOKENS = {"cpu": 2**11, "cuda": 2**15}
"""Tokens that the model reads at a time."""
MOST_LOGITS = 2**25
PROMPT_TOKENS = 20
"""Length of the text that is continued, special tokens included."""
NEW_TOKENS = 24
STRENGTHS = (1.0, 2.0, 4.0)
"""What is added to a latent when it is steered, as multiples of its largest activation."""


@dataclass(frozen=True, slots=True)
class Ablated:
    """What the model loses without a latent, as means over places where it is most active."""

    n_places: int
    kl: float
    """KL(with || without) of the next token, nats."""
    delta_ce: float | None
    """Cross-entropy of the token that really comes next, without the latent minus with it, nats; None where no place has one."""
    lowered: tuple[TokenChange, ...]
    """Next tokens that are less likely without the latent."""
    raised: tuple[TokenChange, ...]


@dataclass(frozen=True, slots=True)
class Steered:
    """What the model writes with a latent turned up."""

    strength: float
    written: tuple[int, ...]


def ablated(run: LearnedRun, examples: Mapping[int, Sequence[Example]]) -> dict[int, Ablated]:
    """Latent -> what the model loses without it at these examples; latents without any are left out."""
    import torch

    windows = run.activations.windows
    assert windows is not None, "a language model reads text"
    # What comes after a place changes nothing there: texts are read as far as the last place of a batch.
    places = sorted(((latent, example) for latent, some in examples.items() for example in some), key=lambda place: place[1].position)
    per_latent: dict[int, list[tuple[Tensor, Tensor, int | None]]] = {}
    n_done = 0
    for some in _batches(run, places, windows.shape[1]):
        length = some[-1][1].position + 1
        tokens = torch.from_numpy(np.stack([windows[example.window, :length] for _, example in some])).long().to(run.source.device)
        positions = torch.tensor([example.position for _, example in some], device=tokens.device)
        latents = [latent for latent, _ in some]
        log_p = next_logits(run, tokens, positions, latents, None).log_softmax(dim=-1).cpu()
        taken = [-torch.tensor(activations_in(run, latent, example.window)[:length], device=tokens.device) for latent, example in some]
        log_q = next_logits(run, tokens, positions, latents, taken).log_softmax(dim=-1).cpu()
        for row, (latent, example) in enumerate(some):
            after = example.position + 1
            per_latent.setdefault(latent, []).append(
                (log_p[row], log_q[row], int(windows[example.window, after]) if after < windows.shape[1] else None)
            )
        n_done += len(some)
        run.progress("ablating", n_done, len(places))
    return {latent: _mean(some) for latent, some in per_latent.items()}


def _mean(places: Sequence[tuple[Tensor, Tensor, int | None]]) -> Ablated:
    import torch

    log_p, log_q = torch.stack([p for p, _, _ in places]), torch.stack([q for _, q, _ in places])
    kl = (log_p.exp() * (log_p - log_q)).sum(dim=-1).clamp_min(0).mean()
    lost = [float(p[token] - q[token]) for p, q, token in places if token is not None]
    raised, lowered = changes(log_p.exp().mean(dim=0).log(), log_q.exp().mean(dim=0).log(), 6)
    return Ablated(len(places), float(kl), float(np.mean(lost)) if lost else None, lowered, raised)


def prompt(run: LearnedRun) -> tuple[int, ...]:
    """The beginning of the middle window of the held-out text."""
    windows = run.activations.windows
    assert windows is not None, "a language model reads text"
    return tuple(windows[len(windows) // 2, : min(PROMPT_TOKENS, windows.shape[1] // 2)].tolist())


def steered(run: LearnedRun, latents: Sequence[int]) -> tuple[tuple[int, ...], dict[int, tuple[Steered, ...]]]:
    """What the unchanged model writes after `prompt`, and latent -> what it writes with the latent at each of `STRENGTHS`."""
    import torch

    start = torch.tensor([prompt(run)], device=run.source.device)
    n = min(NEW_TOKENS, run.source.config.model.context_size - start.shape[1])
    jobs = [(latent, factor * float(run.activations.largest[latent])) for latent in latents for factor in STRENGTHS]
    found: dict[int, tuple[Steered, ...]] = dict.fromkeys(latents, ())
    for some in _batches(run, jobs, start.shape[1] + n):
        written = continued(run, start.expand(len(some), -1), [latent for latent, _ in some], [strength for _, strength in some], n)
        for (latent, strength), row in zip(some, written.tolist(), strict=True):
            found[latent] += (Steered(strength, tuple(row)),)
        run.progress("steering", sum(map(len, found.values())), len(jobs))
    return tuple(continued(run, start, [0], None, n)[0].tolist()), found


def _batches(run: LearnedRun, jobs: Sequence[Job], length: int) -> list[Sequence[Job]]:
    """Jobs on texts of this length, as many at a time as memory and the cache are good for."""
    size = max(1, min(TOKENS[_kind(run)] // length, MOST_LOGITS // run.model.d_vocab))
    return [jobs[first : first + size] for first in range(0, len(jobs), size)]


def _kind(run: LearnedRun) -> str:
    return "cpu" if run.source.device == "cpu" else "cuda"
