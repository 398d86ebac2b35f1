"""What deserves a second look in the results of a sweep, for the report and for the terminal: every check on every architecture."""

import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pandas as pd

from analysis import activation_checks, checks
from analysis.inputs import as_loaded
from analysis.style import TERMINAL_WIDTH, by_architecture, label
from analysis.table import by_comparison
from analysis.titles import Title, titles

MOST_TOLD = 20
"""Sentences of one check that are told; of further ones it tells the number."""


@dataclass(frozen=True, slots=True)
class Check:
    """Something that may be wrong with runs that may be compared."""

    title: str
    remedy: str
    find: Callable[[pd.DataFrame], list[str]]
    """Runs of one architecture and comparison -> sentences with the numbers."""
    of_all: bool = False
    """Whether it is about what all runs of a comparison share, and `find` takes those of all architectures."""


CHECKS = {
    "guessing": Check(
        "The language model is no better than chance",
        "Its weights may not have loaded, or the text was split by another tokenizer. Every number that follows is about noise: check "
        "`model` and `data` before anything else.",
        activation_checks.no_better_than_guessing,
        of_all=True,
    ),
    "sinks": Check(
        "A few rows carry nearly all variance",
        "They are often attention sinks, as the first token of a window is. FVU and the SAEs' training are about them more than about all "
        "other rows. Exclude special tokens (`exclude_special_tokens`), choose another hook point, or read delta CE instead of FVU.",
        activation_checks.sinks,
        of_all=True,
    ),
    "learning_rate": Check(
        "Best learning rate at the edge of its range",
        "A better one may lie beyond: extend `lr` in that direction.",
        checks.learning_rate_at_edge,
    ),
    "missed_target": Check(
        f"Target L0 missed by more than {100 * checks.MISSED:g} %",
        "A low learning rate cannot move L0: raise `lr` or train longer. Or let the search for the coefficient start nearer: "
        "`sparsity_value` in `table.csv` is the one a run ended with.",
        checks.missed_target,
    ),
    "dead_zone": Check(
        "Coefficients in a dead zone",
        "Such runs say nothing new: keep one coefficient of each group and move the others, or ask for levels with `target_l0`.",
        checks.dead_zone,
    ),
    "close_points": Check(
        f"Points closer than {100 * checks.CLOSE:g} % in L0",
        "One of them is a wasted run: move it, or leave it out.",
        checks.close_points,
    ),
    "few_points": Check(
        f"Fewer than {checks.ENOUGH_POINTS} points on a front",
        "Too few to compare architectures by: add sparsity levels, or launch the sweep again to finish those that are missing.",
        checks.few_points,
    ),
    "dead_latents": Check(
        f"More than {100 * checks.MANY_DEAD:g} % dead latents",
        "They are never active on the held-out text, which also counts very rare ones. Lower `lr` or `d_sae`, train on more tokens, set "
        "`resample_every_steps` or, in the TopK family, `dead_after_tokens` far below the training tokens, so that its auxiliary loss "
        "revives them.",
        checks.dead_latents,
    ),
}
"""Name -> check, in the order they are told."""


@dataclass(frozen=True, slots=True)
class Warned:
    """What a check found about the runs of one architecture, or of a comparison."""

    kind: str
    """Name of the check in CHECKS."""
    comparison: str
    """`comparison_hash` of the runs."""
    architecture: str
    """Empty where it is about all of the comparison."""
    text: str
    """Full sentences with the numbers; what to do in general is the check's `remedy`."""


def warnings_of(table: pd.DataFrame) -> list[Warned]:
    """Everything that the checks find: in their order, then of comparisons and architectures; at most MOST_TOLD of each check.

    Raises:
        ConfigError: the table lacks a column that every table of `load_table` has.
    """
    comparisons = {name: (runs, by_architecture(runs)) for name, runs in by_comparison(as_loaded(table)).items()}
    found: list[Warned] = []
    for kind, check in CHECKS.items():
        own = [
            Warned(kind, comparison, architecture, text)
            for comparison, (runs, per_architecture) in comparisons.items()
            for architecture, checked in ({"": runs} if check.of_all else per_architecture).items()
            for text in check.find(checked)
        ]
        further = len(own) - MOST_TOLD
        found += own if further <= 0 else [*own[:MOST_TOLD], Warned(kind, own[MOST_TOLD].comparison, "", f"{further} more like these.")]
    return found


def place_of(warned: Warned, names: Mapping[str, Title]) -> str:
    """Whose runs a warning is about, e.g. "TopK, d_sae 4096".

    Args:
        names: comparison hash -> its title.
    """
    whose = label(warned.architecture) if warned.architecture else "All runs"
    return ", ".join(part for part in (whose, names[warned.comparison].short) if part)


def warning_lines(table: pd.DataFrame) -> list[str]:
    """The warnings as text of at most TERMINAL_WIDTH columns."""
    found = warnings_of(table)
    if not found:
        return ["No warnings."]
    names = titles(table)
    lines = [f"Warnings: {len(found)}"]
    for kind, check in CHECKS.items():
        own = [warned for warned in found if warned.kind == kind]
        if own:
            lines += ["", *textwrap.wrap(f"{check.title}. {check.remedy}", TERMINAL_WIDTH)]
        for warned in own:
            text = f"{place_of(warned, names)}: {warned.text}"
            lines += textwrap.wrap(text, TERMINAL_WIDTH, initial_indent="  - ", subsequent_indent="    ")
    return lines
