"""The stages of a launch: harvest, train (or search), evaluate. Each does what is missing and notes how long it took."""

import dataclasses
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from sae_core.activations.shards import Manifest, is_complete
from sae_core.activations.shards import finish as finish_harvest
from sae_core.evaluation import ChunkSums, measured, write_evaluated
from sae_core.metrics.evaluators import EVALUATORS
from sae_core.orders import Orders, OrdersFile
from sae_core.trainable import TrialConfig
from sweeps.execution import signals
from sweeps.execution.budget import Budget
from sweeps.execution.executor import Executor
from sweeps.execution.loggers import Loggers
from sweeps.execution.progress import SweepProgress
from sweeps.execution.training import Training
from sweeps.execution.work import Work
from sweeps.planning.inputs import SharedActivations, passes
from sweeps.storage.store import Store

LARGE_OUTLIER_SHARE = 0.5
"""Part of the variance in a few rows above which a note says so: the loss is then about them."""
STOP_SECONDS = 5.0
"""Most time that trials are given to write their checkpoints after an interrupt."""


def run_stages(
    work: Work,
    inputs: Sequence[SharedActivations],
    store: Store,
    executor: Executor,
    progress: SweepProgress,
    loggers: Loggers,
    settings: TrialConfig,
    budget: Budget,
) -> None:
    """Do all that is missing of a sweep but its table and report.

    Args:
        inputs: activations with something left to do.
        settings: see `Training`.

    Raises:
        StoppedError: the orders say so.
        KeyboardInterrupt: a signal did.
    """
    orders = OrdersFile(store.paths.orders)
    progress.capacity = executor.capacity
    done = {run_id for run_id, record in store.records().items() if record.status != "trained"}
    for group in passes(inputs):
        store.note_stage("harvest", harvest_stage(group, store, executor, progress, orders))
    executor.pool.close()  # trials need the slots
    work.begin(executor.n_slots, executor.slot_bytes)
    progress.stage(work.stage, work.n_tokens, "tokens")
    training = Training(work, store, progress, loggers, settings, budget)
    signals.check()
    if work.n_trials:
        _train(training, executor, store)
        orders.go_on()
    store.note_stage(work.stage, progress.end_stage(training.summary()))
    if not work.evaluates_trials:
        for group in passes(inputs):
            store.note_stage("evaluate", evaluate_stage(group, store, executor, progress, orders))
    for run in work.runs():
        if run.run_id not in done and (record := store.read_record(run.run_id)) is not None:
            loggers.finish(run, record)


def _train(training: Training, executor: Executor, store: Store) -> None:
    """Train all trials. The first interrupt is an order to stop: trials write their checkpoints, for a few seconds at most."""
    timer = threading.Timer(STOP_SECONDS, signals.interrupt)
    timer.daemon = True

    def stop() -> None:
        with suppress(OSError):
            dataclasses.replace(Orders.read(store.paths.orders), sweep="stop").write(store.paths.orders)
        timer.start()

    try:
        with signals.held(then=stop) as held:
            executor.train(training)
    finally:
        timer.cancel()
        tell_hangs(store, training.progress)
    if held.interrupted:
        raise KeyboardInterrupt


def harvest_stage(
    group: Sequence[SharedActivations], store: Store, executor: Executor, progress: SweepProgress, orders: OrdersFile
) -> float:
    """Make the shards that are missing, on all slots, each for all hook points at once. Returns seconds."""
    signals.check()
    missing = [
        index for index in range(group[0].n_shards) if not all(is_complete(shared.cache, index, shared.n_stored) for shared in group)
    ]
    progress.stage("harvest", sum(shared.source.config.train_tokens for shared in group), "tokens", len(missing))
    tokens: list[int] = []

    def done(n_tokens: int) -> None:
        tokens.append(n_tokens)
        progress.advance_to(sum(tokens), jobs=len(missing) - len(tokens))
        tell_hangs(store, progress)

    if missing:
        try:
            executor.pool.map("harvest", missing, done, [(*shared.arguments, shared.n_stored) for shared in group], orders=orders)
        finally:
            tell_hangs(store, progress)
    manifests = [_finish_harvest(shared, progress) for shared in group]
    n_tokens, widths = manifests[0].n_tokens, ", ".join(dict.fromkeys(map(_width, manifests)))
    where = f" at {len(group)} hook points" if len(group) > 1 else ""
    return progress.end_stage(f"{n_tokens:,} tokens of width {widths}{where}{'' if missing else ', all cached'}")


