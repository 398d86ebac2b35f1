"""The rows of the report's tables of runs: formatted, and of a large sweep those that its plots show."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis import style
from analysis.pareto import settings_with_front
from analysis.thinning import MOST_ROWS, MOST_UNFINISHED

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


def run_rows(finished: pd.DataFrame, shown: Iterable[str], linked: Collection[str]) -> tuple[dict[str, list[RunRow]], int]:
    """Architecture -> its runs, repeats of a setting together; and how many are left out, of more than MOST_ROWS.

    Args:
        shown: columns of metrics.
        linked: runs that plots link to: they are listed in any case, and all repeats of settings on the front.
    """
    settings = settings_with_front(finished)
    front = {run_id for runs in settings.loc[settings["on_front"], "run_ids"] for run_id in runs}
    # Repeats of a setting stay together: settings are sorted by their mean L0.
    l0s = finished.groupby("setting_hash")["l0"].transform("mean")
    ordered = finished.assign(_l0=l0s).sort_values(["_l0", "lr", "setting_hash", "seed", "data_seed"])
    if len(ordered) > MOST_ROWS:
        of_fronts = ordered["setting_hash"].isin(ordered.loc[ordered["run_id"].isin(front), "setting_hash"])
        ordered = ordered[of_fronts | ordered["run_id"].isin(linked)]
    per_architecture = style.by_architecture(ordered)
    listed = {name: [_run_row(row, front, shown) for row in rows.to_dict("records")] for name, rows in per_architecture.items()}
    return listed, len(finished) - len(ordered)


def _run_row(row: Mapping[Any, Any], front: set[str], shown: Iterable[str]) -> RunRow:
    coefficient = row["sparsity_value"] if pd.notna(row["target_l0"]) and row["sparsity_parameter"] != "k" else None
    return RunRow(
        run_id=row["run_id"],
        sweep=row["sweep"],
        setting=style.setting(row),
        coefficient=style.number(coefficient),
        seed=_seed(row),
        lr=_lr(row),
        on_front=row["run_id"] in front,
        metrics=tuple(style.metric(name, row[name]) for name in shown),
        train_time=style.duration(row["train_seconds"]) if pd.notna(row["train_seconds"]) else style.number(None),
    )


def unfinished_rows(table: pd.DataFrame) -> tuple[list[dict[str, str]], int]:
    """The runs that are not finished, at most MOST_UNFINISHED; and how many more there are."""
    unfinished = table[table["status"] != "finished"]
    return [_unfinished_row(row) for row in unfinished.head(MOST_UNFINISHED).to_dict("records")], max(len(unfinished) - MOST_UNFINISHED, 0)


def _unfinished_row(row: Mapping[Any, Any]) -> dict[str, str]:
    reasons = {
        "failed": str(row["error"]) if pd.notna(row["error"]) else "no reason was recorded",
        "pruned": str(row["error"]) if pd.notna(row["error"]) else "stopped early: others did better at its L0",
        "trained": "trained and exported; launch the sweep again to evaluate it",
        "missing": str(row["error"]) if pd.notna(row["error"]) else "left no record; launch the sweep again",
    }
    return {
        "run_id": row["run_id"],
        "sweep": row["sweep"],
        "architecture": style.label(row["architecture"]) if pd.notna(row["architecture"]) else style.number(None),
        "setting": style.setting(row),
        "seed": _seed(row),
        "lr": _lr(row),
        "status": row["status"],
        "reason": reasons[row["status"]],
    }


def _lr(row: Mapping[Any, Any]) -> str:
    return f"{row['lr']:.3g}" if pd.notna(row["lr"]) else style.number(None)


def _seed(row: Mapping[Any, Any]) -> str:
    """The seed, and the order of the tokens where it is not the usual one: "0" or "0, order 1"."""
    if pd.isna(row["seed"]):
        return style.number(None)
    order = row["data_seed"]
    return f"{row['seed']}, order {order}" if pd.notna(order) and order != 0 else str(row["seed"])
