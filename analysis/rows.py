"""The row of a run: columns and types, hashes that say which runs belong together, and what sets runs apart."""

import dataclasses
import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from analysis.columns import ACTIVATION_FACTS, ALL, ARITHMETIC, CONFIG_FIELDS, OF_TRANSCODERS
from analysis.results import REQUESTED, StoredRun
from sae_core.costs import n_parameters, training_flops
from sae_core.records import RunRecord, completed, field_name, flat, reason, tokens_asked
from sae_core.validation import at

_FROM_CONFIG = {**CONFIG_FIELDS, **OF_TRANSCODERS, "lr": "train.lr", "d_sae": "sae.d_sae", "target_l0": "sae.target_l0"}
_ELSEWHERE = {*ARITHMETIC, *REQUESTED, "error", "run_id"}
_FROM_RECORD = [field.name for field in dataclasses.fields(RunRecord) if field.name in ALL - _ELSEWHERE]

_IN_OTHER_COLUMNS = {"seed", "data_seed", "train.lr", "sae.architecture", "sae.target_l0"}
"""Fields of the config that no variant names, because they have a column."""

_Fields = dict[str, Any]


def row_of(run: StoredRun) -> dict[str, Any]:
    """Everything in a run's row that the run alone decides; what is unknown is left out."""
    record, config = run.record, run.config
    row: dict[str, Any] = {"run_id": run.run_id, "status": "missing", "sweep": run.sweep, "error": run.damage or None}
    row |= {column: at(config, path) for column, path in _FROM_CONFIG.items()}
    for name in ("hook_point", "hook_out"):  # of sources that have no section `model`
        if row[name] is None and isinstance(own := at(config, f"activations.{name}"), str):
            row[name] = own
    row |= {name: run.requested.get(name) for name in REQUESTED if name != "config"}
    if record:
        facts = {name: record.activation_facts.get(name) for name in ACTIVATION_FACTS}
        row |= {name: getattr(record, name) for name in _FROM_RECORD} | record.metrics
        row |= {name: value if value is None or name == "outlier_share" else round(value) for name, value in facts.items()}
        row |= _costs(record, row["d_sae"], skips=bool(at(config, "sae.skip_connection")))
        row |= {f"version_{name}": version for name, version in record.versions.items()}
        row |= {name: _words(getattr(record, name, None)) for name in ARITHMETIC}
        row["error"] = reason(record.error) if record.error else None
        if run.variant_of:
            row |= {"status": record.variant_kind, "variant_of": run.variant_of}
            if record.variant_kind == "form":  # it was asked for by its own sparsity
                row["target_l0"] = None
    row["setting_hash"] = setting_hash(run)
    return row


def setting_hash(run: StoredRun) -> str:
    """What the repeats of a setting have in common: all of the config but `seed` and `data_seed`; of a variant its name, too. A published
    SAE has no repeats."""
    if run.published is not None:
        return _hash(run.run_id)
    content = {key: 0 if key == "data_seed" else value for key, value in run.config.items() if key != "seed"}
    requested = run.requested
    # An entry of sweep.json may lack its config: then its sparsity tells settings apart.
    setting = [requested.get("architecture"), content or [requested.get("sparsity_parameter"), requested.get("sparsity_value")]]
    return _hash([*setting, run.paths.directory.name] if run.variant_of else setting)


def activations_of(run: StoredRun) -> dict[str, Any]:
    """The activations of its config, with the training tokens of the run. Those of a published SAE are not known."""
    activations, tokens = dict(run.config.get("activations") or {}), tokens_asked(run.config)
    return activations | {"train_tokens": tokens if run.published is None else None}


def comparison_hashes(runs: Sequence[StoredRun]) -> list[str]:
    """One hash per run. A run that was never evaluated takes the held-out text of the runs with the same activations config."""
    keys = [(run.sweep, _hash(run.config.get("activations"))) for run in runs]
    own = [run.record.eval_hash if run.record else None for run in runs]
    texts = {key: text for key, text in reversed(list(zip(keys, own, strict=True))) if text}
    # Tokens as requested, not as trained: batch sizes round them down differently.
    return [
        _hash([text or texts.get(key) or key[1], at(run.config, "sae.d_sae"), tokens_asked(run.config)])
        for run, key, text in zip(runs, keys, own, strict=True)
    ]


def variants(runs: Sequence[StoredRun], comparisons: Sequence[str]) -> list[str]:
    """Values of the fields in which the runs of an architecture and comparison differ, beside sparsity, learning rate and seed.

    Args:
        comparisons: the `comparison_hash` of each run.

    Returns:
        One text per run, e.g. "bandwidth=0.5, batch_size=4096". Fields that a run's version of the config did not have are left out.
    """
    groups: dict[tuple[Any, str], list[int]] = defaultdict(list)
    for index, (run, comparison) in enumerate(zip(runs, comparisons, strict=True)):
        groups[run.requested.get("architecture"), comparison].append(index)
    texts = [""] * len(runs)
    for group in groups.values():
        fields = dict(zip(group, completed([flat(runs[index].config) for index in group]), strict=True))
        varied = _varied(list(fields.values()), {f"sae.{runs[index].requested.get('sparsity_parameter')}" for index in group})
        for index, own in fields.items():
            texts[index] = ", ".join(f"{field_name(name)}={_text(own[name])}" for name in varied if name in own)
    return texts


def _varied(configs: Sequence[_Fields], parameters: set[str]) -> list[str]:
    """Names of the fields that differ. A sparsity parameter counts only where it differs between runs of one target and alike otherwise."""
    names = [name for name in dict.fromkeys(name for config in configs for name in config) if name not in _IN_OTHER_COLUMNS]
    varied = {name for name in names if name not in parameters and _differs(configs, name)}
    alike: dict[tuple[str, ...], list[_Fields]] = defaultdict(list)
    for config in configs:
        if config.get("sae.target_l0") is not None:
            alike[tuple(_text(config.get(name)) for name in ("sae.target_l0", *sorted(varied)))].append(config)
    varied |= {name for name in parameters if any(_differs(group, name) for group in alike.values())}
    return [name for name in names if name in varied]


def _differs(configs: Sequence[_Fields], name: str) -> bool:
    return len({_text(config[name]) for config in configs if name in config}) > 1


def _text(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else json.dumps(value)


def _costs(record: RunRecord, d_sae: int | None, *, skips: bool) -> _Fields:
    name, d_in, d_out, tokens = record.architecture, record.d_in, record.d_out, record.train_tokens
    if d_in is None or d_sae is None:
        return {}
    flops = None if tokens is None else training_flops(name, d_in, d_sae, tokens, d_out=d_out, skips=skips)
    return {"train_flops": flops, "parameters": n_parameters(name, d_in, d_sae, d_out=d_out, skips=skips)}


def _words(content: Mapping[str, str] | None) -> str | None:
    return ", ".join(f"{name} {value}" for name, value in sorted(content.items())) if content else None


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
