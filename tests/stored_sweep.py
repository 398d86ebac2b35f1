"""A sweep of two runs, records of them, and the beginning of a launch, for tests of results directories."""

from typing import Any

from sae_core.config.run import RunConfig
from sae_core.records import RunRecord
from sweeps.definition.sweep import Sweep
from sweeps.storage.store import Store


def sweep(**changes: Any) -> Sweep:
    definition: dict[str, Any] = {
        "name": "small",
        "activations": {"source": "synthetic", "train_tokens": 10_000, "eval_tokens": 1000},
        "sae": {"d_sae": 64},
        "architectures": {"topk": {"k": [4, 8]}},
    }
    return Sweep(**{**definition, **changes})


def record(run: RunConfig, **changes: Any) -> RunRecord:
    fields: dict[str, Any] = {
        "run_id": run.run_id,
        "status": "finished",
        "config": run.model_dump(mode="json"),
        "architecture": run.sae.architecture,
        "sparsity_parameter": run.sae.sparsity_parameter,
        "sparsity_value": run.sae.sparsity_value,
        "seed": run.seed,
        "activations_hash": "abc",
    }
    return RunRecord(**{**fields, **changes})


def begin(store: Store, a_sweep: Sweep) -> list[RunConfig]:
    runs = a_sweep.runs()
    store.begin(a_sweep, runs)
    return runs
