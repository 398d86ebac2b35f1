"""A comparison in sentences, the most important first: who is best over the L0s that both fronts span, by how much, and how sure that is.

Brackets hold the interval at the level at which the pair was tested, so that it excludes 0 exactly where "has lower" is said. Every number
is one of `Comparison`, rounded as the tables round it. A verdict is about a mean over L0; where the interval at a shown L0 says otherwise,
a clause says so.
"""

import dataclasses
from collections.abc import Sequence

from analysis import words
from analysis.estimates import Comparison, Estimate, Pair
from analysis.statistics.verdicts import MOST_SEEDS

USUAL_L0 = 32.0
"""Of the matched L0s, the one nearest to it is quoted."""


def answer(comparison: Comparison) -> list[str]:
    """The sentences. Pass `comparison.of(name)` for one of several groups of rows that are not pooled."""
    tested = [pair for pair in comparison.pairs if pair.gap is not None and not pair.reason]
    arms = [arm.name for arm in comparison.arms]
    if len(arms) < 2:
        return [f"There is one thing to look at, {words.arm(arms[0])}, and nothing to compare it with."] if arms else []
    lines: list[str] = []
    if tested and len(comparison.pairs) < len(arms) * (len(arms) - 1) / 2:  # chosen pairs: no arm was compared with all
        lines += [_sentence(comparison, pair) for pair in tested]
    elif tested:
        best = _best(comparison, tested)
        own = sorted((pair for pair in tested if best in (pair.a, pair.b)), key=lambda pair: abs(pair.gap.value if pair.gap else 0.0))
        if len(arms) > 2 and len(own) == len(arms) - 1:
            lines.append(_overview(comparison, best, own))
        lines += [_sentence(comparison, _from(best, pair)) for pair in own]
        lines += _others(tested, own)
    single = [pair for pair in comparison.pairs if pair.gap is not None and pair.reason]
    lines += _single_runs(comparison, single) if single else []
    apart = [pair for pair in comparison.pairs if pair.gap is None]
    lines += [_not_compared(comparison, pair) for pair in apart[: words.LISTED]]
    if len(apart) > words.LISTED:
        lines.append(f"{len(apart) - words.LISTED} more pairs are not compared either.")
    return [*lines, *_choices(comparison), *([_method(comparison, tested)] if tested else [])]


def _best(comparison: Comparison, pairs: Sequence[Pair]) -> str:
    """The arm with the best gap to the others, on average."""
    gaps: dict[str, list[float]] = {}
    for pair in pairs:
        assert pair.gap is not None
        better = -pair.gap.value if comparison.direction == "min" else pair.gap.value
        gaps.setdefault(pair.a, []).append(better)
        gaps.setdefault(pair.b, []).append(-better)
    return max(gaps, key=lambda name: sum(gaps[name]) / len(gaps[name]))


def _single_runs(comparison: Comparison, pairs: Sequence[Pair]) -> list[str]:
    """What single runs without an interval show."""
    best = _best(comparison, pairs)
    own = [_from(best, pair) for pair in pairs if best in (pair.a, pair.b)]
    own.sort(key=lambda pair: abs(pair.gap.value) if pair.gap else 0.0)
    than = words.listed(f"{_apart(pair.gap, None)} than {words.arm(pair.b)}" for pair in own if pair.gap)
    why = f"nothing tells how sure that is: {pairs[0].reason[0].lower()}{pairs[0].reason[1:]}"
    return [f"In these single runs {words.arm(best)} has the best {comparison.label} on average: {than}. But {why}"]


def _overview(comparison: Comparison, best: str, pairs: Sequence[Pair]) -> str:
    """Which of the others the arm with the lowest (highest) value is told apart from, and which are equivalent to it."""
    turned = [_from(best, pair) for pair in pairs]
    alike = [pair.b for pair in turned if pair.verdict.startswith("equivalent")]
    unclear = [pair.b for pair in turned if pair.better is None and pair.b not in alike]
    side = "lowest" if comparison.direction == "min" else "highest"
    lines = [f"{words.arm(best)} has the {side} {comparison.label} on average"]
    if not alike and not unclear:
        return f"{lines[0]}, told apart from all {len(pairs)} others."
    if len(unclear) == len(pairs):
        return f"{lines[0]}, but is told apart from none of the {len(pairs)} others."
    here = "" if all(pair.verdict == "equivalent" for pair in turned if pair.b in alike) else ", on text like this"
    if not unclear and _all_equivalent(comparison, alike):
        named = words.listed(map(words.arm, [best, *alike]))
        if len(alike) == len(pairs):
            return f"{named} are equivalent in {comparison.label} on average{here}."
        return f"{named} have the {side} {comparison.label}, equivalent on average{here}."
    if unclear:
        lines.append(f"it is not told apart from {words.listed(map(words.arm, unclear))}")
    if alike:
        lines.append(f"{words.listed(map(words.arm, alike))} {'is' if len(alike) == 1 else 'are'} equivalent to it{here}")
    return f"{'; '.join(lines)}."


