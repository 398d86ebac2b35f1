"""Steering and ablation: what the language model predicts, and writes, when one latent is turned up or off.

With a = the latent's activation at a token and d = its row of W_dec (times the token's standard deviation where tokens are layer-normed
before the SAE), the activation x at the hook point becomes

    steer   x + strength * d         at every token but special ones
    ablate  x - a * d                likewise

so that what the SAE does not reconstruct, and all other latents, stay as they are. Special tokens (BOS) keep their activations, as they
do when reconstructions are spliced in for the metrics.
Shape letters: B texts, T positions, V vocabulary, d_in width of the hook point.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sae_core.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from analysis.features.run import LearnedRun

N_SHOWN = 10
"""Tokens whose probability changes most, each way."""
NEW_TOKENS = 24


@dataclass(frozen=True, slots=True)
class TokenChange:
    """A possible next token, and how likely it is with and without the change."""

    token: int
    before: float
    after: float


@dataclass(frozen=True, slots=True)
class Effect:
    """What a change of one latent does to the language model on a text."""

    latent: int
    tokens: tuple[int, ...]
    """The text, as the model read it."""
    kl: tuple[float, ...]
    """KL(unchanged || changed) of the next token at each position, nats."""
    raised: tuple[TokenChange, ...]
    """Next tokens after the text whose probability rises most, by difference."""
    lowered: tuple[TokenChange, ...]
    continuation: tuple[int, ...]
    """What the unchanged model writes next, always taking the likeliest token; empty where none was asked for."""
    changed_continuation: tuple[int, ...]
    """The same with the change, also at the tokens that are written."""


def steer(run: LearnedRun, latent: int, text: str | Sequence[int], strength: float, *, n_new_tokens: int = NEW_TOKENS) -> Effect:
    """Add `strength` to a latent's activation at every token of a text, and at those that the model writes after it.

    Args:
        text: words, or token ids as the model reads them, BOS included.
        strength: in units of the latent's activation; `run.activations.largest[latent]` is its largest on held-out text.

    Raises:
        ConfigError: there is no such latent, no language model, or no text.
    """
    return _effect(run, latent, text, strength, n_new_tokens)


def ablate(run: LearnedRun, latent: int, text: str | Sequence[int], *, n_new_tokens: int = NEW_TOKENS) -> Effect:
    """Take a latent's part out of the activations at every token of a text, and at those that the model writes after it.

    Raises:
        ConfigError: there is no such latent, no language model, or no text.
    """
    return _effect(run, latent, text, None, n_new_tokens)


def changed_logits(run: LearnedRun, tokens: Tensor, latents: Sequence[int], strengths: Sequence[float | None]) -> Tensor:
    """Logits [B, T, V] of texts [B, T], each with its own latent changed.

    Args:
        strengths: what is added to each latent's activation; None takes the activation away.
    """
    h = run.model.run_changed(tokens, _Change(run, tokens, latents, strengths))
    return run.model.logits(h.flatten(0, 1)).unflatten(0, tokens.shape)


def next_logits(
    run: LearnedRun, tokens: Tensor, positions: Tensor, latents: Sequence[int], strengths: Sequence[float | Tensor | None] | None
) -> Tensor:
    """Logits [B, V] of the token after one position [B] of each text [B, T]. The rest of the vocabulary's work is not done.

    Args:
        strengths: as in `changed_logits`, or what is added at each position of a text, [T]; None for the unchanged model.
    """
    import torch

    model = run.model
    every = torch.arange(len(tokens), device=tokens.device)

    h = model.run(tokens)[1] if strengths is None else model.run_changed(tokens, _Change(run, tokens, latents, strengths))
    return model.logits(h[every, positions])


def continued(run: LearnedRun, tokens: Tensor, latents: Sequence[int], strengths: Sequence[float | None] | None, n: int) -> Tensor:
    """The likeliest token after texts of one length, then the one after that, and so on: [B, n].

    Args:
        strengths: as in `changed_logits`; None for the unchanged model.
    """
    import torch

    read = tokens
    for _ in range(n):
        last = torch.full(read.shape[:1], read.shape[1] - 1, device=read.device)
        likeliest = next_logits(run, read, last, latents, strengths).argmax(dim=-1)
        read = torch.cat([read, likeliest[:, None]], dim=1)
    return read[:, tokens.shape[1] :]


def as_tokens(run: LearnedRun, text: str | Sequence[int], n_new_tokens: int = 0) -> list[int]:
    """A text as the model reads it: BOS first where it expects one.

    Raises:
        ConfigError: there is no tokenizer for words, nothing to read, or more than fits.
    """
    model = run.source.config.model
    if isinstance(text, str):
        if not run.texts.known:
            raise ConfigError(f"words need a tokenizer, but got none in {model.name!r}. Give token ids.")
        bos = run.texts.bos if model.prepend_bos else None
        tokens = [*([bos] if bos is not None else []), *run.texts.encode(text)]
    else:
        tokens = [int(token) for token in text]
    most = model.context_size - n_new_tokens
    if not 0 < len(tokens) <= most:
        raise ConfigError(
            f"a text must have 1 to {most} tokens ({model.context_size} positions of which {n_new_tokens} are for new tokens), but got "
            f"{len(tokens)}. Shorten it, or ask for fewer new tokens."
        )
    if wrong := [token for token in tokens if not 0 <= token < run.model.d_vocab]:
        raise ConfigError(
            f"token ids must lie between 0 and {run.model.d_vocab - 1}, but got {wrong[0]}. Give those of the model's tokenizer."
        )
    return tokens


def _effect(run: LearnedRun, latent: int, text: str | Sequence[int], strength: float | None, n_new_tokens: int) -> Effect:
    import torch

    run.check_latents([latent])
    run.model  # noqa: B018 - one message where there is none, before anything else is read
    tokens = as_tokens(run, text, n_new_tokens)
    batch = torch.tensor([tokens], device=run.source.device)
    log_p = run.model.logits(run.model.run(batch)[1][0]).log_softmax(dim=-1)
    log_q = changed_logits(run, batch, [latent], [strength])[0].log_softmax(dim=-1)
    kl = (log_p.exp() * (log_p - log_q)).sum(dim=-1).clamp_min(0)
    raised, lowered = changes(log_p[-1], log_q[-1])
    written = [continued(run, batch, [latent], strengths, n_new_tokens)[0].tolist() for strengths in (None, [strength])]
    return Effect(latent, tuple(tokens), tuple(kl.tolist()), raised, lowered, tuple(written[0]), tuple(written[1]))


def changes(log_p: Tensor, log_q: Tensor, n: int = N_SHOWN) -> tuple[tuple[TokenChange, ...], tuple[TokenChange, ...]]:
    """The tokens whose probability rises, and falls, most from one distribution [V] to another."""
    p, q = log_p.exp(), log_q.exp()

    def largest(difference: Tensor) -> tuple[TokenChange, ...]:
        top = difference.topk(min(n, len(difference)))
        chosen = [token for token, value in zip(top.indices.tolist(), top.values.tolist(), strict=True) if value > 0]
        return tuple(TokenChange(token, float(p[token]), float(q[token])) for token in chosen)

    return largest(q - p), largest(p - q)


class _Change:
    """What is at the hook point, of a transcoder at `hook_out` -> the same with one latent of each text changed.

    What a transcoder's latents are is read in a run of its own, in which nothing is changed.
    """

    def __init__(self, run: LearnedRun, tokens: Tensor, latents: Sequence[int], strengths: Sequence[float | Tensor | None]) -> None:
        import torch

        self._run = run
        self._latents = torch.tensor(list(latents), device=tokens.device)
        self._strengths = strengths
        special = torch.tensor(run.special_ids, device=tokens.device)
        self._kept = ~torch.isin(tokens, special)
        is_read = run.sae.d_out is not None and any(strength is None for strength in strengths)
        self._read = run.source.model.read(tokens)[0].float() if is_read else None  # type: ignore[attr-defined]

    def __call__(self, x: Tensor) -> Any:
        import torch

        sae, read = self._run.sae, x if self._read is None else self._read
        rows = sae.W_dec.detach()[self._latents].to(x)
        added = torch.empty(x.shape[:2], device=x.device)
        for index, strength in enumerate(self._strengths):
            added[index] = -self._activation(read[index], int(self._latents[index])) if strength is None else strength
        if sae.layer_norm:
            added = added * x.std(dim=-1)
        return x + (added * self._kept).unsqueeze(-1) * rows.unsqueeze(1)

    def _activation(self, x: Tensor, latent: int) -> Tensor:
        """The latent's activations at the tokens of one text, [T]."""
        active, values = self._run.sae.active(x)
        here = active.indices == latent
        found = values.new_zeros(len(x))
        found[active.tokens[here]] = values[here]
        return found
