"""`report.html` and `report.md`, made from the records alone: no model, no GPU, no network.

The HTML is one file that works offline. Beside the Markdown lie the plots, as PNG and SVG, in `plots/`. The same records
give the same report, byte for byte.
"""

import html
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from analysis import facts, style
from analysis.figures import Drawn, draw_plots, page_color
from analysis.pareto import END_TOLERANCE, L0_WINDOW, settings_with_front
from analysis.stored import StoredRun, StoredSweep, read_sweeps
from analysis.summary import Hypervolumes, Spread, at_matched_l0, compared_metrics, hypervolumes, matched_l0s
from analysis.table import STATUSES, by_comparison, specs_of, table_of
from analysis.warnings import CHECKS, Check, Warned, warnings_of
from sae_core.files import write_text

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


@dataclass(frozen=True, slots=True)
class RunRow:
    """A run in the report's table."""

    run_id: str
    sweep: str
    setting: str
    coefficient: str
    """The sparsity coefficient at the end of training, where an L0 was asked for instead; a dash where there is none."""
    seed: str
    lr: str
    on_front: bool
    metrics: tuple[str, ...]
    """Values of the shown metrics, formatted."""
    train_time: str


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
    notes: list[str]
    """What to keep in mind when reading it."""


def write_report(results: Path | Sequence[Path], out: Path) -> Path:
    """Write the report of one sweep, or of several together.

    Args:
        results: sweep directories.
        out: where `report.html`, `report.md` and `plots/` go.

    Returns:
        Path of `report.html`.

    Raises:
        ConfigError: a directory is not a sweep's, or holds no run.
    """
    out = Path(out)
    sweeps = read_sweeps(results)
    table = table_of(sweeps)
    content = _content(sweeps, table, out)
    for name, page in (("report.md", "report.md.jinja"), ("report.html", "report.html.jinja")):
        write_text(out / name, _environment(autoescape=name.endswith("html")).get_template(page).render(content))
    return out / "report.html"