def _all_equivalent(comparison: Comparison, arms: Sequence[str]) -> bool:
    """Whether these arms are equivalent to one another too."""
    return all(pair.verdict.startswith("equivalent") for pair in comparison.pairs if {pair.a, pair.b} <= set(arms))


def _from(first: str, pair: Pair) -> Pair:
    """The same pair with `first` as its `a`."""
    if pair.a == first:
        return pair
    return dataclasses.replace(
        pair,
        a=pair.b,
        b=pair.a,
        gap=_turned(pair.gap),
        adjusted=_ends(pair.gap, pair.adjusted),
        at={l0: _turned(one) for l0, one in pair.at.items()},
        l0_ratio=_turned(pair.l0_ratio),
        probability=None if pair.probability is None else 1 - pair.probability,
    )


def _turned(one: Estimate | None) -> Estimate | None:
    """A difference the other way round: of ratios, the inverse."""
    if one is None:
        return None
    low, high = (None, None) if one.low is None or one.high is None else (_inverse(one, one.high), _inverse(one, one.low))
    return dataclasses.replace(one, value=_inverse(one, one.value), low=low, high=high)


def _inverse(one: Estimate, value: float) -> float:
    return 1 / (1 + value) - 1 if one.relative else -value


def _ends(one: Estimate | None, ends: tuple[float, float] | None) -> tuple[float, float] | None:
    return None if one is None or ends is None else (_inverse(one, ends[1]), _inverse(one, ends[0]))


def _sentence(comparison: Comparison, pair: Pair) -> str:
    """One pair, from its `a`."""
    assert pair.gap is not None and pair.window is not None
    a, b, label, gap = words.arm(pair.a), words.arm(pair.b), comparison.label, pair.gap
    where = f"average over L0 {pair.window[0]:.3g} to {pair.window[1]:.3g}"
    apart, counted, however = _apart(gap, pair.adjusted), _counted(pair), _otherwise(comparison, pair)
    if pair.verdict == "better":
        return f"On {where}, {a} has {apart} {label} than {b} ({counted}){_details(comparison, pair)}{however}."
    if pair.verdict == "better on this text":
        return (
            f"On {where} and on text like this, these {a} SAEs have {apart} {label} than these {b} SAEs ({counted}){however}; whether that "
            "holds when they are trained again, one seed cannot tell."
        )
    difference = f"{_shown(gap, gap.value)}{_unit(gap)} {_bracket(gap, pair.adjusted)}"
    if pair.verdict != "not separable":
        these = "" if pair.verdict == "equivalent" else " on text like this"
        less = f"less than {100 * comparison.margin:g} %{'' if comparison.margin_of == 'the value' else f' of {comparison.margin_of}'}"
        return f"On {where}, {a} and {b} are equivalent{these}: their {label} differs by {difference}, {less} ({counted}){however}."
    seeds = words.counted(gap.n_seeds, "seed")
    return f"{a} and {b} are not separable with {seeds}: on {where} the difference in {label} is {difference}; {_remedy(pair)}{however}."


def _remedy(pair: Pair) -> str:
    """What would tell a pair apart."""
    assert pair.gap is not None and pair.smallest is not None
    seen = f"the smallest that could have been seen is {_shown(pair.gap, pair.smallest, sign=False)}{_unit(pair.gap)}"
    if pair.seeds_needed:
        return f"{seen}; about {pair.seeds_needed} seeds would do"
    if pair.documents_needed:
        return f"{seen}; about {pair.documents_needed:,} held-out documents would do"
    if pair.gap.n_seeds < 2:
        return f"{seen} on text like this; how much training again changes, one seed cannot tell"
    return f"{seen}; if it is real, no number of seeds up to {MOST_SEEDS} would show it on these documents"


def _others(tested: Sequence[Pair], own: Sequence[Pair]) -> list[str]:
    rest = [pair for pair in tested if pair not in own]
    if not rest:
        return []
    apart = sum(pair.better is not None for pair in rest)
    if len(rest) == 1:
        return [f"The other pair is {'' if apart else 'not '}told apart."]
    if apart == len(rest):
        return [f"All of the other {len(rest)} pairs are told apart."]
    return [f"Of the other {len(rest)} pairs, {apart or 'none'} {'are' if apart > 1 else 'is'} told apart."]


