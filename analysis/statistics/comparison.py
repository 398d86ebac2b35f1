"""Which of two architectures is better, by how much, and how sure that is: all pairs of a table, for one metric.

One number is tested per pair, the mean difference over the L0s that both fronts span, evenly in ln L0; Holm corrects for the number of
pairs. Differences at single L0s are given with intervals, for description. What the intervals rest on: docs/statistics.md.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from analysis import words
from analysis.documents import DocumentSums
from analysis.estimates import Arm, Comparison, Estimate, Pair
from analysis.pareto import By
from analysis.statistics.choosing import in_words
from analysis.statistics.curves import Curves
from analysis.statistics.margins import MARGIN, Ideal, ideal_of
from analysis.statistics.matched import MOST_MATCHED, estimates_at, label_of, matched_l0s
from analysis.statistics.parts import WINDOW_PLACES, Difference, Part, Plan
from analysis.statistics.pooling import parts_of, titles_of
from analysis.statistics.uncertainty import made, shown
from analysis.statistics.verdicts import ALPHA, Contrast, Judged, judge
from analysis.table import check_columns, evenly, orientation
from sae_core.errors import ConfigError, border


def compare(
    table: pd.DataFrame,
    *,
    metric: str = "fvu",
    l0s: Sequence[float] | None = None,
    by: By = "architecture",
    same: Sequence[str] = ("comparison_hash",),
    pairs: Sequence[tuple[str, str]] | None = None,
    equal_tries: bool = False,
    documents: DocumentSums | None = None,
) -> Comparison:
    """Compare all arms of a table in pairs, with intervals, tests and verdicts.

    Args:
        table: from `load_table` or `read_table`, or rows of it.
        l0s: active latents per token at which differences are described; by default a few that fronts reach.
        by: columns that tell arms apart.
        same: columns, beside held-out text, model, hook point and context, in which rows must agree to be compared.
        pairs: names of the arms to compare; by default every two.
        equal_tries: let every arm choose among as many settings per level as the arm with the fewest has.
        documents: sums per document of the finished runs; by default read from the directories that `load_table` noted.

    Raises:
        ConfigError: a column is missing or holds something else than numbers, or the metric has no direction or is L0.
    """
    check_columns(table, ["l0"])
    if metric == "l0":
        raise ConfigError("`metric` must be read at matched L0, but got 'l0' itself. Name another column, e.g. 'fvu'.")
    sign = orientation(table, metric)
    check_columns(table, [metric])
    rows, notes = parts_of(table, same)
    asked = _l0s(rows.values(), metric, by) if l0s is None else _positive(l0s)
    parts = [
        Part.of(name, own, metric, by=by, sign=sign, l0s=asked, pairs=pairs, equal_tries=equal_tries, documents=documents)
        for name, own in rows.items()
    ]
    planned = [(part, plan, part.mean(plan)) for part in parts for plan in part.plans]
    ideals = {part.name: ideal_of(rows[part.name], metric, sign) for part in parts}
    tests = [_test(part, plan, gap, ideals[part.name]) for part, plan, gap in planned]
    tested = [test for test in tests if test]
    judged = iter(judge(tested))
    found = tuple(
        _pair(part, plan, gap, next(judged) if test else None, asked) for (part, plan, gap), test in zip(planned, tests, strict=True)
    )
    arms = tuple(_arm(part, name, asked) for part in parts for name in part.sides)
    label, margin_of = label_of(table, metric), " or ".join(dict.fromkeys(ideal.words for ideal in ideals.values() if ideal))
    return Comparison(
        metric,
        label,
        "min" if sign > 0 else "max",
        asked,
        ALPHA,
        MARGIN,
        margin_of,
        arms,
        found,
        len(tested),
        titles_of(table, rows),
        (*notes, *_notes(parts, arms, label)),
    )


def _test(part: Part, plan: Plan, gap: Difference | None, ideal: Ideal | None) -> Contrast | None:
    """What is tested; None where there is no window, or nothing is known about what varies."""
    if gap is None or plan.mean is None or not (gap.seeds or gap.documents):
        return None
    values = [part.reads[arm].values[:, at].mean() for arm, at in zip((plan.a, plan.b), plan.mean, strict=True)]
    margin = ideal.margin(np.array(values), raw=part.samples.raw) if ideal else 0.0
    return Contrast(gap.value, gap.seeds, gap.documents, part.n_seeds(plan), part.samples.n_documents, part.samples.df, margin)


def _pair(part: Part, plan: Plan, gap: Difference | None, judged: Judged | None, l0s: Sequence[float]) -> Pair:
    raw, n_seeds = part.samples.raw, part.n_seeds(plan)
    ratio, window = part.l0_ratio(plan), plan.window
    reason = ""
    if judged is None:
        reason = (
            "No range of L0 is spanned by both fronts in every repeat."
            if gap is None
            else f"{'One seed' if part.seeds_known else 'Seeds are not known'}, and documents cannot be drawn: {part.samples.undrawn}."
        )
    low, high, smallest = (
        (shown(one, relative=True, raw=raw) for one in (*judged.adjusted, judged.smallest)) if judged else (None, None, None)
    )
    a_is_better = gap is not None and part.sign * gap.value < 0
    below = judged.probability_below if judged else None
    return Pair(
        a=plan.a,
        b=plan.b,
        comparison=part.name,
        window=(float(np.exp(window[0])), float(np.exp(window[1]))) if window else None,
        gap=_estimate(part, gap, n_seeds) if gap else None,
        adjusted=(low, high) if low is not None and high is not None else None,
        p=judged.p if judged else None,
        p_adjusted=judged.p_adjusted if judged else None,
        verdict=judged.verdict if judged else "not separable",
        better=(plan.a if a_is_better else plan.b) if judged and judged.verdict.startswith("better") else None,
        probability=None if below is None else below if part.sign > 0 else 1 - below,
        smallest=smallest,
        seeds_needed=judged.seeds_needed if judged else None,
        documents_needed=judged.documents_needed if judged else None,
        at=_at_l0s(part, plan, l0s, n_seeds),
        l0_ratio=_estimate(part, ratio, n_seeds, raw=False) if ratio else None,
        reason=reason,
        paired=part.seed_by_seed or part.samples.n_documents > 0,
    )


def _estimate(part: Part, one: Difference, n_seeds: int, *, raw: bool | None = None, extrapolated: bool = False) -> Estimate:
    return made(
        one.value,
        one.seeds,
        one.documents,
        n_seeds=n_seeds,
        n_documents=part.samples.n_documents,
        raw=part.samples.raw if raw is None else raw,
        relative=True,
        extrapolated=extrapolated,
    )


def _at_l0s(part: Part, plan: Plan, l0s: Sequence[float], n_seeds: int) -> dict[float, Estimate | None]:
    """The difference at each L0 that both fronts reach."""
    places = np.log(np.asarray(l0s, dtype=float))
    (reached, beyond), (also_reached, also_beyond) = (part.sides[arm].curves.reaches(places) for arm in (plan.a, plan.b))
    return {
        float(l0): _estimate(part, part.at(plan, index), n_seeds, extrapolated=bool(beyond[index] or also_beyond[index]))
        if reached[index] and also_reached[index]
        else None
        for index, l0 in enumerate(l0s)
    }


def _arm(part: Part, name: str, l0s: Sequence[float]) -> Arm:
    side = part.sides[name]
    spread = part.reads[name].spread if name in part.reads else None
    return Arm(
        name=name,
        comparison=part.name,
        n_seeds=side.curves.n_repeats,
        n_settings=len(side.curves.grid.runs),
        at=dict(zip(map(float, l0s), estimates_at(side.curves, l0s), strict=True)),
        spread=float(np.sqrt((spread.sd**2).mean())) if spread else None,
        pooled=spread.pooled if spread else True,
        p_equal_spread=spread.p if spread else None,
        chosen=in_words(side.curves.grid, part.samples, side.tries),
        tries=side.tries,
        advantage=_advantage(part, name),
    )


def _advantage(part: Part, name: str) -> float | None:
    """What more tries brought an arm, relative to as many as the arm with the fewest has; None where it has no more, or logarithms fail."""
    side, fewest = part.sides[name], min(one.tries for one in part.sides.values())
    if fewest >= side.tries or part.samples.raw:
        return None
    fair = Curves.of(part.samples, side.curves.grid, part.sign, tries=fewest)
    low, high = max(fair.span[0], side.curves.span[0]), min(fair.span[1], side.curves.span[1])
    places = np.linspace(low, high, WINDOW_PLACES)
    gain = float(side.curves.at(places).mean() - fair.at(places).mean())
    return shown(gain, relative=True, raw=False)


def _l0s(rows: Iterable[pd.DataFrame], metric: str, by: By) -> tuple[float, ...]:
    """L0s that fronts reach, of all parts together an even choice."""
    found = sorted({l0 for own in rows for l0 in matched_l0s(own, metric, by=by)})
    return tuple(found[index] for index in evenly(len(found), MOST_MATCHED))


def _positive(l0s: Sequence[float]) -> tuple[float, ...]:
    with border(f"L0s must be finite numbers above 0, but got {l0s!r}", "Give active latents per token, e.g. [16, 32]."):
        asked = [float(l0) for l0 in l0s]
        if not all(0 < l0 < np.inf for l0 in asked):
            raise ValueError("one is not")
    return tuple(dict.fromkeys(asked))


def _notes(parts: Sequence[Part], arms: Sequence[Arm], label: str) -> list[str]:
    """What a reader of the verdicts must know."""
    notes = [f"No front reaches L0 {l0:g}." for l0 in (arms[0].at if arms else ()) if all(arm.at[l0] is None for arm in arms)]
    if any(arm.n_seeds < 2 for arm in arms) and any(part.samples.n_documents for part in parts):
        notes.append("With one seed, an interval is about these SAEs on other text of the kind, not about training them again.")
    if any(arm.n_seeds > 1 for arm in arms):
        reasons = dict.fromkeys(part.samples.undrawn for part in parts if part.samples.undrawn)
        notes += [f"Intervals cover seeds only, not the choice of held-out text: {reason}." for reason in reasons]
    if any(part.samples.raw for part in parts):
        notes.append(f"Some values of {label} are 0 or less and have no logarithm: differences are in its own units, not in percent.")
    return notes + [
        f"{words.arm(arm.name)} chose among {arm.tries} settings, more than others; with as few its {label} would be "
        f"{abs(100 * (1 / (1 + arm.advantage) - 1)):.1f} % {'higher' if arm.advantage < 0 else 'lower'}."
        for arm in arms
        if arm.advantage is not None
    ]
