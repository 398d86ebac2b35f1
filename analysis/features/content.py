"""What the page of a run shows, as plain data: one JSON object, in which tokens are numbers with their texts beside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from analysis.features.effects import Ablated, Steered, ablated, prompt, steered
from analysis.features.examples import Example, activation_histogram, quantile_examples, top_activating_examples
from analysis.features.logits import LogitEffects, logit_effects
from analysis.features.matching import Matches, match_latents
from sae_core.errors import ConfigError

if TYPE_CHECKING:
    from analysis.features.examples import Histogram
    from analysis.features.run import LearnedRun

N_TOP, N_OTHER, N_ABLATED = 16, 6, 8
"""Strongest examples shown; of the matched latent of another SAE; that ablation is measured on."""
N_NEIGHBORS = 3
DENSITY_EDGES = np.arange(-7, 0.01, 0.25)
"""Of the histogram of densities, log10."""


def most_written(run: LearnedRun, n: int) -> list[int]:
    """The `n` latents that write most: by the squared norm of what they add to the reconstruction, summed over the held-out text."""
    shares = written_shares(run)
    order = np.argsort(-shares, kind="stable")[:n]
    return [int(latent) for latent in order if shares[latent] > 0]


def written_shares(run: LearnedRun) -> NDArray[np.float64]:
    """Each latent's share of the sum over latents and held-out tokens of (activation * norm of its decoder row) squared, [d_sae]."""
    written = run.activations.squares * _norms(run) ** 2
    return written / max(float(written.sum()), np.finfo(float).tiny)


def page_content(run: LearnedRun, latents: Sequence[int], other: LearnedRun | None = None) -> dict[str, Any]:
    """Everything the page shows of some latents.

    Args:
        other: a run, or this one with another SAE, whose counterparts of the latents are shown beside them.

    Raises:
        ConfigError: there is no such latent, the model or the text cannot be read, or the SAEs cannot be matched.
    """
    run.check_latents(latents)
    activations, shares, norms = run.activations, written_shares(run), _norms(run)
    examples = {latent: top_activating_examples(run, latent, N_TOP) for latent in latents}
    effects, reason = _logit_effects(run, latents)
    lost = ablated(run, {latent: some[:N_ABLATED] for latent, some in examples.items()}) if run.can_intervene else {}
    unchanged, written = steered(run, [latent for latent in latents if examples[latent]]) if run.can_intervene else ((), {})
    neighbors = _neighbors(run, latents)
    matches = match_latents(run, other, latents) if other else None
    shown = [
        {
            "latent": latent,
            "density": _short(activations.density[latent]),
            "count": int(activations.counts[latent]),
            "largest": _short(activations.largest[latent]),
            "norm": _short(norms[latent]),
            "share": _short(shares[latent]),
            "histogram": _histogram(activation_histogram(run, latent)),
            "examples": [_example(example) for example in examples[latent]],
            "quantiles": [
                {
                    "low": _short(part.low),
                    "high": _short(part.high),
                    "share": part.share,
                    "examples": [_example(example) for example in part.examples],
                }
                for part in quantile_examples(run, latent)
            ],
            "logits": _logits(effects.get(latent)),
            "ablation": _ablation(lost.get(latent)),
            "steering": _steering(written.get(latent, ())),
            "neighbors": neighbors[latent],
            "match": _match(run, other, matches, latent) if other and matches else None,
        }
        for latent in latents
    ]
    content = {
        "run": {"run_id": run.run_id, "sweep": run.sweep, **run.facts},
        "d_sae": activations.d_sae,
        "n_tokens": activations.n_tokens,
        "n_dead": int((activations.counts == 0).sum()),
        "densities": _densities(activations.density),
        "no_logits": reason,
        "prompt": list(prompt(run)) if run.can_intervene else [],
        "unchanged": list(unchanged),
        "other": _other(other, matches),
        "latents": shown,
    }
    return {**content, "tokens": {str(token): run.texts[token] for token in sorted(_tokens_in(content))}}


def _logit_effects(run: LearnedRun, latents: Sequence[int]) -> tuple[dict[int, LogitEffects], str]:
    """The effects, or why there are none."""
    try:
        return {effects.latent: effects for effects in logit_effects(run, latents)}, ""
    except ConfigError as error:
        return {}, str(error)


def _norms(run: LearnedRun) -> NDArray[np.float64]:
    norms: NDArray[np.float64] = run.sae.W_dec.detach().norm(dim=1).cpu().double().numpy()
    return norms


def _neighbors(run: LearnedRun, latents: Sequence[int]) -> dict[int, list[list[float]]]:
    """Latent -> the latents of the same SAE whose decoder rows are most like its own, with their cosines; only those ever active."""
    from torch.nn.functional import normalize

    W_dec = run.sae.W_dec.detach()
    found: dict[int, list[list[float]]] = {}
    dead = np.flatnonzero(run.activations.counts == 0)
    for latent in latents:
        cosines = (W_dec @ normalize(W_dec[latent], dim=0)) / W_dec.norm(dim=1).clamp_min(1e-12)
        cosines[latent] = -2
        cosines[dead] = -2
        top = cosines.topk(min(N_NEIGHBORS, len(cosines) - 1))
        pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
        found[latent] = [[index, _short(cosine)] for index, cosine in pairs if cosine > -1.5]
    return found