def _not_compared(comparison: Comparison, pair: Pair) -> str:
    return f"{words.arm(pair.a)} and {words.arm(pair.b)} are not compared in {comparison.label}: {pair.reason[0].lower()}{pair.reason[1:]}"


def _details(comparison: Comparison, pair: Pair) -> str:
    """The difference at one L0, and in latents."""
    parts = []
    known = {l0: one for l0, one in pair.at.items() if one is not None}
    if known and (nearest := min(known, key=lambda one: abs(one - USUAL_L0))) not in _contrary(pair):
        parts.append(f"at L0 {nearest:g} {_apart(known[nearest], None)}")
    if pair.l0_ratio is not None:
        ratio = pair.l0_ratio
        fewer = "fewer" if ratio.value < 0 else "more"
        parts.append(f"it needs {abs(100 * ratio.value):.1f} % {fewer} latents for the same {comparison.label}")
    return f"; {', and '.join(parts)}" if parts else ""


def _contrary(pair: Pair) -> dict[float, Estimate]:
    """L0s where the interval of the difference lies on the other side than the mean, or where none was found on average: off 0."""
    assert pair.gap is not None
    sure = {l0: one for l0, one in pair.at.items() if one is not None and one.low is not None and one.high is not None}
    apart = {l0: one for l0, one in sure.items() if one.low * one.high > 0}  # type: ignore[operator]
    return {l0: one for l0, one in apart.items() if pair.better is None or (one.value < 0) != (pair.gap.value < 0)}


def _otherwise(comparison: Comparison, pair: Pair) -> str:
    """E.g. "; but at L0 64 JumpReLU is 4.3 % [2.2, 6.4] lower": the one that is better there, at each L0 where the mean says otherwise."""
    parts = []
    for l0, one in _contrary(pair).items():
        a_is_better = (one.value < 0) == (comparison.direction == "min")
        turned = one if a_is_better else _turned(one)
        assert turned is not None
        beyond = " (extrapolated)" if one.extrapolated else ""
        parts.append(f"at L0 {l0:g}{beyond} {words.arm(pair.a if a_is_better else pair.b)} is {_apart(turned, None)}")
    return f"; but {words.listed(parts)}" if parts else ""


def _apart(one: Estimate, ends: tuple[float, float] | None) -> str:
    """E.g. "9.0 % [5.8, 12.1] lower": numbers above 0 where it is lower, and the interval turned with them."""
    lower = one.value < 0
    ends = ends or (None if one.low is None or one.high is None else (one.low, one.high))
    sign = -1 if lower else 1
    bracket = ""
    if ends:
        low, high = sorted((sign * ends[0], sign * ends[1]))
        bracket = f" [{_shown(one, low, sign=low < 0)}, {_shown(one, high, sign=high < 0)}]"
    return f"{_shown(one, abs(one.value), sign=False)}{_unit(one)}{bracket} {'lower' if lower else 'higher'}"


def _bracket(one: Estimate, ends: tuple[float, float] | None) -> str:
    return "" if ends is None else f"[{_shown(one, ends[0])}, {_shown(one, ends[1])}]"


def _shown(one: Estimate, value: float, *, sign: bool = True) -> str:
    if one.relative:
        return f"{100 * value:+.1f}" if sign else f"{100 * value:.1f}"
    return words.number(value)


def _unit(one: Estimate) -> str:
    return " %" if one.relative else ""


def _counted(pair: Pair) -> str:
    """E.g. "3 seeds, 50 documents, paired"."""
    assert pair.gap is not None
    one = pair.gap
    documents = [words.counted(one.n_documents, "document")] if one.n_documents else []
    return ", ".join([words.counted(one.n_seeds, "seed"), *documents, *(["paired"] if pair.paired else [])])


def _choices(comparison: Comparison) -> list[str]:
    """How settings were chosen, where there were several per level."""
    chosen: dict[str, list[str]] = {}
    for arm in comparison.arms:
        if arm.chosen:
            chosen.setdefault(arm.chosen, []).append(words.arm(arm.name))
    return [f"{words.listed(names)}: {how}." for how, names in chosen.items()]


def _method(comparison: Comparison, tested: Sequence[Pair]) -> str:
    """What the brackets are."""
    corrected = f", corrected for {comparison.n_tests} comparisons (Holm)" if comparison.n_tests > 1 else ""
    covers = words.listed(dict.fromkeys(pair.gap.covers for pair in tested if pair.gap))
    return f"Brackets: 95 % intervals of the mean difference{corrected}; they cover {covers}. At a single L0 they are not corrected."