def _content(sweeps: Sequence[StoredSweep], table: pd.DataFrame, out: Path) -> dict[str, Any]:
    """Everything the templates show."""
    runs = _runs(sweeps)
    titles = _titles(runs, table)
    return {
        "title": " and ".join(dict.fromkeys(sweep.name for sweep in sweeps)),
        "statuses": {name: int((table["status"] == name).sum()) for name in STATUSES},
        "n_runs": len(table),
        "several_sweeps": len(sweeps) > 1,
        "comparisons": _comparisons(runs, table, titles, out),
        "warnings": _warnings(table, titles),
        "checks": [check.title[0].lower() + check.title[1:] for check in CHECKS.values()],
        "unfinished": [_unfinished_row(row) for _, row in table[table["status"] != "finished"].iterrows()],
        "facts": facts.facts(sweeps, table),
        "stages": facts.stages(sweeps),
        "total_time": facts.total_time(sweeps),
        "specs": {name: spec for name, spec in specs_of(table).items() if name in table.columns},
        "definitions": {sweep.name: sweep.definition for sweep in sweeps if sweep.definition},
        "l0_window": L0_WINDOW,
        "end_tolerance": round(100 * END_TOLERANCE),
        "n_seeds": int(table["seed"].nunique()),
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


@dataclass(frozen=True, slots=True)
class Title:
    """Names of a comparison."""

    full: str
    """What its runs have in common."""
    short: str
    """Those parts of it in which the comparisons of the report differ; empty where there is only one."""


def _titles(runs: Mapping[str, StoredRun], table: pd.DataFrame) -> dict[str, Title]:
    """Per comparison hash. Where all else is the same for two, the hash of the held-out text tells them apart."""
    first = {name: own.iloc[0] for name, own in by_comparison(table).items()}
    parts = {name: facts.comparison_parts(runs[row["run_id"]]) for name, row in first.items()}
    for name in [name for name, own in parts.items() if list(parts.values()).count(own) > 1]:
        parts[name] = [*parts[name], f"held-out text {table.loc[table['comparison_hash'] == name, 'eval_hash'].dropna().min()}"]
    common = set.intersection(*map(set, parts.values()))
    return {name: Title(" · ".join(own), " · ".join(part for part in own if part not in common)) for name, own in parts.items()}


def _warnings(table: pd.DataFrame, titles: Mapping[str, Title]) -> list[tuple[Check, list[tuple[str, str]]]]:
    """Every check that found something, with (whose runs, what)."""
    found = warnings_of(table)

    def place(warned: Warned) -> str:
        return ", ".join(part for part in (style.label(warned.architecture), titles[warned.comparison].short) if part)

    told = {kind: [(place(warned), warned.text) for warned in found if warned.kind == kind] for kind in CHECKS}
    return [(CHECKS[kind], texts) for kind, texts in told.items() if texts]


def _comparisons(runs: Mapping[str, StoredRun], table: pd.DataFrame, titles: Mapping[str, Title], out: Path) -> list[Comparison]:
    with_results = {name: own for name, own in by_comparison(table).items() if (own["status"] == "finished").any()}
    histories = {run_id: run.directory / "history.jsonl" for run_id, run in runs.items()}
    return [
        _comparison(own, titles[name], histories, out / "plots", prefix=f"{place}-" if len(with_results) > 1 else "")
        for place, (name, own) in enumerate(with_results.items(), start=1)
    ]


def _comparison(table: pd.DataFrame, title: Title, histories: Mapping[str, Path], plots: Path, prefix: str) -> Comparison:
    finished = table[table["status"] == "finished"]
    metrics, l0s = compared_metrics(table), matched_l0s(table)
    shown = {name: heading for name, heading in SHOWN.items() if name in finished and finished[name].notna().any()}
    return Comparison(
        title=title.full,
        short_title=title.short or "Frontiers",
        n_seeds=finished["seed"].nunique(),
        figures=draw_plots(table, histories, plots, prefix),
        matched_l0s=l0s,
        matched={metric: at_matched_l0(table, metric, l0s) for metric in metrics},
        volumes=[hypervolumes(table, metric) for metric in metrics],
        shown=shown,
        runs=_run_rows(finished, shown),
        notes=_notes(finished),
    )


def _run_rows(finished: pd.DataFrame, shown: Iterable[str]) -> dict[str, list[RunRow]]:
    settings = settings_with_front(finished)
    front = {run_id for runs in settings.loc[settings["on_front"], "run_ids"] for run_id in runs}
    # Seeds of a setting stay together: settings are sorted by their mean L0.
    l0s = finished.groupby("setting_hash")["l0"].transform("mean")
    ordered = finished.assign(_l0=l0s).sort_values(["_l0", "lr", "setting_hash", "seed"])
    per_architecture = style.by_architecture(ordered)
    return {name: [_run_row(row, front, shown) for _, row in rows.iterrows()] for name, rows in per_architecture.items()}


def _run_row(row: "pd.Series[Any]", front: set[str], shown: Iterable[str]) -> RunRow:
    coefficient = row["sparsity_value"] if pd.notna(row["target_l0"]) and row["sparsity_parameter"] != "k" else None
    return RunRow(
        run_id=row["run_id"],
        sweep=row["sweep"],
        setting=style.setting(row),
        coefficient=style.number(coefficient),
        seed=str(row["seed"]),
        lr=_lr(row),
        on_front=row["run_id"] in front,
        metrics=tuple(style.metric(name, row[name]) for name in shown),
        train_time=style.duration(row["train_seconds"]) if pd.notna(row["train_seconds"]) else style.number(None),
    )


def _unfinished_row(row: "pd.Series[Any]") -> dict[str, str]:
    reasons = {
        "failed": str(row["error"]) if pd.notna(row["error"]) else "no reason was recorded",
        "pruned": str(row["error"]) if pd.notna(row["error"]) else "stopped early: others did better at its L0",
        "trained": "trained and exported; launch the sweep again to evaluate it",
        "missing": "left no record; launch the sweep again",
    }
    return {
        "run_id": row["run_id"],
        "sweep": row["sweep"],
        "architecture": style.label(str(row["architecture"])),
        "setting": style.setting(row),
        "seed": str(row["seed"]),
        "lr": _lr(row),
        "status": row["status"],
        "reason": reasons[row["status"]],
    }


def _lr(row: "pd.Series[Any]") -> str:
    return f"{row['lr']:.3g}" if pd.notna(row["lr"]) else style.number(None)


def _notes(finished: pd.DataFrame) -> list[str]:
    """What a reader of the fronts should know about them."""
    notes = []
    n_seeds, seeds_of_settings = finished["seed"].nunique(), finished.groupby("setting_hash").size()
    if n_seeds < 2:
        notes.append("One seed: how much these values vary from seed to seed is not known. Intervals need at least 2 seeds.")
    else:
        notes.append(f"{n_seeds} seeds: values are means over seeds, ranges go from the smallest to the largest.")
        if lacking := int((seeds_of_settings < n_seeds).sum()):
            notes.append(f"{lacking} of {len(seeds_of_settings)} settings have finished with fewer seeds; their means are over those.")
    rates = finished.groupby("architecture")["lr"].nunique()
    if (rates > 1).any():
        named = ", ".join(style.label(name) for name in style.looks(rates.index[rates > 1]))
        notes.append(f"The fronts of {named} run over several learning rates: they show the best of them.")
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