def _match(run: LearnedRun, other: LearnedRun, matches: Matches, latent: int) -> dict[str, Any] | None:
    """The counterpart in the other SAE: the partner of the assignment where it has one, else the nearest."""
    one_to_one = matches.assigned is not None and bool(matches.assigned[latent] >= 0)
    partners, cosines = (matches.assigned, matches.assigned_cosine) if one_to_one else (matches.nearest, matches.nearest_cosine)
    assert partners is not None and cosines is not None, f"{one_to_one=}"
    if (partner := int(partners[latent])) < 0:
        return None
    return {
        "latent": partner,
        "cosine": _short(cosines[latent]),
        "one_to_one": one_to_one,
        "nearest": int(matches.nearest[latent]),
        "nearest_cosine": _short(matches.nearest_cosine[latent]),
        "density": _short(other.activations.density[partner]),
        "largest": _short(other.activations.largest[partner]),
        "overlap": _overlap(run, other, latent, partner),
        "examples": [_example(example) for example in top_activating_examples(other, partner, N_OTHER)],
    }


def _overlap(run: LearnedRun, other: LearnedRun, latent: int, partner: int) -> float | None:
    """Tokens that both are active on, as a fraction of those that either is; None where the texts are not the same."""
    if not np.array_equal(run.activations.positions, other.activations.positions) or not _same_text(run, other):
        return None
    mine, theirs = run.activations.of(latent)[0], other.activations.of(partner)[0]
    both = len(np.intersect1d(mine, theirs, assume_unique=True))
    return _short(both / (len(mine) + len(theirs) - both))


def _same_text(run: LearnedRun, other: LearnedRun) -> bool:
    mine, theirs = run.activations.windows, other.activations.windows
    return run.cache == other.cache if mine is None or theirs is None else np.array_equal(mine, theirs)


def _other(other: LearnedRun | None, matches: Matches | None) -> dict[str, Any] | None:
    if other is None or matches is None:
        return None
    return {
        "run_id": other.run_id,
        "mean_cosine": None if matches.assigned is None else _short(matches.mean_cosine),
        **{name: value for name, value in other.facts.items() if name in ("architecture", "seed", "l0")},
    }


def _densities(density: NDArray[np.float64]) -> dict[str, list[float]]:
    """Histogram of log10 density over the latents that are active at least once."""
    counts, edges = np.histogram(np.log10(density[density > 0]).clip(DENSITY_EDGES[0], 0), DENSITY_EDGES)
    return {"edges": edges.tolist(), "counts": counts.tolist()}


def _histogram(histogram: Histogram) -> dict[str, Any]:
    return {"low": _short(histogram.edges[0]), "high": _short(histogram.edges[-1]), "counts": histogram.counts.tolist()}


def _example(example: Example) -> dict[str, Any]:
    active = [[index, _short(value)] for index, value in enumerate(example.values) if value]
    return {
        "value": _short(example.value),
        "window": example.window,
        "position": example.position,
        "at": example.position - example.first,
        "tokens": list(example.tokens),
        "active": active,
    }


def _logits(effects: LogitEffects | None) -> dict[str, Any] | None:
    if effects is None:
        return None
    raised, lowered = ([[token, _short(value)] for token, value in pairs] for pairs in (effects.most_raised, effects.most_lowered))
    return {"raised": raised, "lowered": lowered, "histogram": _histogram(effects.histogram)}


def _ablation(effect: Ablated | None) -> dict[str, Any] | None:
    if effect is None:
        return None
    raised, lowered = (
        [[change.token, _short(change.before), _short(change.after)] for change in some] for some in (effect.raised, effect.lowered)
    )
    delta = None if effect.delta_ce is None else _short(effect.delta_ce)
    return {"n_places": effect.n_places, "kl": _short(effect.kl), "delta_ce": delta, "raised": raised, "lowered": lowered}


def _steering(texts: Sequence[Steered]) -> list[dict[str, Any]]:
    return [{"strength": _short(text.strength), "tokens": list(text.written)} for text in texts]


def _tokens_in(content: Mapping[str, Any]) -> set[int]:
    """Every token that the page shows."""
    found = {*content["prompt"], *content["unchanged"]}
    for latent in content["latents"]:
        logits, ablation, match = latent["logits"] or {}, latent["ablation"] or {}, latent["match"] or {}
        found |= {row[0] for part in (logits, ablation) for way in ("raised", "lowered") for row in part.get(way, [])}
        examples = [*latent["examples"], *match.get("examples", []), *(one for part in latent["quantiles"] for one in part["examples"])]
        found |= {token for part in (*examples, *latent["steering"]) for token in part["tokens"]}
    return found


def _short(value: float) -> float:
    """A number with as many digits as a reader can use."""
    return float(f"{value:.4g}")
