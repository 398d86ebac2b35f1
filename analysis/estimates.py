"""What an interval and a comparison are, as plain data: `uncertainty.py` and `comparison.py` make them, report and terminal show them.

Nothing here computes. A number that is not known is None, never NaN.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

Verdict = Literal["better", "equivalent", "better on this text", "equivalent on this text", "not separable"]
"""`better`: the mean gap differs from 0 after Holm's correction. `equivalent`: it is smaller than the margin (two one-sided tests). With
one seed only "on this text" can be said: about these SAEs, not about training them again."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its 95 % interval."""

    value: float
    """In units of the metric; of a `relative` one, a ratio minus 1: -0.09 is 9 % lower."""
    low: float | None = None
    """Lower end of the interval; None where nothing is known about the spread: one seed, and no per-document sums."""
    high: float | None = None
    se: float | None = None
    """Standard error: of the natural logarithm of the value (of the ratio, where `relative`), unless `raw`."""
    df: float | None = None
    """Degrees of freedom of the t distribution that the interval was made with."""
    n_seeds: int = 1
    """How many repeats: pairs of a seed and an order of the tokens."""
    n_documents: int = 0
    """Held-out documents that were resampled; 0 where the results have no per-document sums."""
    extrapolated: bool = False
    """Whether it was read beyond an end of a front."""
    relative: bool = False
    """Whether the value is a ratio minus 1, shown in percent."""
    raw: bool = False
    """Whether the interval was made on the metric itself: a value of 0 or less has no logarithm."""
    share_of_seeds: float | None = None
    """Share of the variance that comes from seeds, 0 to 1; the rest comes from documents."""

    @property
    def covers(self) -> str:
        """What the interval is about, in words."""
        if self.low is None:
            return "no interval: one seed, and no per-document sums"
        if self.n_seeds < 2:
            return "held-out documents only: these SAEs, not training them again"
        return "seeds and held-out documents" if self.n_documents else "seeds only, not held-out documents"


@dataclass(frozen=True, slots=True)
class Band:
    """A front with its interval at each of many L0s, for plots: four lists of one length, by L0."""

    l0: tuple[float, ...]
    value: tuple[float, ...]
    low: tuple[float | None, ...]
    high: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class Pair:
    """Two arms compared, e.g. two architectures. Differences are of `a` against `b`: below 0, `a` is lower."""

    a: str
    b: str
    comparison: str
    """Which rows: a `comparison_hash`, or what takes its place."""
    window: tuple[float, float] | None
    """L0s that both fronts span; None where they do not overlap, and then nothing is tested."""
    gap: Estimate | None
    """Mean difference over the window, evenly in ln L0: the one number that is tested. Its interval is not adjusted."""
    adjusted: tuple[float, float] | None
    """Interval of `gap` at the level at which Holm's procedure tested this pair: excludes 0 exactly where the pair is told apart."""
    p: float | None
    """Of the gap being 0, two-sided, not adjusted."""
    p_adjusted: float | None
    """The same, by Holm over all pairs of the comparison."""
    verdict: Verdict
    better: str | None
    """`a` or `b`, where one is better."""
    probability: float | None
    """That `a` is better: one-sided, from the same t distribution (a flat prior)."""
    smallest: float | None
    """Smallest difference that these runs would have told apart with a probability of 80 %, in the units of `gap` and above 0."""
    seeds_needed: int | None
    """Seeds per setting that would tell a difference of this size apart, with a probability of 80 %; None where none are needed, or no
    number would do: the documents are too few, or the difference too small."""
    documents_needed: int | None
    """As `seeds_needed`, for held-out documents, where those are what is lacking."""
    at: Mapping[float, Estimate | None]
    """Difference at each matched L0, for description: neither tested nor adjusted. None where a front does not reach."""
    l0_ratio: Estimate | None
    """How many more latents (in percent, below 0 fewer) `a` needs for the same value, on average over the values that both reach."""
    reason: str = ""
    """Why nothing was tested, as a sentence; empty where it was."""
    paired: bool = False
    """Whether both were measured on the same documents, or compared seed by seed, so that what they share cancels."""


@dataclass(frozen=True, slots=True)
class Arm:
    """One of the things compared, e.g. an architecture."""

    name: str
    comparison: str
    n_seeds: int
    n_settings: int
    at: Mapping[float, Estimate | None]
    """Value at each matched L0; None where the front does not reach."""
    spread: float | None
    """Standard deviation over seeds of ln y at matched L0 (of y, where `raw`), pooled over levels; None with one seed."""
    pooled: bool
    """Whether all levels share one variance; else each level uses its own and its neighbours'."""
    p_equal_spread: float | None
    """Of the test that decided it (Bartlett's); None where there is nothing to test."""
    chosen: str = ""
    """How settings were chosen where there were several per level, in words; empty where there was no choice."""
    tries: int = 1
    """Settings per level that it chose among; where no two share a level, as in a search, all of them."""
    advantage: float | None = None
    """What more tries brought it, where another arm had fewer: its mean value, relative to that with as few tries, minus 1."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """All pairs of arms, for one metric."""

    metric: str
    label: str
    """Name of the metric in a sentence, e.g. "FVU"."""
    direction: Literal["min", "max"]
    """Which way is better."""
    l0s: tuple[float, ...]
    """Matched L0s."""
    alpha: float
    """Level of the tests, over all pairs together."""
    margin: float
    """What counts as equivalent, as a fraction of `margin_of`."""
    margin_of: str
    """In words: "the value", or of a metric near its best value what is missing to it; empty where no pair can be equivalent."""
    arms: tuple[Arm, ...]
    pairs: tuple[Pair, ...]
    n_tests: int
    """Pairs that were tested, which is what Holm's procedure corrects for: of all groups of rows, also where this is one of them."""
    titles: Mapping[str, str] = field(default_factory=dict)
    """Group of rows, as `Pair.comparison` names it -> what tells it apart, e.g. "d_sae 512"; empty for a single one."""
    notes: tuple[str, ...] = ()
    """What a reader must know: rows that were split or left out and why, what the intervals do not cover. Full sentences."""

    def of(self, comparison: str) -> "Comparison":
        """The part about the rows of one `comparison_hash`; corrected for all pairs all the same."""

        def is_of(name: str) -> bool:
            return name.partition("/")[0] == comparison  # "hash/2": rows of one hash that may not be pooled all the same

        return replace(
            self,
            arms=tuple(arm for arm in self.arms if is_of(arm.comparison)),
            pairs=tuple(pair for pair in self.pairs if is_of(pair.comparison)),
        )
