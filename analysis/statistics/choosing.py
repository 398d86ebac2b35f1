"""Which settings a front is drawn through, and how they are chosen without flattering it.

Where an architecture has several settings per level (learning rates, variants, trials of a search), its front shows the best of them. The
best of several looks better than it is, on what it was chosen on. So the choice is made on the *other* seeds and on one half of the
held-out documents, and the value is read on the left-out seed and the other half; both are rotated and averaged, so that every run and
every document is read (cross-fitting; Chernozhukov et al. 2018, arXiv:1608.00060, section 1). Where every level has one setting, nothing is
chosen, and all documents are read at once.

More tries make a better best: `tries_of` counts them, and curves can be made with as many tries per level as the architecture with the
fewest has, as a mean over random subsets.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.statistics.samples import ALL, HALVES, Samples

IntArray = NDArray[np.intp]

CLOSE = float(np.log(1.05))
"""ln L0s of settings that are chosen among and differ by less are one point of a front, as for `checks.CLOSE`."""
N_SUBSETS = 16
"""Random subsets of settings that a curve with fewer tries is a mean over."""


@dataclass(frozen=True, slots=True)
class Reading:
    """A curve: the runs that it passes through, and the part of the text on which they are read."""

    runs: IntArray
    """Indices into `Samples`."""
    part: int


@dataclass(frozen=True, slots=True)
class Grid:
    """The runs of one arm."""

    runs: IntArray
    """[settings, repeats] indices into `Samples`; -1 where a setting has no finished run of a repeat."""
    levels: IntArray
    """[settings] which settings were asked for the same sparsity."""
    differ_in: tuple[str, ...] = ()
    """Columns beside sparsity in which settings differ."""

    @property
    def is_chosen(self) -> bool:
        """Whether a front is a choice of settings."""
        return bool(self.differ_in)

    @property
    def n_repeats(self) -> int:
        """Columns of `runs`."""
        return self.runs.shape[1]

    @property
    def tries(self) -> int:
        """Settings per level, of the level with the most; where no two share a level, as in a search, all of them."""
        largest = int(np.bincount(self.levels).max())
        return largest if largest > 1 or not self.is_chosen else len(self.levels)


def grid_of(rows: pd.DataFrame, index: IntArray, settings: Sequence[Any], repeats: Sequence[Any]) -> Grid:
    """The grid of an arm's runs.

    Args:
        rows: of the table, one per run.
        index: their indices into `Samples`.
        settings, repeats: what tells settings and repeats apart, per run.
    """
    setting, n_settings = pd.factorize(pd.Series(settings))[0], len(set(settings))
    repeat = pd.factorize(pd.Series(repeats), sort=True)[0]
    runs = np.full((n_settings, int(repeat.max()) + 1), -1, dtype=np.intp)
    runs[setting, repeat] = index
    first = rows.iloc[[int(np.flatnonzero(setting == number)[0]) for number in range(n_settings)]]
    further = ("architecture", "lr", "variant")
    differ_in = tuple(name for name in further if name in first and first[name].nunique(dropna=False) > 1)
    return Grid(runs, _levels(first), differ_in)


def _levels(first: pd.DataFrame) -> IntArray:
    """Which settings were asked for the same sparsity; each is a level of its own where nothing says so."""
    names = [name for name in ("target_l0", "sparsity_value") if name in first]
    if not names:
        return np.arange(len(first))
    level = first["target_l0"] if "target_l0" in first else first[names[0]]
    level = level.fillna(first["sparsity_value"]) if "sparsity_value" in first else level
    codes = pd.factorize(level.astype("float64"))[0]
    unknown = codes < 0
    codes[unknown] = codes.max() + 1 + np.arange(unknown.sum())
    return codes.astype(np.intp)


def front_of(samples: Samples, runs: IntArray, part: int, sign: float, *, is_chosen: bool = False) -> IntArray:
    """Settings on the front of the means over repeats, by L0; equal points count once.

    Args:
        runs: [settings, repeats] indices into `samples`, -1 for none.
        sign: 1 where a smaller `y` is better, -1 where a larger one is.
        is_chosen: whether settings differ in more than sparsity: then of those whose L0s are alike only the best counts. A bad learning
            rate with a hair less L0 is dominated by none, and no part of a front either.
    """
    known = runs >= 0
    counts = known.sum(axis=1)
    x, y = (np.where(known, values[part][runs], 0.0).sum(axis=1) / np.maximum(counts, 1) for values in (samples.x, samples.y))
    kept = np.flatnonzero(counts > 0)
    order = kept[np.lexsort((sign * y[kept], x[kept]))]
    best = np.minimum.accumulate(np.concatenate([[np.inf], sign * y[order]]))[:-1]
    front = order[sign * y[order] < best]
    apart: list[int] = []
    for setting in front[::-1].tolist():
        if not (is_chosen and apart) or x[apart[-1]] - x[setting] > CLOSE:
            apart.append(setting)
    return np.array(apart[::-1], dtype=np.intp)


def readings(samples: Samples, grid: Grid, sign: float, *, tries: int | None = None) -> list[list[Reading]]:
    """Per repeat, the curves whose mean is read.

    Args:
        tries: settings per level that each curve may choose from, at random; None: all.
    """
    subsets = [np.arange(len(grid.runs))] if tries is None or tries >= grid.tries else list(_subsets(grid, tries))
    found: list[list[Reading]] = [[] for _ in range(grid.n_repeats)]
    for subset in subsets:
        for repeat, own in enumerate(_readings(samples, grid.runs[subset], grid.is_chosen, sign)):
            found[repeat] += own
    if any(found):
        return found
    return _readings(samples, grid.runs, False, sign)  # no two repeats have a setting in common: nothing to choose on


def _readings(samples: Samples, runs: IntArray, is_chosen: bool, sign: float) -> list[list[Reading]]:
    """As `readings`, all settings of `runs` allowed."""
    n_repeats = runs.shape[1]
    parts = list(zip(HALVES, reversed(HALVES), strict=True)) if is_chosen and samples.n_documents else [(ALL, ALL)]
    found: list[list[Reading]] = []
    for repeat in range(n_repeats):
        others = np.arange(n_repeats) != repeat if is_chosen and n_repeats > 1 else np.ones(n_repeats, dtype=bool)
        own = []
        for chosen_on, read_on in parts:
            through = runs[front_of(samples, runs[:, others], chosen_on, sign, is_chosen=is_chosen), repeat]
            through = through[through >= 0]
            through = through[np.unique(samples.x[read_on][through], return_index=True)[1]]
            if len(through):
                own.append(Reading(through, read_on))
        found.append(own)
    return found


def _subsets(grid: Grid, tries: int) -> "list[IntArray]":
    """Random choices of at most `tries` settings of each level, or, where no two share a level, of all settings; always the same."""
    generator = np.random.default_rng(20_240_607)
    shares_levels = np.bincount(grid.levels).max() > 1
    levels = grid.levels if shares_levels else np.zeros(len(grid.levels), dtype=np.intp)
    subsets = []
    for _ in range(N_SUBSETS):
        order = generator.permutation(len(levels))
        rank = pd.Series(levels[order]).groupby(levels[order]).cumcount().to_numpy()
        subsets.append(np.sort(order[rank < tries]))
    return subsets


def in_words(grid: Grid, samples: Samples, tries: int) -> str:
    """How settings were chosen, for a caption; empty where there was no choice."""
    if not grid.is_chosen:
        return ""
    settings = f"{grid.tries} {'learning rates' if grid.differ_in == ('lr',) else 'settings'}"
    what = f"the best of {settings}" if tries >= grid.tries else f"the best of {tries} at random of {settings}"
    if tries == 1:
        return f"one at random of {settings}"
    if grid.n_repeats > 1:
        on = "one half of the documents, of the other seeds" if samples.n_documents else "the other seeds"
        return f"{what}, chosen on {on}, and read on the rest"
    if samples.n_documents:
        return f"{what}, chosen on one half of the documents and read on the other; one seed gives no interval over seeds"
    return f"{what}, chosen and read on the same text: with one seed and no sums per document there is no other"
