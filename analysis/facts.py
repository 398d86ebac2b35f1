"""What was run, where and for how long, in words: read from the records' configs and `sweep.json`."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from analysis.results import StoredSweep
from analysis.style import by_architecture, duration, label
from sae_core.validation import at

MOST_LISTED = 8
"""Learning rates that are listed one by one."""


def facts(sweeps: Sequence[StoredSweep], table: pd.DataFrame) -> list[tuple[str, str]]:
    """(what, value) pairs; values that differ between runs are listed, unknown ones left out."""
    configs = [run.config for sweep in sweeps for run in sweep.runs if run.config]
    rows = [
        ("Language model", _values(configs, "activations.model.name")),
        ("Hook point", _values(configs, "activations.model.hook_point")),
        ("Text", _values(configs, "activations.data.dataset")),
        ("Training tokens", _counts(_found(configs, "activations.train_tokens"))),
        ("Training tokens spent", _spent(sweeps)),
        ("Held-out tokens", _counts(table["eval_tokens"].dropna().unique())),
        ("Activation width d_in", _join(table["d_in"].dropna().unique())),
        ("Latents d_sae", _join(table["d_sae"].dropna().unique())),
        ("Target L0", _join(f"{target:g}" for target in sorted(table["target_l0"].dropna().unique()))),
        ("Seeds", _join(table["seed"].dropna().unique())),
        ("Orders of the tokens", _join(orders) if len(orders := table["data_seed"].dropna().unique()) > 1 else ""),
        ("Learning rate", _learning_rates(table)),
        ("Batch size", _values(configs, "train.batch_size")),
        ("Training activations", _join(table["activations_hash"].dropna().unique())),
        ("Held-out text", _join(table["eval_hash"].dropna().unique())),
        ("Software", _versions(table)),
        ("Hardware", _hardware(sweeps, table)),
        ("Last run finished", str(table["finished_at"].dropna().max()) if table["finished_at"].notna().any() else ""),
    ]
    return [(name, value) for name, value in rows if value]


def stages(sweeps: Sequence[StoredSweep]) -> list[tuple[str, str, str]]:
    """(sweep, stage, how long) for every stage that a sweep recorded."""
    return [
        (sweep.name, str(stage["stage"]), duration(float(stage["seconds"])))
        for sweep in sweeps
        for stage in sweep.facts.get("stages") or []
        if stage.get("seconds") is not None
    ]


def total_time(sweeps: Sequence[StoredSweep]) -> str:
    """How long all recorded stages took together; empty where none was recorded."""
    seconds = [float(s["seconds"]) for sweep in sweeps for s in sweep.facts.get("stages") or [] if s.get("seconds") is not None]
    return duration(sum(seconds)) if seconds else ""


def _found(configs: Sequence[Mapping[str, Any]], path: str) -> list[Any]:
    return list(dict.fromkeys(value for config in configs if (value := at(config, path)) is not None))


def _values(configs: Sequence[Mapping[str, Any]], path: str) -> str:
    return _join(_found(configs, path))


def _join(values: Iterable[Any]) -> str:
    return ", ".join(str(value) for value in values)


def _counts(values: Iterable[Any]) -> str:
    return _join(f"{int(value):,}" for value in values)


def _spent(sweeps: Sequence[StoredSweep]) -> str:
    """How much of what its runs were asked for was trained; empty where no run was stopped early."""
    records = {run.run_id: run.record for sweep in sweeps for run in sweep.runs if run.record}
    trained = [record for record in records.values() if record.status != "failed"]
    if all(record.status != "pruned" for record in trained):
        return ""
    sizes = [(at(record.config, "activations.train_tokens") or 0, at(record.config, "train.batch_size") or 1) for record in trained]
    asked = sum(tokens // batch * batch for tokens, batch in sizes)
    spent = sum(record.train_tokens or 0 for record in trained)
    if not asked:  # configs of records that nobody can read it from
        return ""
    pruned = sum(record.status == "pruned" for record in trained)
    return f"{spent:,} of {asked:,} ({spent / asked:.0%}): {pruned} of {len(trained)} runs were stopped early"


def _learning_rates(table: pd.DataFrame) -> str:
    """One value where all runs share it, else per architecture."""
    known = table.dropna(subset=["lr"])
    if known["lr"].nunique() <= 1:
        return _rates(known["lr"])
    rates = {name: _rates(rows["lr"]) for name, rows in by_architecture(known).items()}
    return "; ".join(f"{label(name)} {values}" for name, values in rates.items())


def _rates(rates: "pd.Series[float]") -> str:
    """Every rate, or where a search tried many, from which to which."""
    different = sorted(rates.unique())
    if len(different) <= MOST_LISTED:
        return _join(f"{rate:g}" for rate in different)
    return f"{different[0]:.3g} to {different[-1]:.3g} ({len(different)} values)"


def _versions(table: pd.DataFrame) -> str:
    names = [name for name in table.columns if name.startswith("version_") and table[name].notna().any()]
    return ", ".join(f"{name.removeprefix('version_')} {' / '.join(table[name].dropna().unique())}" for name in names)


def _hardware(sweeps: Sequence[StoredSweep], table: pd.DataFrame) -> str:
    told = [sweep.facts["hardware"] for sweep in sweeps if sweep.facts.get("hardware")]
    return _join(dict.fromkeys(told or table["hardware"].dropna().unique()))
