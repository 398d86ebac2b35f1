"""What sets the runs of one architecture apart, beside their sparsity, learning rate and seed: `bandwidth=0.5`."""

import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from analysis.results import StoredRun
from sae_core.records import flat

_IN_OTHER_COLUMNS = {"seed", "data_seed", "train.lr", "sae.architecture", "sae.target_l0"}
"""Fields that the table has a column for."""

_Fields = dict[str, Any]


def variants(runs: Sequence[StoredRun], comparisons: Sequence[str]) -> list[str]:
    """A run's values of the fields in which the runs of its architecture and comparison differ; empty where they do not.

    Args:
        comparisons: the `comparison_hash` of each run.

    Returns:
        One text a run, e.g. "bandwidth=0.5, batch_size=4096". Fields that a run's version of the config did not have are left out.
    """
    fields = [{sys.intern(name): value for name, value in flat(run.config).items()} for run in runs]
    groups: dict[tuple[Any, str], list[int]] = defaultdict(list)
    for place, (run, comparison) in enumerate(zip(runs, comparisons, strict=True)):
        groups[run.record.architecture if run.record else run.planned.get("architecture"), comparison].append(place)
    texts = [""] * len(runs)
    for places in groups.values():
        parameters = {_parameter(runs[place]) for place in places}
        varied = _varied([fields[place] for place in places], parameters)
        for place in places:
            texts[place] = ", ".join(f"{name.rpartition('.')[2]}={_text(fields[place][name])}" for name in varied if name in fields[place])
    return texts


def _varied(configs: Sequence[_Fields], parameters: set[str]) -> list[str]:
    """Names of the fields that differ. A sparsity parameter counts only if it differs between runs asked for one L0 and alike otherwise."""
    names = [name for name in dict.fromkeys(name for config in configs for name in config) if name not in _IN_OTHER_COLUMNS]
    varied = {name for name in names if name not in parameters and len(_distinct(configs, name)) > 1}
    alike: dict[tuple[str, ...], list[_Fields]] = defaultdict(list)
    for config in configs:
        if config.get("sae.target_l0") is not None:
            alike[tuple(_text(config.get(name)) for name in ("sae.target_l0", *sorted(varied)))].append(config)
    varied |= {name for name in parameters if any(len(_distinct(group, name)) > 1 for group in alike.values())}
    return [name for name in names if name in varied]


def _distinct(configs: Sequence[_Fields], name: str) -> set[str]:
    return {_text(config[name]) for config in configs if name in config}


def _parameter(run: StoredRun) -> str:
    return f"sae.{run.record.sparsity_parameter if run.record else run.planned.get('sparsity_parameter')}"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else json.dumps(value)
