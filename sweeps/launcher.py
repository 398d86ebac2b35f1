"""Launch a sweep: check everything, harvest, train, evaluate, write table and report. Relaunching does what is missing.

Ray runs the work; the records under results/ are the truth about it. Ray's own state lies in a scratch directory and is never
read back: a relaunch starts a new experiment with the runs that have no record, each from its own checkpoint.
"""

import dataclasses
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sae_core.activations.shards import finish as finish_harvest
from sae_core.activations.shards import is_complete
from sae_core.activations.source import ActivationSource
from sae_core.config import SOURCES, RunConfig
from sae_core.evaluation import ChunkSums, combine
from sae_core.metrics import METRICS
from sae_core.records import RunRecord
from sweeps import provenance
from sweeps.cluster import Cluster
from sweeps.definition import Sweep
from sweeps.local_data import locate
from sweeps.progress import SweepProgress
from sweeps.store import Store, may_recover
from sweeps.training_stage import TrainingStage
from sweeps.wandb_sink import WandbSink


@dataclass(frozen=True, slots=True)
class LaunchResult:
    """How a launch ended."""

    directory: Path
    finished: int
    """Runs with a finished record."""
    failed: dict[str, str]
    """Run id -> reason."""
    missing: list[str]
    """Run ids without a record that says finished or failed."""
    interrupted: bool


@dataclass(slots=True)
class Input:
    """The activations that some runs of a sweep share."""

    source: ActivationSource
    cache: Path
    activations_hash: str
    metadata: dict[str, object]
    """Where exported SAEs say they belong: names as the definition gives them, not where they were found."""
    runs: list[RunConfig] = field(default_factory=list)

    def todo(self, store: Store) -> list[RunConfig]:
        """Runs without a finished record, or one of a failure that would happen again."""
        records = [(run, store.read_record(run.run_id)) for run in self.runs]
        return [run for run, record in records if record is None or record.status == "trained" or may_recover(record)]


def launch(
    sweep: Sweep,
    *,
    results: str | Path = "results",
    address: str | None = None,
    cpus_per_trial: int = 1,
    gpus_per_trial: float = 0.0,
    checkpoint_seconds: float = 60.0,
    progress: SweepProgress | None = None,
) -> LaunchResult:
    """Train and evaluate what is missing of a sweep, then write its table and report.

    Args:
        results: the directory in which the sweep's own one is made.
        address: of a running Ray cluster; None starts Ray on this machine. `results` must then be on storage all nodes share.
        checkpoint_seconds: least time between two checkpoints of a run: the most training that an interruption can cost.
        progress: what shows progress; the terminal by default.

    Raises:
        ConfigError: what is asked for is not possible. Nothing was started.
    """
    runs = sweep.runs()
    store = Store(Path(results) / sweep.name)
    store.check_ours(runs)
    cluster = Cluster(address=address, cpus=cpus_per_trial, gpus=gpus_per_trial)
    sink = WandbSink(sweep.wandb, sweep.name, store) if sweep.wandb and sweep.wandb.mode != "disabled" else None
    inputs = _inputs(runs, store)
    todo = [one for one in inputs if one.todo(store)]
    for one in todo:
        one.source.check()
    for one in todo:
        one.source.prepare(one.cache)
    store.begin(sweep, runs)
    _retry_failed(runs, store)
    interrupted = False
    with progress or SweepProgress() as shown:
        if todo:
            try:
                with _sigterm_as_ctrl_c(), cluster:
                    _run_stages(todo, store, cluster, shown, sink, checkpoint_seconds)
            except KeyboardInterrupt:
                interrupted = True
            finally:
                if sink:
                    sink.close()
        _write_report(store, shown)
    store.end()
    return _result(store, runs, interrupted)


def _inputs(runs: list[RunConfig], store: Store) -> list[Input]:
    """The activations of the sweep, each with its runs and its place in the cache.

    Raises:
        ConfigError: model or text are not there, or changed since records were made.
    """
    by_config: dict[str, Input] = {}
    for run in runs:
        key = run.activations.model_dump_json()
        if key not in by_config:
            source = SOURCES[run.activations.source](locate(run.activations, store.activations))
            fingerprint = source.fingerprint()
            metadata = SOURCES[run.activations.source](run.activations).export_metadata()
            by_config[key] = Input(source, store.activations / fingerprint[:24], fingerprint, metadata)
        by_config[key].runs.append(run)
    store.check_hashes({run.run_id: one.activations_hash for one in by_config.values() for run in one.runs})
    return list(by_config.values())


def _retry_failed(runs: list[RunConfig], store: Store) -> None:
    """Remove the records of failures that may not happen again, so that these runs are tried again."""
    for run in runs:
        record = store.read_record(run.run_id)
        if record is not None and may_recover(record):
            store.record_file(run.run_id).unlink()


