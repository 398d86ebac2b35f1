"""Launch a sweep: check everything, harvest, train and evaluate or search, write table and report. Relaunching does what is missing.

Ray runs the work; the records under results/ are the truth about it. Ray's own state lies in a scratch directory and is never
read back: a relaunch starts a new experiment with the runs that have no record, each from its own checkpoint.
"""

import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_core import provenance
from sae_core.activations.shards import cache_directory, is_complete, was_finished
from sae_core.activations.shards import finish as finish_harvest
from sae_core.activations.source import ActivationSource
from sae_core.config import SOURCES, ActivationsConfig, RunConfig
from sae_core.evaluation import ChunkSums, combine, evaluated
from sae_core.sparse.kernels import Choice
from sweeps.cluster import Cluster
from sweeps.definition import Sweep
from sweeps.local_data import locate
from sweeps.progress import SweepProgress
from sweeps.store import Store, may_recover
from sweeps.wandb_sink import WandbSink

if TYPE_CHECKING:
    from sweeps.search import Study
    from sweeps.training_stage import TrainingStage
    from sweeps.workers import WorkerPools


@dataclass(frozen=True, slots=True)
class LaunchResult:
    """How a launch ended."""

    directory: Path
    finished: int
    """Runs with a finished record."""
    failed: dict[str, str]
    """Run id -> reason."""
    missing: list[str]
    """Run ids without a record that says finished, pruned or failed."""
    interrupted: bool
    pruned: dict[str, str] = field(default_factory=dict)
    """Run id -> why it was stopped early."""
    tokens_asked: int = 0
    """Training tokens of all runs together, if none were stopped early."""
    tokens_spent: int = 0
    """Training tokens of the runs that are finished or pruned."""


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
    kernels: Choice = "fast",
    progress: SweepProgress | None = None,
) -> LaunchResult:
    """Train and evaluate what is missing of a sweep, then write its table and report.

    Args:
        results: the directory in which the sweep's own one is made.
        address: of a running Ray cluster; None starts Ray on this machine. `results` must then be on storage all nodes share.
        checkpoint_seconds: least time between two checkpoints of a run: the most training that an interruption can cost.
        kernels: `reference` trains and evaluates with plain PyTorch only, several times slower on CPU: the check that the fast kernels
            change nothing.
        progress: what shows progress; the terminal by default.

    Raises:
        ConfigError: what is asked for is not possible. No work was begun.
    """
    store = Store(Path(results) / sweep.name)
    study = _study(sweep, store)
    runs = sweep.runs() if study is None else study.runs()
    store.check_ours(runs if study is None else study.space.corners)
    cluster = Cluster(address=address, cpus=cpus_per_trial, gpus=gpus_per_trial)
    sink = WandbSink(sweep.wandb, sweep.name, store) if sweep.wandb and sweep.wandb.mode != "disabled" else None
    inputs = _inputs(runs, [run.activations for run in runs] if study is None else [study.space.activations], store)
    todo = [one for one in inputs if (one.todo(store) if study is None else study.n_left())]
    with _sigterm_as_ctrl_c(), ExitStack() as until_report:
        pools = until_report.enter_context(_workers(cluster, todo, kernels))
        if pools is not None:
            from sweeps.training_stage import TrainingStage  # takes a second, in which the workers load

            _check(todo, pools)
        with store.locked():
            store.begin(sweep, runs)
            _retry_failed(runs, store)
            with progress or SweepProgress() as shown:
                interrupted = False
                if pools is None:
                    shown.note(_nothing_left(runs, store))
                else:
                    training = TrainingStage(store, cluster, shown, sink, _facts(), checkpoint_seconds, sweep.early_stopping, kernels)
                    interrupted = not _finishes(lambda: _run_stages(todo, store, pools, shown, sink, training, study), sink)
                until_report.close()  # alone: Ray ends a process, with exit code 1, in which one of its references goes while it stops
                _write_report(store, shown)
            store.end()
    return _result(store, runs if study is None else study.runs(), interrupted)


@contextmanager
def _workers(cluster: Cluster, todo: Sequence[Input], kernels: Choice) -> Iterator["WorkerPools | None"]:
    """Ray, and the workers of the first harvest, which begin to load; None, and nothing started, if nothing is to be done."""
    if not todo:
        yield None
        return
    with cluster:
        from sweeps.workers import WorkerPools

        pools = WorkerPools(cluster, kernels)
        try:
            if first := _first_to_harvest(todo):
                pools.load(first.source.config, first.cache)
            yield pools
        finally:
            pools.close()


def _first_to_harvest(inputs: Sequence[Input]) -> Input | None:
    return next((one for one in inputs if not was_finished(one.cache)), None)


def _check(inputs: Sequence[Input], pools: "WorkerPools") -> None:
    """Look at models and texts, then tokenise: in a worker, where the libraries that this takes seconds to import are needed anyway.

    One that loads already, for all inputs: the workers of a second one could wait for slots that the first one's hold.

    Raises:
        ConfigError: with every problem found, one a line.
    """
    first = _first_to_harvest(inputs) or inputs[0]
    sources = [(one.source.config.model_dump(mode="json"), str(one.cache)) for one in inputs]
    pools.of(first.source.config, first.cache, 1).ask("prepare", sources)


def _finishes(work: Callable[[], None], sink: WandbSink | None) -> bool:
    """Do the work. Whether it came to its end, or was interrupted."""
    try:
        work()
    except KeyboardInterrupt:
        return False
    finally:
        if sink:
            sink.close()
    return True


def _study(sweep: Sweep, store: Store) -> "Study | None":
    """The study of a search; None for a grid."""
    if sweep.search is None:
        return None
    from sweeps.search import Study

    return Study(sweep.space(), sweep.search, store.search)


