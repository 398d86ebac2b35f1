"""What is exported and measured beside the runs of a sweep: snapshots, and further forms of their SAEs."""

from collections.abc import Sequence

from sae_core.config.run import RunConfig
from sae_core.config.snapshots import snapshot_steps
from sweeps.definition.sections import Definition
from sweeps.storage.store import Store


def n_snapshots(definition: Definition, run: RunConfig) -> int:
    """Snapshots that a run leaves."""
    return len(snapshot_steps(definition.snapshots, run.n_steps, run.train.batch_size))


def n_variants(definition: Definition, run: RunConfig) -> int:
    """SAEs that are evaluated beside that of a run."""
    return n_snapshots(definition, run) + run.sae.n_forms


def without_snapshots(definition: Definition, runs: Sequence[RunConfig], store: Store) -> list[str]:
    """Runs that were trained before the snapshots were asked for that they lack."""
    lacking = []
    for run in runs:
        record = store.read_record(run.run_id)
        if definition.snapshots and record is not None and record.status in ("trained", "finished"):
            there = {variant.train_tokens for variant in store.variants(run.run_id).values() if variant.variant_kind == "snapshot"}
            steps = snapshot_steps(definition.snapshots, run.n_steps, run.train.batch_size)
            if not {step * run.train.batch_size for step in steps} <= there:
                lacking.append(run.run_id)
    return lacking
