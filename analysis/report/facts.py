"""What was run, on what, and how to run it again: facts, definitions and commands, as the report shows them."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from analysis import words
from analysis.columns import PUBLISHED
from analysis.results import Definition, StoredSweep
from sae_core.records import RunRecord, tokens_asked
from sae_core.validation import at

MOST_RATES = 8
"""Learning rates that are listed one by one."""
_NOT_INSTALLED = {"sae_sweep": "sae-sweep", "commit": "commit", "python": "Python"}
"""Versions of what is not installed by `pip install`, and its name."""


def definition_of(sweep: StoredSweep, definition: Definition) -> tuple[str, str]:
    """Heading and text of a definition; where launches are known, with them and the runs they made."""
    numbers = definition.launches
    made = sum(record.launch in numbers for record in _trained([sweep]).values())
    launches = f", launch{'es' * (len(numbers) > 1)} {', '.join(map(str, numbers))}: made {words.counted(made, 'run')}"
    return f"Definition of {sweep.name}{launches if numbers else ''}", definition.text


def to_reproduce(sweeps: Sequence[StoredSweep], table: pd.DataFrame) -> str:
    """Shell commands that run the sweeps again with the versions that all runs share."""
    versions = {name.removeprefix("version_"): list(table[name].dropna().unique()) for name in table.columns if name.startswith("version_")}
    shared = {name: values[0] for name, values in versions.items() if len(values) == 1}
    ours = [f"{name} {shared[key]}" for key, name in _NOT_INSTALLED.items() if key in shared]
    others = [f"{name.replace('_', '-')}=={version.partition('+')[0]}" for name, version in shared.items() if name not in _NOT_INSTALLED]
    differing = [f"{name} ({', '.join(values)})" for name, values in versions.items() if len(values) > 1]
    evaluated = _evaluated_with(sweeps)
    lines = [f"# {', '.join(ours)}"] if ours else []
    lines += [f"# evaluated with {', '.join(f'{name} {values}' for name, values in evaluated.items())}"] if evaluated else []
    lines += [f"# runs differ in their versions of {'; '.join(differing)}"] if differing else []
    lines += [" \\\n    ".join(["pip install", *others])] if others else []
    lines += [f"sae-sweep run {sweep.name}.yaml    # the definition below" for sweep in sweeps if sweep.definitions]
    return "\n".join(lines)


def stages_of(sweeps: Sequence[StoredSweep]) -> list[tuple[str, str, float]]:
    """Sweep, stage and seconds of all that was timed. What the copy of a sweep holds too, of the same launch, is counted once."""
    stages: dict[tuple[Any, ...], tuple[str, str, float]] = {}
    for number, sweep in enumerate(sweeps):
        launches = sweep.facts.get("launches") or []
        for index, stage in enumerate(sweep.facts.get("stages") or []):
            launch, seconds = stage.get("launch"), stage.get("seconds")
            started = launches[launch].get("started_at") if launch is not None and launch < len(launches) else None
            if seconds is not None:
                stages.setdefault((started or number, index, stage["stage"], seconds), (sweep.name, stage["stage"], seconds))
    return list(stages.values())


def facts_of(sweeps: Sequence[StoredSweep], table: pd.DataFrame) -> list[tuple[str, str]]:
    """(what, value) pairs; values that differ between runs are listed, unknown ones left out."""

    def column(name: str, form: str = "") -> str:
        return ", ".join(format(value, form) for value in table[name].dropna().unique())

    tokens = [tokens_asked(run.config) for sweep in sweeps for run in sweep.runs]
    versions = {name: column(name).replace(", ", " / ") for name in table.columns if name.startswith("version_")}
    evaluated = _evaluated_with(sweeps)
    hardware = dict.fromkeys(str(sweep.facts["hardware"]) for sweep in sweeps if sweep.facts.get("hardware"))
    rows = [
        ("Language model", column("model")),
        ("Hook point", column("hook_point")),
        ("Hook point that is written to", column("hook_out") if "hook_out" in table else ""),
        ("Text", column("dataset")),
        ("Tokens that count", _counted(sweeps)),
        ("Training tokens", ", ".join(f"{number:,}" for number in dict.fromkeys(tokens) if number is not None)),
        ("Training tokens spent", _spent(sweeps)),
        ("Held-out tokens", column("eval_tokens", ",")),
        ("Activation width d_in", column("d_in")),
        ("Width of what is written d_out", column("d_out") if "d_out" in table else ""),
        ("Latents d_sae", column("d_sae")),
        ("Target L0", ", ".join(f"{target:g}" for target in sorted(table["target_l0"].dropna().unique()))),
        ("Seeds", column("seed")),
        ("Orders of the tokens", column("data_seed") if table["data_seed"].nunique() > 1 else ""),
        ("Learning rate", _learning_rates(table)),
        ("Batch size", column("batch_size")),
        ("Training activations", column("activations_hash")),
        ("Held-out text", column("eval_hash")),
        ("Software", ", ".join(f"{name.removeprefix('version_')} {values}" for name, values in versions.items() if values)),
        ("Evaluated with other software", ", ".join(f"{name} {values}" for name, values in evaluated.items())),
        ("Published SAEs", ", ".join(sorted(table[PUBLISHED].dropna().unique())) if PUBLISHED in table else ""),
        ("Hardware", ", ".join(hardware) or column("hardware")),
        ("Last run finished", str(table["finished_at"].dropna().max()) if table["finished_at"].notna().any() else ""),
    ]
    return [(name, value) for name, value in rows if value]


def _evaluated_with(sweeps: Sequence[StoredSweep]) -> dict[str, str]:
    """Versions that some run was evaluated with and not trained with: name -> values, e.g. of a later commit."""
    found: dict[str, dict[str, None]] = {}
    for record in _trained(sweeps).values():
        for name, version in record.eval_versions.items():
            if version != record.versions.get(name):
                found.setdefault(name, {})[version] = None
    return {name: " / ".join(values) for name, values in sorted(found.items())}


def _spent(sweeps: Sequence[StoredSweep]) -> str:
    """How much of what its runs were asked for was trained; empty where no run was stopped early."""
    records = {run_id: record for run_id, record in _trained(sweeps).items() if record.status != "failed"}.values()
    n_pruned = sum(record.status == "pruned" for record in records)
    sizes = [(tokens_asked(record.config) or 0, at(record.config, "train.batch_size") or 1) for record in records]
    requested, spent = sum(tokens // batch * batch for tokens, batch in sizes), sum(record.train_tokens or 0 for record in records)
    if not n_pruned or not requested:
        return ""
    return f"{spent:,} of {requested:,} ({spent / requested:.0%}): {n_pruned} of {len(records)} runs were stopped early"


def _trained(sweeps: Sequence[StoredSweep]) -> dict[str, RunRecord]:
    """Records of runs; published SAEs have none of training."""
    records = {run.run_id: run.record for sweep in sweeps for run in sweep.runs if run.record}
    return {run_id: record for run_id, record in records.items() if record.published is None}


def _learning_rates(table: pd.DataFrame) -> str:
    """One value where all runs share it, else per architecture: every rate, or where a search tried many, the range."""

    def told(rates: "pd.Series[float]") -> str:
        distinct = sorted(rates.dropna().unique())
        if len(distinct) <= MOST_RATES:
            return ", ".join(f"{rate:g}" for rate in distinct)
        return f"{distinct[0]:.3g} to {distinct[-1]:.3g} ({len(distinct)} values)"

    if table["lr"].nunique() <= 1:
        return told(table["lr"])
    known = table.dropna(subset=["lr"])
    return "; ".join(f"{words.label(name)} {told(rows['lr'])}" for name, rows in words.by_architecture(known).items())


def _counted(sweeps: Sequence[StoredSweep]) -> str:
    """What a definition says of conversations, positions and packing; nothing where it says nothing."""
    data = [at(run.config, "activations.data") for sweep in sweeps for run in sweep.runs]
    fields = ("chat_column", "train_on", "positions", "packing", "exclude_high_norm")
    said = (", ".join(f"{name} {one[name]}" for name in fields if one.get(name) is not None) for one in data if isinstance(one, dict))
    return "; ".join(dict.fromkeys(words for words in said if words))
