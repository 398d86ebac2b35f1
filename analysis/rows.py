"""A stored run -> its row of the table, and the hashes that say which runs belong together."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from analysis.columns import ACTIVATION_FACTS, CONFIG_FIELDS, INTEGERS, PROVENANCE
from analysis.results import StoredRun
from sae_core.validation import at, printable

LONGEST_ERROR = 500
"""Characters of an error that a table shows; the record has all of them."""


def row_of(run: StoredRun) -> dict[str, Any]:
    """Everything in a run's row that the run alone decides."""
    record, config = run.record, run.config
    row: dict[str, Any] = {
        "run_id": run.run_id,
        "status": record.status if record else "missing",
        "lr": at(config, "train.lr"),
        "d_sae": at(config, "sae.d_sae"),
        "target_l0": at(config, "sae.target_l0"),
        "sweep": run.sweep,
        "error": run.damage or None,
        **{column: at(config, path) for column, path in CONFIG_FIELDS.items()},
    }
    for name in ("architecture", "sparsity_parameter", "sparsity_value", "seed"):
        row[name] = getattr(record, name) if record else run.planned.get(name)
    if record:
        names = ("d_in", "train_tokens", "eval_tokens", "train_seconds", "tokens_per_second", *PROVENANCE)
        row |= {name: getattr(record, name) for name in (*names, "hardware", "eval_hardware", "launch", "finished_at")}
        row |= record.metrics
        row |= {name: _count_if(name, record.activation_facts.get(name)) for name in ACTIVATION_FACTS}
        row |= {f"version_{name}": version for name, version in record.versions.items()}
        row["error"] = reason(record.error) if record.error else None
    row["setting_hash"] = _setting_hash(row, config)
    return row


def reason(error: dict[str, str]) -> str:
    """Why a run failed or was pruned, in one line: type and message, or the cause that Ray wrapped."""
    kind, message = error.get("type", "error"), error.get("message", "no message was recorded")
    lines = [line for line in message.splitlines() if line.strip()]
    if len(lines) > 1 and "ray::" in message:  # a traceback of another process, which ends in the cause
        return printable(lines[-1])[:LONGEST_ERROR]
    return printable(f"{kind}: {message}")[:LONGEST_ERROR]


def comparison_hashes(runs: Sequence[StoredRun]) -> list[str]:
    """One hash per run. A run that was never evaluated takes the held-out text of the runs with the same activations config."""
    texts: dict[tuple[str, str], str] = {}
    keys = [(run.sweep, _hash(run.config.get("activations"))) for run in runs]
    for run, key in zip(runs, keys, strict=True):
        if run.record and run.record.eval_hash:
            texts.setdefault(key, run.record.eval_hash)
    hashes = []
    for run, key in zip(runs, keys, strict=True):
        text = (run.record and run.record.eval_hash) or texts.get(key) or key[1]
        # Tokens as asked, not as trained: batch sizes round them down differently.
        hashes.append(_hash([text, at(run.config, "sae.d_sae"), at(run.config, "activations.train_tokens")]))
    return hashes


def _setting_hash(row: dict[str, Any], config: Any) -> str:
    """Equal for runs that differ in nothing but their seed and the order of their tokens."""
    content = {key: value for key, value in config.items() if key != "seed"}
    if "data_seed" in content:
        content["data_seed"] = 0
    # An entry of sweep.json may lack its config: then its sparsity tells settings apart.
    return _hash([row["architecture"], content or [row["sparsity_parameter"], row["sparsity_value"]]])


def _count_if(name: str, value: float | None) -> float | None:
    return round(value) if name in INTEGERS and value is not None else value


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