def _run_stages(
    inputs: list[Input], store: Store, cluster: Cluster, progress: SweepProgress, sink: WandbSink | None, checkpoint_seconds: float
) -> None:
    todo = [(run, one) for one in inputs for run in one.todo(store)]
    for one in inputs:
        seconds = _harvest(one, cluster, progress)
        store.note_stage("harvest", seconds)
    facts = {"versions": provenance.versions(), "hardware": provenance.hardware()}
    training = TrainingStage(store, cluster, progress, sink, facts, checkpoint_seconds)
    seconds = training.run([(run, one) for run, one in todo if store.read_record(run.run_id) is None])
    store.note_stage("train", seconds)
    for one in inputs:
        seconds = _evaluate(one, store, cluster, progress)
        store.note_stage("evaluate", seconds)
    if sink:
        for run, _ in todo:
            if (record := store.read_record(run.run_id)) is not None:
                sink.finish(run, record)


def _harvest(one: Input, cluster: Cluster, progress: SweepProgress) -> float:
    """Make the shards that are missing, on all slots. Returns seconds."""
    from sweeps.workers import WorkerPool

    n_shards = one.source.n_shards(one.cache)
    missing = [index for index in range(n_shards) if not is_complete(one.cache, index)]
    progress.stage("harvest", one.source.config.train_tokens, "tokens")
    tokens = 0

    def done(n_tokens: int) -> None:
        nonlocal tokens
        tokens += n_tokens
        progress.advance_to(tokens)

    if missing:
        with WorkerPool(one.source.config, one.cache, n_workers=min(cluster.n_slots, len(missing)), resources=cluster.actor) as pool:
            pool.map("harvest", missing, done)
    manifest = finish_harvest(one.source, one.cache)
    cached = "" if missing else ", all cached"
    return progress.end_stage(f"{manifest.n_tokens:,} tokens of width {manifest.d_in}{cached}")


def _evaluate(one: Input, store: Store, cluster: Cluster, progress: SweepProgress) -> float:
    """Measure the trained runs on held-out text, all in one pass, and finish their records. Returns seconds."""
    from sweeps.workers import WorkerPool

    records = {run.run_id: store.read_record(run.run_id) for run in one.runs}
    trained = {run_id: record for run_id, record in records.items() if record is not None and record.status == "trained"}
    n_chunks = one.source.n_eval_chunks(one.cache)
    progress.stage("evaluate", n_chunks, "chunks")
    if trained:
        chunks: list[ChunkSums] = []

        def done(sums: ChunkSums) -> None:
            chunks.append(sums)
            progress.advance_to(len(chunks))

        saes = {run_id: store.sae(run_id) for run_id in trained}
        n_workers = min(cluster.n_slots, n_chunks)
        with WorkerPool(one.source.config, one.cache, n_workers=n_workers, resources=cluster.actor, saes=saes) as pool:
            pool.map("evaluate", range(n_chunks), done)
        values, n_tokens = combine(chunks)
        eval_hash = one.source.eval_fingerprint(one.cache)
        for run_id, record in trained.items():
            store.write_record(_finished(record, values[run_id], n_tokens, eval_hash))
    return progress.end_stage(f"{len(trained)} SAEs on {n_chunks} chunks of held-out text")


def _finished(record: RunRecord, metrics: dict[str, float | None], n_tokens: int, eval_hash: str) -> RunRecord:
    specs = [dataclasses.asdict(METRICS[name].spec) for name in METRICS]
    return dataclasses.replace(record, status="finished", metrics=metrics, metric_specs=specs, eval_tokens=n_tokens, eval_hash=eval_hash)


def _write_report(store: Store, progress: SweepProgress) -> None:
    """Table and report, from the records that are there."""
    from analysis.report import write_report
    from analysis.table import load_table, write_table

    progress.stage("report", 1, "report")
    write_table(load_table(store.directory), store.directory)
    if store.records():
        write_report([store.directory], store.report)
    progress.end_stage(str(store.report / "report.html"))


def _result(store: Store, runs: list[RunConfig], interrupted: bool) -> LaunchResult:
    asked = {run.run_id for run in runs}
    status = [one for one in store.status() if one.run_id in asked]
    return LaunchResult(
        directory=store.directory,
        finished=sum(one.state == "finished" for one in status),
        failed={one.run_id: one.reason for one in status if one.state == "failed"},
        missing=[one.run_id for one in status if one.state in ("missing", "trained")],
        interrupted=interrupted,
    )


@contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    """Schedulers end jobs with SIGTERM: stop as cleanly as on Ctrl-C. Only the main thread may set signal handlers."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
