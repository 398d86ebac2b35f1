"""Results in words, for report and terminal: names of architectures, settings, repeats and comparisons; numbers."""

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis.columns import PUBLISHED
from analysis.estimates import Estimate
from analysis.table import COMPARISONS, by_comparison
from sae_core.records import field_name, flat

TERMINAL_WIDTH = 100
"""Columns that text for the terminal takes at most."""

LISTED = 6
"""Items that a sentence names; further ones are counted."""

REPEAT = "repeat"
"""Column that `with_repeats` adds."""

EXTRAPOLATED = "*"
"""Mark of a value that lies beyond an end of its front."""

_LABELS = {
    "standard": "Standard (L1)",
    "gated": "Gated",
    "p_anneal": "P-annealing",
    "topk": "TopK",
    "abstopk": "AbsTopK",
    "hierarchical_topk": "HierarchicalTopK",
    "batchtopk": "BatchTopK",
    "jumprelu": "JumpReLU",
    "matryoshka_batchtopk": "Matryoshka BatchTopK",
    "matching_pursuit": "Matching pursuit",
}
_IN_EVERY_TITLE = (
    "activations.model.name",
    "activations.model.hook_point",
    "activations.model.hook_out",
    "d_sae",
    "activations.train_tokens",
)


@dataclass(frozen=True, slots=True)
class Title:
    """Names of a comparison."""

    full: str
    """What its runs have in common."""
    common: str
    """That part of it which the runs of all comparisons have in common; empty where there is nothing."""
    short: str
    """Those parts of it in which the comparisons of the table differ; empty where there is only one."""


def label(architecture: str) -> str:
    """A reader's name for an architecture, and for that of published SAEs: "JumpReLU (published)"."""
    name, bracket, publisher = architecture.partition(f" ({PUBLISHED}")
    if bracket:
        return f"{label(name)}{bracket}{publisher}"
    return _LABELS.get(architecture) or (architecture.replace("_", " ").capitalize() if architecture.islower() else architecture)


def arm(name: str) -> str:
    """A reader's name for an arm of a comparison: that of an architecture, or what it is called."""
    return label(name) if re.fullmatch(rf"[a-z][a-z0-9_]*( \({PUBLISHED}.*)?", name) else name


def in_order(architectures: Iterable[str]) -> list[str]:
    """Architectures in reading order: ours as always, further ones by name."""
    names = set(architectures)
    return [*(name for name in _LABELS if name in names), *sorted(names - set(_LABELS))]


