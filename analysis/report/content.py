"""What the report shows, as plain data for its templates: comparisons, runs, findings, and what was run, where and for how long."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from analysis import words
from analysis.estimates import Comparison
from analysis.interpolation import END_TOLERANCE
from analysis.pareto import L0_WINDOW, settings_with_front
from analysis.plots import style
from analysis.report.answer import answer
from analysis.report.checks import CHECKS
from analysis.report.explorer import explorer_data, script
from analysis.report.facts import definition_of, facts_of, stages_of, to_reproduce
from analysis.report.figures import draw_plots, linked
from analysis.report.findings import findings_of
from analysis.report.summary import hypervolumes, left_out
from analysis.results import StoredSweep
from analysis.statistics.comparison import compare
from analysis.statistics.matched import at_matched_l0, compared_metrics, matched_l0s
from analysis.table import by_comparison, of_runs, specs_of, trained_here
from sae_core.records import STATES

SHOWN = {
    "l0": "L0",
    "l0_error": "L0 error",
    "fvu": "FVU",
    "delta_ce": "ΔCE",
    "ce_loss_recovered": "CE rec.",
    "kl": "KL",
    "mcc": "MCC",
    "feature_f1": "F1",
    "dead_fraction": "dead",
}
"""Metrics in the report's table of runs, where runs have them, with their headings; `table.csv` has all of them."""
MOST_ROWS = 1_000
"""Runs that the tables of all comparisons list, about; of more, those on a front or in a plot."""
MOST_INLINE = 1_000_000
"""Characters of plots inside the page, about: the first comparisons have theirs there, others beside it."""
MOST_UNFINISHED = 200
"""Unfinished runs that are listed."""
_NO_REASON = {
    "failed": "no reason was recorded",
    "pruned": "stopped early: others did better at its L0",
    "trained": "trained and exported; launch the sweep again to evaluate it",
    "missing": "left no record; launch the sweep again",
}


def content_of(sweeps: Sequence[StoredSweep], table: pd.DataFrame, plots: Path) -> dict[str, Any]:
    """Everything the templates show; plots are drawn into the directory `plots`."""
    names, findings, runs = words.titles(table), findings_of(table), of_runs(table)
    trained, unfinished = trained_here(runs), runs[runs["status"] != "finished"]
    stages = stages_of(sweeps)
    return {
        "title": " and ".join(dict.fromkeys(sweep.name for sweep in sweeps)),
        "statuses": {name: int((trained["status"] == name).sum()) for name in STATES},
        "n_runs": len(trained),
        "published": words.counted(len(runs) - len(trained), "published SAE") if len(trained) < len(runs) else "",
        "several_sweeps": len(sweeps) > 1,
        "comparisons": _comparisons(sweeps, table, names, plots),
        "figures_of_all": draw_plots(table, {}, plots, of_all=True),
        "warnings": [(CHECKS[kind], [found.line(names) for found in own]) for kind, own in findings.items()],
        "n_warnings": sum(map(len, findings.values())),
        "damaged": [damage for sweep in sweeps for damage in sweep.damages],
        "checks": [check.title[0].lower() + check.title[1:] for check in CHECKS.values()],
        "unfinished": [_unfinished_row(row) for row in unfinished.head(MOST_UNFINISHED).to_dict("records")],
        "n_more_unfinished": max(len(unfinished) - MOST_UNFINISHED, 0),
        "facts": facts_of(sweeps, runs),
        "reproduce": to_reproduce(sweeps, runs),
        "stages": [(name, stage, words.duration(seconds)) for name, stage, seconds in stages],
        "total_time": words.duration(sum(seconds for *_, seconds in stages)) if stages else "",
        "specs": {name: spec for name, spec in specs_of(table).items() if name in table.columns},
        "definitions": [definition_of(sweep, definition) for sweep in sweeps for definition in sweep.definitions],
        "l0_window": L0_WINDOW,
        "end_tolerance": round(100 * END_TOLERANCE),
        "repeats": words.counted_repeats(trained) if len(trained) else "",
        "extrapolated": words.EXTRAPOLATED,
        "repeat": words.noun(table),
        "data": script(explorer_data(runs, names, SHOWN)),
        "shown": SHOWN,
        "looks": style.looks(runs["architecture"].dropna()),
    }