def _width(manifest: Manifest) -> str:
    return f"{manifest.d_in} and {manifest.d_out}" if manifest.d_out else str(manifest.d_in)


def _finish_harvest(shared: SharedActivations, progress: SweepProgress) -> Manifest:
    """Write the manifest, and note what a reader should know."""
    manifest = finish_harvest(shared.source, shared.cache, shared.n_stored)
    shared.facts |= {"outlier_rows": manifest.outlier_rows, "outlier_share": manifest.outlier_share}
    if manifest.outlier_share > LARGE_OUTLIER_SHARE:
        progress.note(_outliers(manifest))
    if (asked := shared.source.config.train_tokens) > manifest.n_tokens:
        progress.note(f"harvest: {manifest.n_tokens:,} of {asked:,} tokens are left, the others' norms are too large; they are repeated")
    if n_streamed := shared.n_streamed:
        progress.note(f"harvest: {n_streamed} of {shared.n_shards} shards are not stored: each group makes them again as it reads them")
    return manifest


def _outliers(manifest: Manifest) -> str:
    return (
        f"harvest: {manifest.outlier_rows:,} of {manifest.n_tokens:,} rows hold {manifest.outlier_share:.0%} of the variance, as "
        "attention sinks do. FVU is then about these rows; leave them out with `data.exclude_high_norm`, or choose another hook point"
    )


def evaluate_stage(
    group: Sequence[SharedActivations], store: Store, executor: Executor, progress: SweepProgress, orders: OrdersFile
) -> float:
    """Measure runs on held-out text, all in one pass, and finish their records. Returns seconds."""
    signals.check()
    to_measure = [(shared, records) for shared in group if (records := shared.to_evaluate(store))]
    n_chunks = group[0].source.n_eval_chunks(group[0].cache)
    progress.stage("evaluate", n_chunks, "chunks", n_chunks if to_measure else 0)
    results: list[tuple[list[ChunkSums], dict[str, Any]]] = []

    def done(result: tuple[list[ChunkSums], dict[str, Any]]) -> None:
        results.append(result)
        progress.advance_to(len(results), f"{len(results)} of {n_chunks} chunks", n_chunks - len(results))

    if to_measure:
        sources = [shared.arguments for shared, _ in to_measure]
        saes = [{run_id: str(store.paths.run(run_id).sae) for run_id in records} for _, records in to_measure]
        further: dict[str, Any] = {}
        n_saes = sum(len(some) for some in saes) if EVALUATORS else 0

        def done_further(result: tuple[str, Any]) -> None:
            further[result[0]] = result[1]
            progress.advance_to(n_chunks, f"{len(further)} of {n_saes} SAEs given to the evaluators", n_saes - len(further))

        try:
            executor.pool.map("evaluate", range(n_chunks), done, sources, saes, orders=orders)
            executor.pool.map("evaluate_further", range(n_saes), done_further, sources, saes, orders=orders)
        finally:
            tell_hangs(store, progress)
        where = _joined([node for _, node in results])
        for number, (shared, records) in enumerate(to_measure):
            found = measured(sums[number] for sums, _ in results)
            eval_hash = shared.source.eval_hash(shared.cache)
            for run_id, record in records.items():
                result = found[run_id].with_evaluators(further[run_id]) if run_id in further else found[run_id]
                write_evaluated(record, result, eval_hash, store.paths.run(run_id), where)
        for note in sorted(
            {f"evaluate: evaluator {name!r} failed: {why}" for _, errors in further.values() for name, why in errors.items()}
        ):
            progress.note(note)
    return progress.end_stage(f"{sum(len(records) for _, records in to_measure)} SAEs on {n_chunks} chunks of held-out text")


def tell_hangs(store: Store, progress: SweepProgress) -> None:
    """Note which workers were ended because they hung: Ray has given their jobs to another process."""
    with suppress(FileNotFoundError):
        for file in store.paths.hangs.iterdir():
            progress.note(f"{progress.state.stage or 'start'}: worker {file.name}: {file.read_text()}; its job is done again")
            file.unlink()
        store.paths.hangs.rmdir()


def _joined(nodes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Fields of a record that say where and how it was evaluated: facts about the nodes of its chunks, joined where they differ."""

    def joined(kind: str) -> dict[str, str]:
        names = dict.fromkeys(name for node in nodes for name in node[kind])
        return {name: ", ".join(sorted({node[kind].get(name, "none") for node in nodes})) for name in names}

    hardware = "; ".join(sorted({node["hardware"] for node in nodes}))
    return {"eval_versions": joined("versions"), "eval_hardware": hardware, "eval_arithmetic": joined("arithmetic")}
