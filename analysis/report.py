"""`report.html` and `report.md`, made from the records alone: no model, no GPU, no network.

The HTML is one file that works offline. Beside the Markdown lie the plots, as PNG and SVG, in `plots/`. The same records
give the same report, byte for byte.
"""

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from analysis import facts, style
from analysis.figures import Drawn, draw_plots, linked, page_color
from analysis.findings import CHECKS, Check, place_of, warnings_of
from analysis.pareto import END_TOLERANCE, L0_WINDOW
from analysis.repeats import counted, counted_repeats, n_repeats, noun
from analysis.report_rows import SHOWN, RunRow, run_rows, unfinished_rows
from analysis.results import StoredRun, StoredSweep, read_sweeps
from analysis.summary import EXTRAPOLATED, Hypervolumes, Spread, at_matched_l0, compared_metrics, hypervolumes, left_out, matched_l0s
from analysis.table import STATUSES, by_comparison, specs_of, table_of
from analysis.titles import Title, titles
from sae_core.errors import ConfigError, reason_of
from sae_core.files import write_text


@dataclass(frozen=True, slots=True)
class Comparison:
    """Runs that may be compared: same held-out text, width and training tokens."""

    title: str
    short_title: str
    n_seeds: int
    figures: list[Drawn]
    matched_l0s: list[float]
    matched: dict[str, dict[str, list[Spread | None]]]
    """Metric -> architecture -> value at each of `matched_l0s`."""
    volumes: list[Hypervolumes]
    shown: dict[str, str]
    """Metrics in the table of runs, with their headings."""
    runs: dict[str, list[RunRow]]
    """Architecture -> its finished runs."""
    n_not_listed: int
    """Finished runs that the table of runs leaves out, because there are too many."""
    left_out: list[str]
    """What is left out of the values at matched L0."""
    has_extrapolated: bool
    """Whether any of those values lies beyond the ends of its front."""
    notes: list[str]
    """What to keep in mind when reading it."""


def write_report(results: Path | Sequence[Path], out: Path | None = None) -> Path:
    """Write the report of one sweep, or of several together.

    Args:
        results: sweep directories.
        out: where `report.html`, `report.md` and `plots/` go; by default `report/` of the first sweep.

    Returns:
        Path of `report.html`.

    Raises:
        ConfigError: a directory is not a sweep's, or holds no run; or `out` cannot be written to.
    """
    sweeps = read_sweeps(results)
    out = sweeps[0].directory.absolute() / "report" if out is None else Path(out)
    table = table_of(sweeps)
    try:
        content = _content(sweeps, table, out)
        for name, page in (("report.md", "report.md.jinja"), ("report.html", "report.html.jinja")):
            write_text(out / name, _environment(autoescape=name.endswith("html")).get_template(page).render(content))
    except OSError as error:
        raise ConfigError(
            f"a report must be written to a directory that can be written to, but got {str(out)!r}: {reason_of(error)}. "
            "Choose another one with `--out DIR`."
        ) from error
    return out / "report.html"


def _content(sweeps: Sequence[StoredSweep], table: pd.DataFrame, out: Path) -> dict[str, Any]:
    """Everything the templates show."""
    names = titles(table)
    unfinished, n_more_unfinished = unfinished_rows(table)
    return {
        "title": " and ".join(dict.fromkeys(sweep.name for sweep in sweeps)),
        "statuses": {name: int((table["status"] == name).sum()) for name in STATUSES},
        "n_runs": len(table),
        "several_sweeps": len(sweeps) > 1,
        "comparisons": _comparisons(_runs(sweeps), table, names, out),
        "warnings": _warnings(table, names),
        "damaged": [damage for sweep in sweeps for damage in sweep.damages],
        "checks": [check.title[0].lower() + check.title[1:] for check in CHECKS.values()],
        "unfinished": unfinished,
        "n_more_unfinished": n_more_unfinished,
        "facts": facts.facts(sweeps, table),
        "stages": facts.stages(sweeps),
        "total_time": facts.total_time(sweeps),
        "specs": {name: spec for name, spec in specs_of(table).items() if name in table.columns},
        "definitions": _definitions(sweeps),
        "l0_window": L0_WINDOW,
        "end_tolerance": round(100 * END_TOLERANCE),
        "repeats": counted_repeats(table),
        "extrapolated": EXTRAPOLATED,
        "shown": SHOWN,
        "looks": style.looks(table["architecture"].dropna()),
    }