def _comparisons(sweeps: Sequence[StoredSweep], table: pd.DataFrame, names: Mapping[str, words.Title], plots: Path) -> list[dict[str, Any]]:
    """Runs that may be compared: same held-out text, width and training tokens."""
    runs = [run for sweep in sweeps for run in sweep.runs][::-1]
    # Of a run that several sweeps share, the last one here is the one in the table: the finished one, or else the first.
    histories = {run.run_id: run.paths.history for run in sorted(runs, key=lambda run: run.finished)}
    finished = {name: own for name, own in by_comparison(table).items() if (own["status"] == "finished").any()}
    compared = [compare(table, metric=metric) for metric in compared_metrics(table)]
    shown, size = [], 0
    for index, (name, own) in enumerate(finished.items(), start=1):
        figures = draw_plots(own, histories, plots, f"{index}-" if len(finished) > 1 else "")
        size += sum(len(figure["svg"]) for figure in figures)
        content = _comparison(own, names[name], [one.of(name) for one in compared], figures, MOST_ROWS // len(finished))
        shown.append(content | {"is_inline": index == 1 or size <= MOST_INLINE})
    return shown


def _comparison(
    table: pd.DataFrame, title: words.Title, compared: Sequence[Comparison], figures: Sequence[Mapping[str, Any]], most_rows: int
) -> dict[str, Any]:
    finished = table[table["status"] == "finished"]
    metrics, l0s = compared_metrics(table), matched_l0s(table)
    matched = {metric: at_matched_l0(table, metric, l0s) for metric in metrics}
    shown = {name: heading for name, heading in SHOWN.items() if name in finished and finished[name].notna().any()}
    runs = _run_rows(finished, shown, set().union(*(linked(figure["svg"]) for figure in figures)), most_rows)
    spreads = [value for per_architecture in matched.values() for values in per_architecture.values() for value in values if value]
    return {
        "title": title.full,
        "short_title": title.short or "At matched L0",
        "n_seeds": words.n_repeats(finished),
        "answers": _answers(compared),
        "figures": figures,
        "matched_l0s": l0s,
        "matched": matched,
        "volumes": [hypervolumes(table, metric) for metric in metrics],
        "shown": shown,
        "runs": runs,
        "n_not_listed": len(finished) - sum(map(len, runs.values())),
        "left_out": left_out(finished),
        "has_extrapolated": any(value.extrapolated for value in spreads),
        "notes": [
            *_notes(finished, has_intervals=any(value.low is not None for value in spreads)),
            *dict.fromkeys(note for one in compared for note in one.notes),
        ],
    }


def _answers(compared: Sequence[Comparison]) -> dict[str, list[str]]:
    """Metric -> sentences; what is the same of several, as that there is nothing to compare, once."""
    answers: dict[str, list[str]] = {}
    for one in compared:
        if (lines := answer(one)) and lines not in answers.values():
            answers[one.label] = lines
    return answers


def _notes(finished: pd.DataFrame, *, has_intervals: bool) -> list[str]:
    """What a reader of the fronts should know about them."""
    notes = []
    runs = trained_here(finished)
    n_seeds, seeds_of_settings, noun = words.n_repeats(runs), runs.groupby("setting_hash").size(), words.noun(runs)
    if n_seeds < 2:
        over = "are over held-out documents alone" if has_intervals else "need a second seed, or sums per document"
        notes.append(f"One seed: how much these values vary from seed to seed is not known. Intervals {over}.")
    else:
        ranges = "ranges are 95 % intervals, in plots from the smallest to the largest"
        notes.append(f"{words.counted_repeats(finished)}: values are means over {noun}s; {ranges}.")
        if lacking := int((seeds_of_settings < n_seeds).sum()):
            notes.append(f"{lacking} of {len(seeds_of_settings)} settings have finished with fewer {noun}s; their means are over those.")
    if len(runs) < len(finished):
        notes.append(
            f"{words.counted(len(finished) - len(runs), 'published SAE')}, in rows and fronts of their own: on how many tokens they were "
            "trained is not known here, nor whether the held-out text was among them."
        )
    rates = finished.groupby("architecture")["lr"].nunique()
    if (rates > 1).any():
        named = ", ".join(words.label(name) for name in words.in_order(rates.index[rates > 1]))
        notes.append(
            f"The fronts of {named} run over several learning rates. Plots show the best of them; values at matched L0, bands and "
            "differences are read on other seeds or documents than they were chosen on, where there are any."
        )
    return notes


def _run_rows(finished: pd.DataFrame, shown: Iterable[str], linked: Collection[str], most: int) -> dict[str, list[dict[str, Any]]]:
    """Architecture -> its runs, repeats together. Of more than `most`: those `linked` from plots, and all repeats on a front."""
    settings = settings_with_front(finished)
    front = {run_id for runs in settings.loc[settings["on_front"], "run_ids"] for run_id in runs}
    # Repeats of a setting stay together: settings are sorted by their mean L0.
    l0s = finished.groupby("setting_hash")["l0"].transform("mean")
    ordered = finished.assign(_l0=l0s).sort_values(["_l0", "lr", "setting_hash", "seed", "data_seed"])
    if len(ordered) > most:
        of_fronts = ordered["setting_hash"].isin(ordered.loc[ordered["run_id"].isin(front), "setting_hash"])
        ordered = ordered[of_fronts | ordered["run_id"].isin(linked)]
    return {
        name: [_finished_row(row, front, shown) for row in rows.to_dict("records")] for name, rows in words.by_architecture(ordered).items()
    }


def _finished_row(row: Mapping[Any, Any], front: set[str], shown: Iterable[str]) -> dict[str, Any]:
    found = pd.notna(row["target_l0"]) and row["sparsity_parameter"] != "k"
    return _row(row) | {
        "coefficient": words.number(row["sparsity_value"] if found else None),
        "on_front": row["run_id"] in front,
        "metrics": [words.metric(name, row[name]) for name in shown],
        "train_time": words.duration(row["train_seconds"]) if pd.notna(row["train_seconds"]) else words.number(None),
    }


def _unfinished_row(row: Mapping[Any, Any]) -> dict[str, Any]:
    reason = _NO_REASON[row["status"]] if pd.isna(row["error"]) or row["status"] == "trained" else row["error"]
    return _row(row) | {"status": row["status"], "reason": reason}


def _row(row: Mapping[Any, Any]) -> dict[str, Any]:
    """What every run has. The order of the tokens is named where it is not the usual one: seed "0, order 1"."""
    order = f", order {row['data_seed']}" if pd.notna(row["data_seed"]) and row["data_seed"] != 0 else ""
    return {
        "run_id": row["run_id"],
        "sweep": row["sweep"],
        "architecture": words.label(row["architecture"]) if pd.notna(row["architecture"]) else words.number(None),
        "setting": words.setting(row),
        "seed": f"{row['seed']}{order}" if pd.notna(row["seed"]) else words.number(None),
        "lr": f"{row['lr']:.3g}" if pd.notna(row["lr"]) else words.number(None),
    }
