"""What deserves a second look in the results of a sweep, for the report and for the terminal: every check on every architecture."""

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from analysis.report.checks import CHECKS
from analysis.table import as_loaded, by_comparison, of_runs, trained_here
from analysis.words import TERMINAL_WIDTH, Title, by_architecture, label, titles

MOST_TOLD = 20
"""Sentences per check that are listed; further ones are counted."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found about the runs of one architecture, or of a comparison."""

    comparison: str
    """`comparison_hash` of the runs."""
    architecture: str
    """Empty where it is about all of the comparison."""
    text: str
    """Full sentences with the numbers; what to do in general is the check's `remedy`."""

    def line(self, names: Mapping[str, Title]) -> str:
        """Whose runs it is about, and what, e.g. "TopK, d_sae 4096: L0 is ...".

        Args:
            names: comparison hash -> its title.
        """
        whose = label(self.architecture) if self.architecture else "All runs"
        return f"{', '.join(part for part in (whose, names[self.comparison].short) if part)}: {self.text}"


def findings_of(table: pd.DataFrame) -> dict[str, list[Finding]]:
    """Name of each check that found something -> its findings, by comparison and architecture; at most MOST_TOLD per check.

    Raises:
        ConfigError: the table lacks a column that every table of `load_table` has.
    """
    loaded = trained_here(of_runs(as_loaded(table)))
    comparisons = {name: (runs, by_architecture(runs)) for name, runs in by_comparison(loaded).items()}
    found = {}
    for kind, check in CHECKS.items():
        own = [
            Finding(comparison, architecture, text)
            for comparison, (runs, per_architecture) in comparisons.items()
            for architecture, checked in ({"": runs} if check.of_all else per_architecture).items()
            for text in check.find(checked)
        ]
        if len(own) > MOST_TOLD:
            further = Finding(own[MOST_TOLD].comparison, "", f"{len(own) - MOST_TOLD} more like these.")
            own = [*own[:MOST_TOLD], further]
        if own:
            found[kind] = own
    return found


def warning_lines(table: pd.DataFrame) -> list[str]:
    """The findings as text of at most TERMINAL_WIDTH columns."""
    found, names = findings_of(table), titles(table)
    lines = [f"Warnings: {sum(map(len, found.values()))}" if found else "No warnings."]
    for kind, findings in found.items():
        lines += ["", *textwrap.wrap(f"{CHECKS[kind].title}. {CHECKS[kind].remedy}", TERMINAL_WIDTH)]
        for finding in findings:
            lines += textwrap.wrap(finding.line(names), TERMINAL_WIDTH, initial_indent="  - ", subsequent_indent="    ")
    return lines