def by_architecture(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The table's rows per architecture, in reading order."""
    groups = {str(name): rows for name, rows in table.groupby("architecture")}
    return {name: groups[name] for name in in_order(groups)}


def setting(row: "Mapping[Any, Any] | pd.Series[Any]", *, with_lr: bool = False) -> str:
    """A reader's name for what a run was asked for: "k=16", "l1_coefficient=0.5 (bandwidth=0.1)" or "target L0 32"; of a published SAE
    the end of its name.

    Args:
        row: of the table, or a mean over seeds.
        with_lr: name the learning rate too, where settings differ in it.
    """
    if isinstance(origin := row.get(PUBLISHED), str):
        return "/".join(origin.rsplit("/", 2)[1:])
    if pd.notna(row["target_l0"]):
        requested = f"target L0 {row['target_l0']:g}"
    elif pd.notna(row["sparsity_parameter"]) and pd.notna(row["sparsity_value"]):
        requested = f"{row['sparsity_parameter']}={row['sparsity_value']:g}"
    else:
        requested = number(None)  # the run left no record, and nothing says what it was asked for
    further = ", ".join(part for part in (f"lr={row['lr']:.3g}" if with_lr else "", row["variant"]) if part)
    return f"{requested} ({further})" if further else requested


def number(value: float | None) -> str:
    """A number for a table: four digits, no exponent for ordinary sizes; an en dash for a missing one."""
    if value is None or pd.isna(value) or not math.isfinite(value):
        return "–"
    size = abs(value)
    if size and (size < 1e-4 or size >= 1e6):
        return f"{value:.3g}"
    return f"{value:.{4 if size < 1 else max(3 - int(math.log10(size)), 0)}f}"


def percent(share: float) -> str:
    """A probability in whole percent, or how near it is to certain: "62 %", "> 99.9 %", "< 0.1 %"."""
    if share > 0.995:
        return "> 99.9 %" if share > 0.999 else f"{100 * share:.1f} %"
    if share < 0.005:
        return "< 0.1 %" if share < 0.001 else f"{100 * share:.1f} %"
    return f"{100 * share:.0f} %"


def shortened(text: str) -> str:
    """A hash as its first 12 digits; any other text as it is."""
    return text[:12] if re.fullmatch("[0-9a-f]{13,}", text) else text


def interval(estimate: Estimate | None) -> str:
    """A value with its interval: "0.0800 [0.0761, 0.0842]", or where it is relative "-9.0 % [-12.1, -5.8]"; a `*` marks extrapolation.

    Without an interval, the value alone; for None an en dash. What the interval is about: `Estimate.covers`.
    """
    if estimate is None:
        return number(None)
    shown = (lambda part: f"{100 * part:+.1f}") if estimate.relative else number
    value = f"{shown(estimate.value)}{' %' if estimate.relative else ''}{EXTRAPOLATED if estimate.extrapolated else ''}"
    return value if estimate.low is None or estimate.high is None else f"{value} [{shown(estimate.low)}, {shown(estimate.high)}]"


def metric(name: str, value: float | None) -> str:
    """A metric's value for a reader: L0 with one decimal, its error and shares of the dictionary in percent, the rest with four digits."""
    formats = {"l0": "{:.1f}", "l0_error": "{:+.1%}", "dead_fraction": "{:.1%}"}
    if name not in formats or number(value) == number(None):
        return number(value)
    return formats[name].format(value).replace("%", " %")


def count(value: float) -> str:
    """A count in a reader's words: 1000000 -> "1 M", 100352 -> "100 k"."""
    for size, unit in ((1e9, " B"), (1e6, " M"), (1e3, " k")):
        if value >= size * 0.9995:
            return f"{value / size:.3g}{unit}"
    return f"{value:.0f}"


def duration(seconds: float) -> str:
    """Seconds as "12.3 s", "4 min 10 s" or "3 h 20 min"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{int(seconds // 60)} min {int(seconds % 60)} s" if seconds < 3600 else f"{minutes // 60} h {minutes % 60} min"


def counted(amount: int, noun: str) -> str:
    """E.g. "3 seeds"."""
    return f"{amount:,} {noun}{'s' * (amount != 1)}"


def listed(items: Iterable[str]) -> str:
    """E.g. "a, b and c", or of many items "a, b, c, d, e and 4 more"."""
    *first, last = items
    if len(first) >= LISTED:
        first, last = first[: LISTED - 1], f"{len(first) - LISTED + 2} more"
    return f"{', '.join(first)} and {last}" if first else last


def with_repeats(table: pd.DataFrame) -> pd.DataFrame:
    """The table with a column REPEAT that is equal for runs of one seed and one order of the tokens."""
    orders = table["data_seed"].astype("string").fillna("") if "data_seed" in table else ""
    return table.assign(**{REPEAT: table["seed"].astype("string").fillna("") + "/" + orders})


def n_repeats(table: pd.DataFrame) -> int:
    """How many pairs of a seed and an order the table has; published SAEs have none."""
    trained = table[table["seed"].notna()]
    return int(with_repeats(table if trained.empty else trained)[REPEAT].nunique())


def noun(table: pd.DataFrame) -> str:
    """What a repeat is: "seed", "order" where only the order of the tokens differs, or "repeat" where both do."""
    orders = table["data_seed"].nunique() if "data_seed" in table else 0
    return "seed" if orders < 2 else "order" if table["seed"].nunique() < 2 else "repeat"


def counted_repeats(table: pd.DataFrame) -> str:
    """E.g. "3 seeds", "2 orders of the tokens" or "6 repeats (3 seeds, 2 orders of the tokens)"."""
    kind, amount = noun(table), n_repeats(table)
    if kind == "seed":
        return counted(amount, "seed")
    orders = f"{counted(table['data_seed'].nunique(), 'order')} of the tokens"
    return orders if kind == "order" else f"{counted(amount, 'repeat')} ({counted(table['seed'].nunique(), 'seed')}, {orders})"


def titles(table: pd.DataFrame, groups: Mapping[str, pd.DataFrame] | None = None) -> dict[str, Title]:
    """Comparison hash -> its names. Where all else is the same for two, the hash of the held-out text tells them apart.

    Args:
        groups: other rows of the table to name, by a hash or by what takes its place.
    """
    comparisons = by_comparison(table) if groups is None else groups
    known = table.attrs.get(COMPARISONS, {})
    configs = {name: known.get(name) or _config_of(rows) for name, rows in comparisons.items()}
    fields = {
        name: flat({"d_sae": config.get("d_sae"), "activations": config.get("activations") or {}}) for name, config in configs.items()
    }
    varied = [
        field
        for field in dict.fromkeys(field for own in fields.values() for field in own if field not in _IN_EVERY_TITLE)
        if len({json.dumps(own.get(field)) for own in fields.values()}) > 1
    ]
    parts = {name: _parts(own, varied) or [str(configs[name].get("sweep") or f"comparison {name}")] for name, own in fields.items()}
    for name in [name for name, own in parts.items() if list(parts.values()).count(own) > 1]:
        texts = comparisons[name]["eval_hash"].dropna() if "eval_hash" in table else pd.Series(dtype=str)
        parts[name] = [*parts[name], f"held-out text {shortened(texts.min())}" if len(texts) else f"comparison {name}"]
    common = set.intersection(*map(set, parts.values())) if len(parts) > 1 else set()
    return {
        name: Title(
            full=" · ".join(own),
            common=" · ".join(part for part in own if part in common),
            short=" · ".join(part for part in own if part not in common) if len(parts) > 1 else "",
        )
        for name, own in parts.items()
    }


def _config_of(rows: pd.DataFrame) -> dict[str, Any]:
    """What a table without configs says about rows: values that are the same in all of them."""

    def common(column: str) -> Any:
        values = rows[column].dropna().unique().tolist() if column in rows else []
        return values[0] if len(values) == 1 else None

    model = {"name": common("model"), **{name: common(name) for name in ("hook_point", "hook_out", "context_size")}}
    return {"d_sae": common("d_sae"), "activations": {"model": model, "train_tokens": common("train_tokens")}}


def _parts(fields: Mapping[str, Any], varied: Iterable[str]) -> list[str]:
    """What a title says, e.g. ["demo", "blocks.2.hook_resid_post", "d_sae 1024", "1 M training tokens", "context_size 128"]."""
    model, hook_point, hook_out, d_sae, tokens = (fields.get(field) for field in _IN_EVERY_TITLE)
    where = f"{hook_point} to {hook_out}" if hook_out else hook_point
    parts = [model, where, f"d_sae {d_sae}" if d_sae else "", f"{count(tokens)} training tokens" if tokens else ""]
    for name, value in ((field_name(field), fields.get(field)) for field in varied):
        parts += [] if value is None else [f"{name} {value if isinstance(value, str) else json.dumps(value)}"]
    return [str(part) for part in parts if part]