def _runs(sweeps: Sequence[StoredSweep]) -> dict[str, StoredRun]:
    """By run id; of a run that several sweeps share the one in the table, which is the finished one or else the first."""
    runs: dict[str, StoredRun] = {}
    for run in (run for sweep in sweeps for run in sweep.runs):
        known = runs.setdefault(run.run_id, run)
        if run.record and run.record.status == "finished" and not (known.record and known.record.status == "finished"):
            runs[run.run_id] = run
    return runs


def _warnings(table: pd.DataFrame, names: Mapping[str, Title]) -> list[tuple[Check, list[tuple[str, str]]]]:
    """Every check that found something, with (whose runs, what)."""
    found = warnings_of(table)
    told = {kind: [(place_of(warned, names), warned.text) for warned in found if warned.kind == kind] for kind in CHECKS}
    return [(CHECKS[kind], texts) for kind, texts in told.items() if texts]


def _definitions(sweeps: Sequence[StoredSweep]) -> list[tuple[str, str]]:
    """(heading, text) of every definition that was kept; where there are several of a sweep, each with its launches and runs."""
    shown = []
    for sweep in sweeps:
        for definition in sweep.definitions:
            heading = f"Definition of {sweep.name}"
            if definition.launches:
                made = sum(run.record is not None and run.record.launch in definition.launches for run in sweep.runs)
                launches = f"launch{'es' * (len(definition.launches) > 1)} {', '.join(map(str, definition.launches))}"
                heading = f"{heading}, {launches}: made {counted(made, 'run')}"
            shown.append((heading, definition.text))
    return shown


def _comparisons(runs: Mapping[str, StoredRun], table: pd.DataFrame, names: Mapping[str, Title], out: Path) -> list[Comparison]:
    with_results = {name: own for name, own in by_comparison(table).items() if (own["status"] == "finished").any()}
    histories = {run_id: run.directory / "history.jsonl" for run_id, run in runs.items()}
    return [
        _comparison(own, names[name], histories, out / "plots", prefix=f"{place}-" if len(with_results) > 1 else "")
        for place, (name, own) in enumerate(with_results.items(), start=1)
    ]


def _comparison(table: pd.DataFrame, title: Title, histories: Mapping[str, Path], plots: Path, prefix: str) -> Comparison:
    finished = table[table["status"] == "finished"]
    metrics, l0s = compared_metrics(table), matched_l0s(table)
    matched = {metric: at_matched_l0(table, metric, l0s) for metric in metrics}
    shown = {name: heading for name, heading in SHOWN.items() if name in finished and finished[name].notna().any()}
    figures = draw_plots(table, histories, plots, prefix)
    rows, n_not_listed = run_rows(finished, shown, set().union(*(linked(figure.svg) for figure in figures)))
    return Comparison(
        title=title.full,
        short_title=title.short or "Frontiers",
        n_seeds=n_repeats(finished),
        figures=figures,
        matched_l0s=l0s,
        matched=matched,
        volumes=[hypervolumes(table, metric) for metric in metrics],
        shown=shown,
        runs=rows,
        n_not_listed=n_not_listed,
        left_out=left_out(finished),
        has_extrapolated=any(
            value.extrapolated for per_architecture in matched.values() for values in per_architecture.values() for value in values if value
        ),
        notes=_notes(finished),
    )


def _notes(finished: pd.DataFrame) -> list[str]:
    """What a reader of the fronts should know about them."""
    notes = []
    n_seeds, seeds_of_settings, kind = n_repeats(finished), finished.groupby("setting_hash").size(), noun(finished)
    if n_seeds < 2:
        notes.append("One seed: how much these values vary from seed to seed is not known. Intervals need at least 2 seeds.")
    else:
        notes.append(f"{counted_repeats(finished)}: values are means over {kind}s, ranges go from the smallest to the largest.")
        if lacking := int((seeds_of_settings < n_seeds).sum()):
            notes.append(f"{lacking} of {len(seeds_of_settings)} settings have finished with fewer {kind}s; their means are over those.")
    rates = finished.groupby("architecture")["lr"].nunique()
    if (rates > 1).any():
        named = ", ".join(style.label(name) for name in style.looks(rates.index[rates > 1]))
        notes.append(
            f"The fronts of {named} run over several learning rates: they show the best of them, "
            "chosen and reported on the same held-out text."
        )
    return notes


def _environment(*, autoescape: bool) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=autoescape,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["label"] = style.label
    environment.filters["number"] = style.number
    environment.filters["page_color"] = page_color
    environment.filters["code"] = lambda text: re.sub("`([^`]*)`", r"<code>\1</code>", html.escape(text))
    environment.filters["cell"] = lambda text: str(text).replace("|", "\\|").replace("\n", " ")
    return environment
