"""Where a latent is active, with the text around: the strongest places, and a few of every strength.

The strongest places alone flatter a latent: what it does at the strength it usually has is seen in its quantiles.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from analysis.features.activations import LatentActivations
    from analysis.features.run import LearnedRun

BEFORE, AFTER = 32, 16
"""Tokens shown before and after the one that an example is about."""
N_QUANTILES = 5
BINS = 40
"""Of a histogram of activations."""


@dataclass(frozen=True, slots=True)
class Example:
    """A place in the held-out text where a latent is active."""

    value: float
    """Its activation there."""
    window: int
    """Number of the held-out window; of the token, where there is no text."""
    position: int
    """Where in the window; 0 where there is no text."""
    first: int
    """Position of the first token shown."""
    tokens: tuple[int, ...]
    """The tokens shown; empty where there is no text."""
    values: tuple[float, ...]
    """The latent's activation at each of them."""


@dataclass(frozen=True, slots=True)
class Quantile:
    """Examples from one part of a latent's activations, sorted by size."""

    low: float
    high: float
    """Activations in it lie from `low` to `high`."""
    share: float
    """Fraction of the tokens it is active on."""
    examples: tuple[Example, ...]


@dataclass(frozen=True, slots=True)
class Histogram:
    """How often values lie between two edges."""

    edges: NDArray[np.float64]
    counts: NDArray[np.int64]


def top_activating_examples(run: LearnedRun, latent: int, n: int = 20) -> list[Example]:
    """The places where a latent is most active, strongest first.

    A stretch of text counts once: places within the text shown of a stronger one are left out, and so are repeats of the same text.

    Raises:
        ConfigError: there is no such latent, or the text cannot be read.
    """
    run.check_latents([latent])
    tokens, values = run.activations.of(latent)
    return _distinct(run.activations, tokens, values, np.argsort(-values, kind="stable"), n)


def quantile_examples(run: LearnedRun, latent: int, n: int = 4, n_quantiles: int = N_QUANTILES) -> list[Quantile]:
    """Examples from each of `n_quantiles` equally large parts of a latent's activations, strongest part first.

    They are drawn at random, always the same ones for a latent.

    Raises:
        ConfigError: there is no such latent, or the text cannot be read.
    """
    run.check_latents([latent])
    tokens, values = run.activations.of(latent)
    order = np.argsort(values, kind="stable")
    parts = [part for part in np.array_split(order, n_quantiles)[::-1] if len(part)]
    random = np.random.default_rng(latent)
    return [
        Quantile(
            low=float(values[part[0]]),
            high=float(values[part[-1]]),
            share=len(part) / len(values),
            examples=tuple(_distinct(run.activations, tokens, values, random.permutation(part), n)),
        )
        for part in parts
    ]


def examples_between(run: LearnedRun, latent: int, low: float, high: float, n: int) -> list[Example]:
    """Up to `n` places, drawn at random, where an activation lies from `low` to `high`; always the same ones."""
    tokens, values = run.activations.of(latent)
    inside = np.flatnonzero((values >= low) & (values <= high))
    return _distinct(run.activations, tokens, values, np.random.default_rng(latent).permutation(inside), n)


def activations_in(run: LearnedRun, latent: int, window: int) -> list[float]:
    """A latent's activation at each token of a held-out window; 0 at special tokens."""
    windows = run.activations.windows
    assert windows is not None, "a language model reads text"
    tokens, values = run.activations.of(latent)
    places = run.activations.positions[tokens] - window * windows.shape[1]
    inside = (places >= 0) & (places < windows.shape[1])
    found = np.zeros(windows.shape[1], np.float32)
    found[places[inside]] = values[inside]
    return found.tolist()


def latent_density(run: LearnedRun) -> NDArray[np.float64]:
    """Fraction of the held-out tokens that each latent is active on, [d_sae].

    Raises:
        ConfigError: the model or the text cannot be read.
    """
    return run.activations.density


def activation_histogram(run: LearnedRun, latent: int, n_bins: int = BINS, *, from_smallest: bool = False) -> Histogram:
    """How large a latent's activations are where it is active, in equally wide bins up to the largest.

    Args:
        from_smallest: begin with the smallest activation instead of 0.
    """
    run.check_latents([latent])
    _, values = run.activations.of(latent)
    low = float(values.min()) if from_smallest and len(values) else min(0.0, float(values.min(initial=0)))
    high = float(values.max(initial=low))
    counts, edges = np.histogram(values, n_bins, (low, high if high > low else low + 1))
    return Histogram(edges, counts)


def _distinct(
    activations: LatentActivations, tokens: NDArray[np.int64], values: NDArray[np.float32], order: NDArray[np.intp], n: int
) -> list[Example]:
    """The first `n` examples in an order, without repeats."""
    found: list[Example] = []
    shown: dict[int, list[range]] = {}
    texts: set[tuple[int, ...]] = set()
    for example in _in_order(activations, tokens, values, order):
        stretches = shown.setdefault(example.window, [])
        if example.tokens and (example.tokens in texts or any(example.position in stretch for stretch in stretches)):
            continue
        stretches.append(range(example.first, example.first + len(example.tokens)))
        texts.add(example.tokens)
        found.append(example)
        if len(found) == n:
            break
    return found


def _in_order(
    activations: LatentActivations, tokens: NDArray[np.int64], values: NDArray[np.float32], order: Iterable[int]
) -> Iterator[Example]:
    windows, active = activations.windows, activations.positions[tokens]
    for index in order:
        place, value = int(active[index]), float(values[index])
        if windows is None:
            yield Example(value, place, 0, 0, (), ())
            continue
        window, position = divmod(place, windows.shape[1])
        first, end = max(0, position - BEFORE), min(windows.shape[1], position + AFTER + 1)
        around = window * windows.shape[1] + np.arange(first, end)
        shown = tuple(windows[window, first:end].tolist())
        yield Example(value, window, position, first, shown, _values_at(active, values, around))


def _values_at(active: NDArray[np.int64], values: NDArray[np.float32], places: NDArray[np.int64]) -> tuple[float, ...]:
    """A latent's activations at some places of the text; 0 where it is not active, or the token is special.

    Args:
        active: the places it is active at, ascending; `values` are its activations there.
    """
    found = np.minimum(np.searchsorted(active, places), len(active) - 1)
    return tuple(np.where(active[found] == places, values[found], 0.0).tolist())