def _inputs(runs: Sequence[RunConfig], configs: Iterable[ActivationsConfig], store: Store) -> list[Input]:
    """The activations of the sweep, each with its runs and its place in the cache.

    Raises:
        ConfigError: model or text are not there, or changed since records were made.
    """
    by_config: dict[str, Input] = {}
    for config in configs:
        key = config.model_dump_json()
        if key not in by_config:
            source = SOURCES[config.source](locate(config, store.activations))
            fingerprint = source.fingerprint()
            metadata = SOURCES[config.source](config).export_metadata()
            by_config[key] = Input(source, cache_directory(store.activations, fingerprint), fingerprint, metadata)
    for run in runs:
        by_config[run.activations.model_dump_json()].runs.append(run)
    store.check_hashes({run.run_id: one.activations_hash for one in by_config.values() for run in one.runs})
    return list(by_config.values())


def _retry_failed(runs: list[RunConfig], store: Store) -> None:
    """Remove the records of failures that may not happen again, so that these runs are tried again."""
    for run in runs:
        record = store.read_record(run.run_id)
        if record is not None and may_recover(record):
            store.record_file(run.run_id).unlink()


def _facts() -> dict[str, Any]:
    return {"versions": provenance.versions(), "hardware": provenance.hardware()}


def _run_stages(
    inputs: list[Input],
    store: Store,
    pools: "WorkerPools",
    progress: SweepProgress,
    sink: WandbSink | None,
    training: "TrainingStage",
    study: "Study | None",
) -> None:
    done = {run_id for run_id, record in store.records().items() if record.status != "trained"}
    for one in inputs:
        seconds = _harvest(one, pools, progress)
        store.note_stage("harvest", seconds)
    if study is None:
        runs = [(run, one) for one in inputs for run in one.runs]
        seconds = training.run([(run, one) for run, one in runs if store.read_record(run.run_id) is None])
        store.note_stage("train", seconds)
        for one in inputs:
            seconds = _evaluate(one, store, pools, progress)
            store.note_stage("evaluate", seconds)
    else:
        pools.close()  # its trials evaluate by themselves
        study.open()
        seconds = training.search(study, inputs[0])
        store.note_stage("search", seconds)
    if sink:
        for run in [run for one in inputs for run in one.runs] if study is None else study.runs():
            if run.run_id not in done and (record := store.read_record(run.run_id)) is not None:
                sink.finish(run, record)


def _harvest(one: Input, pools: "WorkerPools", progress: SweepProgress) -> float:
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
        pools.of(one.source.config, one.cache, len(missing)).map("harvest", missing, done)
    pools.rest()
    manifest = finish_harvest(one.source, one.cache)
    cached = "" if missing else ", all cached"
    return progress.end_stage(f"{manifest.n_tokens:,} tokens of width {manifest.d_in}{cached}")


def _evaluate(one: Input, store: Store, pools: "WorkerPools", progress: SweepProgress) -> float:
    """Measure the trained runs on held-out text, all in one pass, and finish their records. Returns seconds."""
    records = {run.run_id: store.read_record(run.run_id) for run in one.runs}
    trained = {run_id: record for run_id, record in records.items() if record is not None and record.status == "trained"}
    n_chunks = one.source.n_eval_chunks(one.cache)
    progress.stage("evaluate", n_chunks, "chunks")
    if trained:
        chunks: list[ChunkSums] = []

        def done(sums: ChunkSums) -> None:
            chunks.append(sums)
            progress.advance_to(len(chunks))

        saes = {run_id: str(store.sae(run_id)) for run_id in trained}
        pools.of(one.source.config, one.cache, n_chunks).map("evaluate", range(n_chunks), done, saes)
        pools.rest()
        values, n_tokens = combine(chunks)
        eval_hash = one.source.eval_fingerprint(one.cache)
        for run_id, record in trained.items():
            store.write_record(evaluated(record, values[run_id], n_tokens, eval_hash))
    return progress.end_stage(f"{len(trained)} SAEs on {n_chunks} chunks of held-out text")


def _nothing_left(runs: Sequence[RunConfig], store: Store) -> str:
    """Why nothing is trained; and if so, that there are only the records, as of a sweep that somebody committed."""
    text = f"train: nothing is left, all {len(runs)} runs have their record in {store.directory}"
    records = [store.read_record(run.run_id) for run in runs]
    gone = sum(record is not None and record.status == "finished" and not store.sae(record.run_id).exists() for record in records)
    return f"{text}, {gone} of them without its SAE: delete their directories under runs/ to train them again" if gone else text


def _write_report(store: Store, progress: SweepProgress) -> None:
    """Table and report, from the records that are there."""
    if not store.status():  # a search that was interrupted before its first trial
        return
    progress.stage("report", 1, "report")  # it takes the time of its imports, too
    from analysis.report import write_report
    from analysis.table import load_table, write_table

    write_table(load_table(store.directory), store.directory)
    if store.records():
        write_report([store.directory], store.report)
    progress.end_stage(str(store.report / "report.html"))


def _result(store: Store, runs: Sequence[RunConfig], interrupted: bool) -> LaunchResult:
    asked = {run.run_id for run in runs}
    records = store.records()
    status = [one for one in store.status() if one.run_id in asked]
    return LaunchResult(
        directory=store.directory,
        finished=sum(one.state == "finished" for one in status),
        failed={one.run_id: one.reason for one in status if one.state == "failed"},
        missing=[one.run_id for one in status if one.state in ("missing", "trained")],
        interrupted=interrupted,
        pruned={one.run_id: one.reason for one in status if one.state == "pruned"},
        tokens_asked=sum(run.n_steps * run.train.batch_size for run in runs),
        tokens_spent=sum(records[run_id].train_tokens or 0 for run_id in asked if run_id in records),
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
