"""Data of the report's explorer: the table, column by column, as one block of JSON inside the page.

What is the same for all runs is stored once, texts are stored once per distinct value, and numbers with DIGITS digits, so that thousands
of runs stay a small file.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.markers import MarkerStyle

from analysis import words
from analysis.columns import COSTS
from analysis.plots import style
from analysis.report.figures import PAGE_COLORS
from analysis.statistics import matched
from analysis.statistics.matched import compared_metrics
from analysis.table import by_comparison, specs_of
from sae_core.records import STATES, MetricSpec

DIGITS = 6
"""Digits of a number."""
WIDE = 8.0
"""A column whose values span a larger factor starts on a logarithmic axis."""
MOST_LINES = 12
"""Fronts that the figure starts with: comparisons beyond them start hidden."""
MOST_LEVELS = 24
"""Distinct values of a column that can be filtered by."""

LABELS = {
    "run_id": "Run id",
    "architecture": "Architecture",
    "setting": "Setting",
    "comparison": "Compared",
    "status": "Status",
    "sweep": "Sweep",
    "variant": "Variant",
    "model": "Model",
    "hook_point": "Hook point",
    "hook_out": "Hook point written to",
    "dataset": "Dataset",
    "d_sae": "Latents d_sae",
    "context_size": "Context size",
    "normalize_activations": "Normalization",
    "target_l0": "Target L0",
    "sparsity_value": "Coefficient or k",
    "lr": "Learning rate",
    "batch_size": "Batch size",
    "seed": "Seed",
    "data_seed": "Order of tokens",
    "launch": "Launch",
    "train_tokens": "Training tokens",
    "train_flops": "Training FLOPs",
    "parameters": "Parameters",
    "train_seconds": "Training time (s)",
    "tokens_per_second": "Training tokens per second",
    "l0_error": "L0 error",
    "l0": "L0 (active latents per token)",
}
"""Names of columns that no metric's spec describes, or not as an axis should."""
_HEADINGS = {"lr": "lr", "seed": "seed", "train_seconds": "training (s)", "target_l0": "target"}
"""Shorter names, for the table of runs."""
FACETS = (
    *("architecture", "comparison", "model", "hook_point", "hook_out", "dataset", "d_sae", "context_size", "normalize_activations"),
    *("target_l0", "lr", "batch_size", "seed", "data_seed", "variant", "sweep", "launch", "status"),
)
"""Columns to filter by, where runs differ in them."""
_IN_NAMES = ("architecture", "comparison", "target_l0", "variant", "status")
"""Facets that a point's name says already, or that it need not."""
_FIRST = ("run_id", "architecture", "comparison", "setting", "setting_hash", "seed", "status")
_LEFT_OUT = {"comparison_hash", "activations_hash", "eval_hash", "error", "finished_at", "eval_tokens"}
_COSTS = ("train_tokens", "train_seconds", *COSTS)
"""What is better to have less of, so that fronts against it are drawn."""
_FORMATS = {
    "l0": "tenths",
    "dead_fraction": "share",
    "l0_error": "signed share",
    "lr": "short",
    "sparsity_value": "short",
    "target_l0": "short",
}


