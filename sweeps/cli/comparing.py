"""The command that compares sweeps, architectures and tables."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sae_core.errors import ConfigError
from sweeps.cli.app import Answer, command

if TYPE_CHECKING:
    from analysis.estimates import Comparison, Pair


@command()
def compare(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...", help="A sweep's directory or a table, or one architecture of it: results/demo:topk. One or several."
        ),
    ],
    l0: Annotated[list[float] | None, typer.Option(metavar="L0", help="Show differences at this L0. Repeatable.")] = None,
    metric: Annotated[str, typer.Option(metavar="NAME", help="What is compared at matched L0.")] = "fvu",
    equal_tries: Annotated[
        bool, typer.Option("--equal-tries", help="Let all choose among as many settings per level as the one with the fewest has.")
    ] = False,
    columns: Annotated[
        list[str] | None, typer.Option(metavar="OURS=THEIRS", help="Of a table that is not ours: which column is which. Repeatable.")
    ] = None,
) -> Answer:
    """Say which of two architectures, or sweeps, is better at matched L0, by how much, and how sure that is."""
    from analysis.sources import compare_sources

    compared = compare_sources(sources, metric=metric, l0s=l0, equal_tries=equal_tries, columns=_mapping(columns or []))
    return Answer(_data(compared), _lines(compared))


def _mapping(texts: Sequence[str]) -> dict[str, str]:
    """Our column -> theirs."""
    mapping: dict[str, str] = {}
    for text in texts:
        ours, equals, theirs = text.partition("=")
        if not (ours and equals and theirs):
            raise ConfigError(f"--columns must be OURS=THEIRS, but got {text!r}. Write e.g. --columns l0=their_l0.")
        if ours in mapping:
            raise ConfigError(f"--columns must name each of our columns once, but got {ours}={mapping[ours]} and {text}. Keep one.")
        mapping[ours] = theirs
    return mapping


def _data(compared: "Comparison") -> dict[str, Any]:
    """For programs: L0s as text, because they are keys."""
    from analysis.report.answer import answer

    data = dataclasses.asdict(compared)
    for one in (*data["arms"], *data["pairs"]):
        one["at"] = {f"{l0:g}": value for l0, value in one["at"].items()}
    groups = list(dict.fromkeys(pair.comparison for pair in compared.pairs))
    titles = {name: f"{compared.titles[name]}: " if len(groups) > 1 else "" for name in groups}
    return {"answer": [titles[name] + line for name in groups for line in answer(compared.of(name))], **data}


def _lines(compared: "Comparison") -> list[str]:
    """The answer in words, a table of the pairs, values and differences at matched L0, and notes."""
    import textwrap

    from analysis import words
    from analysis.report.answer import answer

    lines: list[str] = []
    groups = list(dict.fromkeys(pair.comparison for pair in compared.pairs))
    for number, name in enumerate(groups, start=1):
        own = compared.of(name)
        lines += [f"Comparison {number} of {len(groups)}: {compared.titles[name]}", ""] if len(groups) > 1 else []
        lines += [line for text in answer(own) for line in textwrap.wrap(text, words.TERMINAL_WIDTH, subsequent_indent="  ")]
        lines += ["", *_pair_lines(own.pairs, own.n_tests), "", *_l0_lines(own), ""]
    for note in compared.notes:
        lines += textwrap.wrap(note, words.TERMINAL_WIDTH)
    return lines if compared.notes else lines[:-1]


def _pair_lines(pairs: "Sequence[Pair]", n_tests: int) -> list[str]:
    """One line per pair: the difference with its interval, alone and corrected, p by Holm, verdict."""
    from analysis import words

    corrected = n_tests > 1
    heading = (
        "",
        "mean difference [95 %]",
        *(["corrected"] if corrected else []),
        "p",
        "P(better)",
        "latents for the same value",
        "verdict",
    )
    rows = [heading]
    for pair in pairs:
        p = words.number(None) if pair.p_adjusted is None else "< 0.0001" if pair.p_adjusted < 1e-4 else f"{pair.p_adjusted:.2g}"
        sure = words.number(None) if pair.probability is None else words.percent(pair.probability)
        ends = [_ends(pair)] if corrected else []
        name = f"{words.arm(pair.a)} / {words.arm(pair.b)}"
        rows.append((name, words.interval(pair.gap), *ends, p, sure, words.interval(pair.l0_ratio), _verdict(pair)))
    notes = ["Of the first against the second, over the L0s that both fronts span; P(better): that the first is better."]
    if corrected:
        notes.append(f"corrected, p: by Holm for all {n_tests} pairs that were tested. The other intervals are of each pair by itself.")
    return [*_table(rows), *notes]


def _ends(pair: "Pair") -> str:
    from analysis import words

    if pair.adjusted is None or pair.gap is None:
        return words.number(None)
    shown = [f"{100 * end:+.1f}" if pair.gap.relative else words.number(end) for end in pair.adjusted]
    return f"[{', '.join(shown)}]"


def _verdict(pair: "Pair") -> str:
    from analysis import words

    return f"{words.arm(pair.better)} {pair.verdict}" if pair.better else pair.verdict if not pair.reason else "not tested"


def _l0_lines(compared: "Comparison") -> list[str]:
    """Values of arms and differences of pairs at the matched L0s."""
    from analysis import words

    heading = [f"L0 {l0:g}" for l0 in compared.l0s]
    rows = [(f"{compared.label} [95 %]", *heading)]
    rows += [(words.arm(arm.name), *(words.interval(arm.at[l0]) for l0 in compared.l0s)) for arm in compared.arms]
    rows += [
        (f"{words.arm(pair.a)} / {words.arm(pair.b)}", *(words.interval(pair.at[l0]) for l0 in compared.l0s)) for pair in compared.pairs
    ]
    return _table(rows)


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
