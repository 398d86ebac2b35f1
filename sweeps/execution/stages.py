"""The stages of a launch: harvest, then train and evaluate, or search. Each does what is missing and says how long it took."""

import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from sae_core.activations.shards import Manifest, is_complete
from sae_core.activations.shards import finish as finish_harvest
from sae_core.evaluation import ChunkSums, combine, evaluated
from sweeps.execution.loggers.wandb import WandbSink
from sweeps.execution.progress import SweepProgress
from sweeps.planning.inputs import SharedActivations
from sweeps.storage.store import Store

if TYPE_CHECKING:
    from sweeps.execution.search import Study
    from sweeps.execution.training import TrainingStage
    from sweeps.execution.workers import WorkerPool

LARGE_OUTLIER_SHARE = 0.5
"""Part of the variance in a few rows from which on it is said: the loss is then about them."""


def run_stages(
    inputs: list[SharedActivations],
    store: Store,
    pool: "WorkerPool",
    progress: SweepProgress,
    sink: WandbSink | None,
    training: "TrainingStage",
    study: "Study | None",
) -> None:
    """Do all that is missing of a sweep but its table and report."""
    done = {run_id for run_id, record in store.records().items() if record.status != "trained"}
    for one in inputs:
        seconds = _harvest(one, pool, progress)
        store.note_stage("harvest", seconds)
    pool.close()  # trials need the slots
    if study is None:
        runs = [(run, one) for one in inputs for run in one.runs]
        seconds = training.run([(run, one) for run, one in runs if store.read_record(run.run_id) is None])
        store.note_stage("train", seconds)
        for one in inputs:
            seconds = _evaluate(one, store, pool, progress)
            store.note_stage("evaluate", seconds)
    else:
        study.open()
        seconds = training.search(study, inputs[0])
        store.note_stage("search", seconds)
    if sink:
        for run in [run for one in inputs for run in one.runs] if study is None else study.runs():
            if run.run_id not in done and (record := store.read_record(run.run_id)) is not None:
                sink.finish(run, record)


def _harvest(one: SharedActivations, pool: "WorkerPool", progress: SweepProgress) -> float:
    """Make the shards that are missing, on all slots. Returns seconds."""
    n_shards = one.source.n_shards(one.cache)
    missing = [index for index in range(n_shards) if not is_complete(one.cache, index)]
    progress.stage("harvest", one.source.config.train_tokens, "tokens")
    tokens = 0

    def done(n_tokens: int) -> None:
        nonlocal tokens
        tokens += n_tokens
        progress.advance_to(tokens)

    if missing:
        pool.map("harvest", missing, done, *one.arguments)
    manifest = finish_harvest(one.source, one.cache)
    one.facts |= {"outlier_rows": manifest.outlier_rows, "outlier_share": manifest.outlier_share}
    if manifest.outlier_share > LARGE_OUTLIER_SHARE:
        progress.note(_outliers(manifest))
    cached = "" if missing else ", all cached"
    return progress.end_stage(f"{manifest.n_tokens:,} tokens of width {manifest.d_in}{cached}")


def _evaluate(one: SharedActivations, store: Store, pool: "WorkerPool", progress: SweepProgress) -> float:
    """Measure the trained runs on held-out text, all in one pass, and finish their records. Returns seconds."""
    records = {run.run_id: store.read_record(run.run_id) for run in one.runs}
    trained = {run_id: record for run_id, record in records.items() if record is not None and record.status == "trained"}
    n_chunks = one.source.n_eval_chunks(one.cache)
    progress.stage("evaluate", n_chunks, "chunks")
    if trained:
        chunks: list[ChunkSums] = []
        nodes: list[dict[str, Any]] = []

        def done(result: tuple[ChunkSums, dict[str, Any]]) -> None:
            chunks.append(result[0])
            nodes.append(result[1])
            progress.advance_to(len(chunks), f"{len(chunks)} of {n_chunks} chunks")

        saes = {run_id: str(store.paths.run(run_id).sae) for run_id in trained}
        pool.map("evaluate", range(n_chunks), done, *one.arguments, saes)
        values, n_tokens = combine(chunks)
        eval_hash = one.source.eval_hash(one.cache)
        for run_id, record in trained.items():
            finished = evaluated(record, values[run_id], n_tokens, eval_hash)
            store.write_record(dataclasses.replace(finished, **_where(nodes)))
    return progress.end_stage(f"{len(trained)} SAEs on {n_chunks} chunks of held-out text")


def _outliers(manifest: Manifest) -> str:
    return (
        f"harvest: {manifest.outlier_rows:,} of {manifest.n_tokens:,} rows hold {manifest.outlier_share:.0%} of the variance, as "
        "attention sinks do. FVU is then about these rows; leave them out of the text, or choose another hook point"
    )


def _where(nodes: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Fields of a record that say where and how it was evaluated: what the nodes of its chunks say, joined where they differ."""
    nodes = list(nodes)

    def joined(kind: str) -> dict[str, str]:
        names = dict.fromkeys(name for node in nodes for name in node[kind])
        return {name: ", ".join(_different(node[kind].get(name, "none") for node in nodes)) for name in names}

    hardware = "; ".join(_different(node["hardware"] for node in nodes))
    return {"eval_versions": joined("versions"), "eval_hardware": hardware, "eval_arithmetic": joined("arithmetic")}


def _different(texts: Iterable[str]) -> list[str]:
    return sorted(set(texts))