def explorer_data(table: pd.DataFrame, names: Mapping[str, words.Title], shown: Mapping[str, str]) -> dict[str, Any]:
    """Everything the explorer knows.

    Args:
        table: from `load_table`.
        names: comparison hash -> its title.
        shown: metrics of the table of runs, with short headings.
    """
    comparisons = [names[name].short for name in table["comparison_hash"]]
    rows = table.assign(comparison=comparisons, setting=[words.setting(row) for row in table.to_dict("records")])
    architectures = words.in_order(rows["architecture"].dropna())
    orders = {"architecture": architectures, "comparison": list(dict.fromkeys(title.short for title in names.values())), "status": STATES}
    specs, n_shown = specs_of(table), max(MOST_LINES // max(len(architectures), 1), 1)
    columns, same = {}, {}
    for name in dict.fromkeys([*_FIRST, *shown, *rows.columns]):
        if name not in rows or name in _LEFT_OUT or rows[name].isna().all():
            continue
        if name in _FIRST or name in shown or rows[name].nunique(dropna=False) > 1:
            columns[name] = _column(rows[name], name, specs.get(name), shown.get(name, ""), orders.get(name, ()))
        else:
            same[name] = _plain(rows[name].iloc[0])
    facets = {name: levels for name in FACETS if name in columns and (levels := _facet(rows[name], name, orders.get(name, ())))}
    return {
        "columns": columns,
        "same": same,
        "facets": facets,
        "told": [name for name in facets if name not in _IN_NAMES],
        "looks": {name: _look(look) for name, look in style.looks(architectures).items()},
        "shown": [name for name in shown if name in columns],
        "hidden": {"comparison": orders["comparison"][n_shown:]},
        "repeat": words.noun(table),
        "name": "-".join(dict.fromkeys(table["sweep"])),
        "x": "l0",
        "y": next((name for name in ("fvu", *shown) if name in columns and name != "l0"), ""),
        **_uncertainty(table, names),
    }


def _uncertainty(table: pd.DataFrame, names: Mapping[str, words.Title]) -> dict[str, Any]:
    """`intervals`: metric -> run id or setting hash -> low, high, and how many runs it is of; `covers`: what those of one run and of
    several are about; `bands`: metric -> comparison -> architecture -> the interval of a front along L0, and how many runs it is of."""
    intervals: dict[str, dict[str, tuple[float | None, float | None, int]]] = {}
    bands: dict[str, dict[str, dict[str, Any]]] = {}
    covers = {}
    for comparison, rows in by_comparison(table[table["status"] == "finished"]).items():
        sizes = rows.groupby("setting_hash").size()
        for metric in compared_metrics(rows):
            known = intervals.setdefault(metric, {})
            for key, estimate in (matched.of_runs(rows, metric) | matched.settings_of(rows, metric)).items():
                if estimate.low is not None and estimate.high is not None:
                    n_runs = int(sizes.get(key, 1))
                    known[key] = rounded(estimate.low), rounded(estimate.high), n_runs
                    covers["one" if n_runs == 1 else "several"] = estimate.covers
            per_architecture = {
                architecture: {**{name: [rounded(end) for end in getattr(band, name)] for name in ("l0", "low", "high")}}
                | {"n_runs": int((rows["architecture"] == architecture).sum())}
                for architecture, band in matched.bands(rows, metric).items()
                if None not in band.low
            }
            bands.setdefault(metric, {})[names[comparison].short] = per_architecture
    return {"intervals": intervals, "covers": covers, "bands": bands}


def script(data: Mapping[str, Any]) -> str:
    """JSON that may stand inside a script element: nothing in it can end the element or begin a comment."""
    return json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def rounded(value: float) -> float | None:
    """A number with DIGITS digits; None where it is not finite."""
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None


def _column(values: pd.Series, name: str, spec: MetricSpec | None, heading: str, order: Sequence[str]) -> dict[str, Any]:
    label = LABELS.get(name) or (style.axis_label(spec, name).replace("\n", " ") if spec else name.replace("_", " "))
    column: dict[str, Any] = {"label": label, "heading": heading or _HEADINGS.get(name, label)}
    if not pd.api.types.is_numeric_dtype(values):
        levels = _levels(values, order)
        places = {level: place for place, level in enumerate(levels)}
        return {**column, "levels": levels, "index": [places.get(value) for value in values]}
    whole = pd.api.types.is_integer_dtype(values)
    numbers = [_plain(value) for value in values]
    known = [number for number in numbers if number is not None]
    is_wide = bool(known) and min(known) > 0 and max(known) > WIDE * min(known)
    return {
        **column,
        "format": _FORMATS.get(name, "whole" if whole else "number"),
        "better": {"min": 1, "max": -1}.get(spec.direction if spec else "min" if name in _COSTS else "", 0),
        "log": name == "l0" or is_wide,
        "kind": "Metrics" if spec or name == "l0_error" else "Settings" if name in FACETS or name == "sparsity_value" else "Training",
        "values": numbers,
    }


def _facet(values: pd.Series, name: str, order: Sequence[str]) -> list[Any]:
    """What may be filtered by; nothing where runs do not differ, or nearly all do. Architectures and comparisons are a legend, too."""
    is_number = pd.api.types.is_numeric_dtype(values)
    levels: list[Any] = [_plain(level) for level in sorted(values.dropna().unique())] if is_number else _levels(values, order)
    levels += [None] * bool(values.isna().any())
    most = len(levels) if name == "comparison" else MOST_LEVELS
    return levels if 1 < len(levels) <= most or name == "architecture" else []


def _levels(values: pd.Series, order: Sequence[str]) -> list[str]:
    """Distinct texts, in an order where there is one, or else as they come."""
    levels = [str(level) for level in values.dropna().unique()]
    return sorted(levels, key=order.index) if order else levels


def _plain(value: Any) -> Any:
    if pd.isna(value):
        return None
    if isinstance(value, str):
        return value
    return int(value) if isinstance(value, int) or float(value).is_integer() else rounded(float(value))


def _look(look: style.Look) -> dict[str, Any]:
    """Its color, and the outline of its marker in a box of size 1."""
    marker = MarkerStyle(look.marker)
    corners: Any = marker.get_path().transformed(marker.get_transform()).to_polygons()[0]
    return {"label": look.label, "color": PAGE_COLORS.get(look.color, look.color), "shape": corners.round(2).tolist()}
