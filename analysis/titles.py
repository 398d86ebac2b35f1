"""What the runs of each comparison have in common, and in what comparisons differ, in words: for the report and the terminal."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis.style import count
from analysis.table import COMPARISONS, by_comparison
from sae_core.records import flat
from sae_core.validation import at

_NAMED = ("activations.model.name", "activations.model.hook_point", "d_sae", "activations.train_tokens")
"""Fields that every title names, where runs have them."""


@dataclass(frozen=True, slots=True)
class Title:
    """Names of a comparison."""

    full: str
    """What its runs have in common."""
    common: str
    """That part of it which the runs of all comparisons have in common; empty where there is nothing."""
    short: str
    """Those parts of it in which the comparisons of the table differ; empty where there is only one."""


def titles(table: pd.DataFrame) -> dict[str, Title]:
    """Comparison hash -> its names. Where all else is the same for two, the hash of the held-out text tells them apart."""
    comparisons = by_comparison(table)
    configs = {name: table.attrs.get(COMPARISONS, {}).get(name) or {} for name in comparisons}
    parts = {name: [*_parts(config), *_further(config, configs)] for name, config in configs.items()}
    parts = {name: own or [str(configs[name].get("sweep") or f"comparison {name}")] for name, own in parts.items()}
    for name in [name for name, own in parts.items() if list(parts.values()).count(own) > 1]:
        texts = comparisons[name]["eval_hash"].dropna() if "eval_hash" in table else pd.Series(dtype=str)
        parts[name] = [*parts[name], f"held-out text {texts.min()}" if len(texts) else f"comparison {name}"]
    common = set.intersection(*map(set, parts.values())) if len(parts) > 1 else set()
    return {
        name: Title(
            full=" · ".join(own),
            common=" · ".join(part for part in own if part in common),
            short=" · ".join(part for part in own if part not in common) if len(parts) > 1 else "",
        )
        for name, own in parts.items()
    }


def _parts(config: Mapping[str, Any]) -> list[str]:
    model, hook_point, d_sae, tokens = (at(config, path) for path in _NAMED)
    parts = [model, hook_point, f"d_sae {d_sae}" if d_sae else None, f"{count(tokens)} training tokens" if tokens else None]
    return [str(part) for part in parts if part]


def _further(config: Mapping[str, Any], configs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The other fields of the activations in which the comparisons differ, e.g. "context_size 128"."""
    fields = [flat({"activations": other.get("activations") or {}}) for other in configs.values()]
    names = dict.fromkeys(name for other in fields for name in other if name not in _NAMED)
    varied = [name for name in names if len({json.dumps(other.get(name)) for other in fields}) > 1]
    own = flat({"activations": config.get("activations") or {}})
    return [f"{name.rpartition('.')[2]} {_text(own[name])}" for name in varied if own.get(name) is not None]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
