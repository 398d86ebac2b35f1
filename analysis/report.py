"""`report.html` and `report.md`, made from the records alone: no model, no GPU, no network.

The HTML is one file that works offline. Beside the Markdown lie the plots, as PNG and SVG, in `plots/`. The same records
give the same report, byte for byte.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from analysis import facts, style
from analysis.figures import Drawn, draw_plots, page_color
from analysis.pareto import L0_WINDOW, settings_with_front
from analysis.stored import StoredRun, StoredSweep, read_sweeps
from analysis.summary import MATCHED_L0S, Hypervolumes, Spread, at_matched_l0, compared_metrics, hypervolumes
from analysis.table import specs_of, table_of
from sae_core.records import write_text

SHOWN = {
    "l0": "L0",
    "fvu": "FVU",
    "delta_ce": "ΔCE",
    "ce_loss_recovered": "CE rec.",
    "kl": "KL",
    "dead_fraction": "dead",
}
"""Metrics in the report's table of runs, with their headings; `table.csv` has all of them."""


@dataclass(frozen=True, slots=True)
class RunRow:
    """A run in the report's table."""

    run_id: str
    setting: str
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
    figures: list[Drawn]
    matched: dict[str, dict[str, list[Spread | None]]]
    """Metric -> architecture -> value at each of MATCHED_L0S."""
    volumes: list[Hypervolumes]
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
    content = _content(sweeps, table, _comparisons(sweeps, table, out))
    for name, page in (("report.md", "report.md.jinja"), ("report.html", "report.html.jinja")):
        write_text(out / name, _environment(html=name.endswith("html")).get_template(page).render(content))
    return out / "report.html"


def _content(sweeps: Sequence[StoredSweep], table: pd.DataFrame, comparisons: list[Comparison]) -> dict[str, Any]:
    """Everything the templates show."""
    return {
        "title": " and ".join(dict.fromkeys(sweep.name for sweep in sweeps)),
        "statuses": {name: int((table["status"] == name).sum()) for name in ("finished", "trained", "failed", "missing")},
        "n_runs": len(table),
        "comparisons": comparisons,
        "unfinished": [_unfinished_row(row) for _, row in table[table["status"] != "finished"].iterrows()],
        "facts": facts.facts(sweeps, table),
        "stages": facts.stages(sweeps),
        "total_time": facts.total_time(sweeps),
        "specs": {name: spec for name, spec in specs_of(table).items() if name in table.columns},
        "definitions": {sweep.name: sweep.definition for sweep in sweeps if sweep.definition},
        "matched_l0s": MATCHED_L0S,
        "l0_window": L0_WINDOW,
        "n_seeds": int(table["seed"].nunique()),
        "shown": SHOWN,
        "looks": style.looks(table["architecture"].dropna()),
    }


def _comparisons(sweeps: Sequence[StoredSweep], table: pd.DataFrame, out: Path) -> list[Comparison]:
    runs = {run.run_id: run for sweep in sweeps for run in sweep.runs}
    finished = table[table["status"] == "finished"]
    hashes = list(finished["comparison_hash"].unique())
    return [
        _comparison(table[table["comparison_hash"] == name], runs, out / "plots", prefix=f"{place}-" if len(hashes) > 1 else "")
        for place, name in enumerate(hashes, start=1)
    ]


def _comparison(table: pd.DataFrame, runs: dict[str, StoredRun], plots: Path, prefix: str) -> Comparison:
    finished = table[table["status"] == "finished"]
    metrics = compared_metrics(table)
    return Comparison(
        title=facts.comparison_title(runs[finished["run_id"].iloc[0]]),
        figures=draw_plots(table, {run_id: runs[run_id].directory / "history.jsonl" for run_id in table["run_id"]}, plots, prefix),
        matched={metric: at_matched_l0(table, metric) for metric in metrics},
        volumes=[hypervolumes(table, metric) for metric in metrics],
        runs=_run_rows(finished),
        notes=_notes(finished),
    )


def _run_rows(finished: pd.DataFrame) -> dict[str, list[RunRow]]:
    settings = settings_with_front(finished)
    front = {run_id for runs in settings.loc[settings["on_front"], "run_ids"] for run_id in runs}
    # Seeds of a setting stay together: settings are sorted by their mean L0.
    l0s = finished.groupby("setting_hash")["l0"].transform("mean")
    ordered = finished.assign(_l0=l0s).sort_values(["_l0", "seed"])
    return {name: [_run_row(row, front) for _, row in rows.iterrows()] for name, rows in style.by_architecture(ordered).items()}


def _run_row(row: "pd.Series[Any]", front: set[str]) -> RunRow:
    return RunRow(
        run_id=row["run_id"],
        setting=_setting(row),
        seed=str(row["seed"]),
        lr=f"{row['lr']:g}" if pd.notna(row["lr"]) else style.number(None),
        on_front=row["run_id"] in front,
        metrics=tuple(style.metric(name, row[name]) for name in SHOWN),
        train_time=style.duration(row["train_seconds"]) if pd.notna(row["train_seconds"]) else style.number(None),
    )


def _unfinished_row(row: "pd.Series[Any]") -> dict[str, str]:
    reasons = {
        "failed": str(row["error"]) if pd.notna(row["error"]) else "no reason was recorded",
        "trained": "trained and exported; launch the sweep again to evaluate it",
        "missing": "left no record; launch the sweep again",
    }
    return {
        "run_id": row["run_id"],
        "architecture": style.label(str(row["architecture"])),
        "setting": _setting(row),
        "seed": str(row["seed"]),
        "status": row["status"],
        "reason": reasons[row["status"]],
    }


def _setting(row: "pd.Series[Any]") -> str:
    return f"{row['sparsity_parameter']} = {row['sparsity_value']:g}"


def _notes(finished: pd.DataFrame) -> list[str]:
    """What a reader of the fronts should know about them."""
    notes = []
    if finished["seed"].nunique() < 2:
        notes.append("One seed: how much these values vary from seed to seed is not known. Intervals need at least 2 seeds.")
    else:
        notes.append(f"{finished['seed'].nunique()} seeds: values are means over seeds, ranges go from the smallest to the largest.")
    rates = finished.groupby("architecture")["lr"].nunique()
    if (rates > 1).any():
        named = ", ".join(style.label(name) for name in rates.index[rates > 1])
        notes.append(f"The fronts of {named} run over several learning rates: they show the best of them.")
    for name, rows in style.by_architecture(finished).items():
        if rows["sparsity_value"].nunique() == 1:
            notes.append(f"{style.label(name)} has a single finished sparsity level: it is a point and not a front.")
    collapsed = finished[finished["l0"] == 0]["run_id"]
    if len(collapsed):
        notes.append(f"No latent is ever active (L0 0) in {', '.join(collapsed)}: on no front and in no plot.")
    return notes


def _environment(*, html: bool) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=html,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["label"] = style.label
    environment.filters["number"] = style.number
    environment.filters["page_color"] = page_color
    environment.filters["cell"] = lambda text: str(text).replace("|", "\\|").replace("\n", " ")
    return environment
