"""What deserves a second look in the results of a sweep, for the report and for the terminal: every check on every architecture."""

import textwrap
from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

from analysis import checks
from analysis.style import TERMINAL_WIDTH, by_architecture, label
from analysis.table import by_comparison


@dataclass(frozen=True, slots=True)
class Check:
    """Something that may be wrong with the runs of an architecture."""

    title: str
    remedy: str
    find: Callable[[pd.DataFrame], list[str]]
    """Runs of one architecture and comparison -> sentences with the numbers."""


CHECKS = {
    "learning_rate": Check(
        "Best learning rate at the edge of its range",
        "A better one may lie beyond: extend `lr` in that direction.",
        checks.learning_rate_at_edge,
    ),
    "missed_target": Check(
        f"Target L0 missed by more than {100 * checks.MISSED:g} %",
        "Train on more tokens, or let the search start nearer: `sparsity_value` in `table.csv` is the coefficient a run ended with.",
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
    """What a check found about the runs of one architecture."""

    kind: str
    """Name of the check in CHECKS."""
    comparison: str
    """`comparison_hash` of the runs."""
    architecture: str
    text: str
    """Full sentences with the numbers; what to do in general is the check's `remedy`."""


def warnings_of(table: pd.DataFrame) -> list[Warned]:
    """Everything that the checks find: in their order, then of comparisons and architectures."""
    return [
        Warned(kind, comparison, architecture, text)
        for kind, check in CHECKS.items()
        for comparison, runs in by_comparison(table).items()
        for architecture, own in by_architecture(runs).items()
        for text in check.find(own)
    ]


def warning_lines(table: pd.DataFrame) -> list[str]:
    """The warnings as text of at most TERMINAL_WIDTH columns."""
    found = warnings_of(table)
    if not found:
        return ["No warnings."]
    several = table["comparison_hash"].nunique() > 1
    lines = [f"Warnings: {len(found)}"]
    for kind, check in CHECKS.items():
        own = [warned for warned in found if warned.kind == kind]
        if own:
            lines += ["", *textwrap.wrap(f"{check.title}. {check.remedy}", TERMINAL_WIDTH)]
        for warned in own:
            place = f", comparison {warned.comparison}" if several else ""
            text = f"{label(warned.architecture)}{place}: {warned.text}"
            lines += textwrap.wrap(text, TERMINAL_WIDTH, initial_indent="  - ", subsequent_indent="    ")
    return lines
