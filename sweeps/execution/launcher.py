"""Launch a sweep: check everything, harvest, train and evaluate or search, write table and report. Relaunching does what is missing.

Ray runs the work; the records under results/ are the truth about it. Ray's own state lies in a scratch directory and is never
read back: a relaunch starts a new experiment with the runs that have no record, each from its own checkpoint.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from sae_core.activations.shards import remove_damaged
from sae_core.config.run import ActivationsConfig, RunConfig
from sae_core.errors import ConfigError, border
from sae_core.sparse.kernels.choice import Choice
from sweeps.definition.sweep import Sweep
from sweeps.execution import leftovers, signals
from sweeps.execution.cluster import Cluster
from sweeps.execution.loggers.wandb import WandbSink
from sweeps.execution.progress import SweepProgress
from sweeps.execution.stages import run_stages
from sweeps.planning.inputs import SharedActivations, shared_activations
from sweeps.storage.store import Store, may_recover

if TYPE_CHECKING:
    from sweeps.execution.search import Study
    from sweeps.execution.workers import WorkerPool


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
        LaunchError: Ray or a worker died. What is finished is kept.
    """
    _check_arguments(sweep, kernels, cpus_per_trial=cpus_per_trial, gpus_per_trial=gpus_per_trial, checkpoint_seconds=checkpoint_seconds)
    with signals.handled():
        store = _store(results, sweep.name)
        study = _study(sweep, store)
        runs = sweep.runs() if study is None else study.runs()
        store.check_ours(runs if study is None else study.space.corners)
        cluster = Cluster(address=address, cpus=cpus_per_trial, gpus=gpus_per_trial)
        with store.locked(), progress or SweepProgress() as shown:
            sink = WandbSink(sweep.wandb, sweep.name, store) if sweep.wandb and sweep.wandb.mode != "disabled" else None
            inputs = _inputs(runs, [run.activations for run in runs] if study is None else [study.space.activations], store)
            todo = [one for one in inputs if (one.todo(store) if study is None else study.n_left())]
            with ExitStack() as until_report:
                until_report.enter_context(leftovers.held(one.cache for one in todo))
                pool = until_report.enter_context(_workers(cluster, todo, kernels))
                if pool is not None:
                    from sweeps.execution.training import TrainingStage

                    _check(todo, pool, shown)
                number = store.begin(sweep, runs)
                leftovers.remove_temporary(store.directory)
                _retry(runs, store, shown)
                interrupted = False
                if pool is None:
                    shown.note(_nothing_left(runs, store))
                else:
                    _remove_damaged_checkpoints(runs, store, shown)
                    facts = {"launch": number}
                    training = TrainingStage(store, cluster, shown, sink, facts, checkpoint_seconds, sweep.early_stopping, kernels)
                    interrupted = not _finishes(lambda: run_stages(todo, store, pool, shown, sink, training, study), sink, cluster)
                with signals.held(interrupted) as late:
                    until_report.close()  # alone: Ray ends a process, with exit code 1, in which one of its references goes while it stops
                    _write_report(store, shown)
            store.end()
        cluster.raise_death()
        return _result(store, runs if study is None else study.runs(), interrupted or late.interrupted)


def _check_arguments(sweep: Any, kernels: Any, **numbers: Any) -> None:
    """Make sure that a caller in Python gives what the command line would.

    Raises:
        ConfigError: with every problem found, one a line.
    """
    problems = []
    if not isinstance(sweep, Sweep):
        problems.append(f"`sweep` must be a Sweep, but got {sweep!r}. Make one with `Sweep.from_yaml`.")
    if kernels not in get_args(Choice):
        problems.append(f"`kernels` must be one of {list(get_args(Choice))}, but got {kernels!r}. Choose one of them.")
    for name, value in numbers.items():
        is_number = isinstance(value, int if name == "cpus_per_trial" else int | float) and not isinstance(value, bool)
        if not is_number or not 0 <= value < math.inf:
            kind = "whole number" if name == "cpus_per_trial" else "number"
            problems.append(f"`{name}` must be a {kind} from 0 on, but got {value!r}. Correct it.")
    if problems:
        raise ConfigError("\n".join(problems))


def _store(results: str | Path, name: str) -> Store:
    """Where the results lie.

    Raises:
        ConfigError: that cannot be the path of a directory.
    """
    with border(f"`--results` must be the path of a directory, but got {str(results)!r}", "Choose another."):
        directory = Path(results).expanduser().absolute()
        for path in (directory, *directory.parents):
            if path.exists():
                if not path.is_dir():
                    raise NotADirectoryError(f"{str(path)!r} is not a directory")
                break
    return Store(directory / name)


@contextmanager
def _workers(cluster: Cluster, todo: Sequence[SharedActivations], kernels: Choice) -> Iterator["WorkerPool | None"]:
    """Ray and its workers; None, and nothing started, if nothing is to be done."""
    if not todo:
        yield None
        return
    with cluster:
        from sweeps.execution.workers import WorkerPool

        pool = WorkerPool(cluster, kernels)
        try:
            yield pool
        finally:
            if not cluster.died:  # then Ray does not answer
                pool.close()


def _check(inputs: Sequence[SharedActivations], pool: "WorkerPool", progress: SweepProgress) -> None:
    """Remove damaged files from the caches, then check models and texts and tokenize: in a worker, which needs the libraries anyway.

    Raises:
        ConfigError: with every problem found, one a line.
    """
    signals.check()
    for one in inputs:
        if damaged := remove_damaged(one.cache):
            names = ", ".join(path.name for path in damaged)
            progress.note(f"activations: {names} in {one.cache} {'were' if len(damaged) > 1 else 'was'} damaged, and will be made again")
    for one, facts in zip(inputs, pool.ask("prepare", [one.arguments for one in inputs]), strict=True):
        one.facts |= facts


def _finishes(work: Callable[[], None], sink: WandbSink | None, cluster: Cluster) -> bool:
    """Do the work. Whether it came to its end, or was interrupted, if only by the death of Ray."""
    try:
        work()
    except KeyboardInterrupt:
        signals.was_interrupted()
        return False
    except Exception:
        if not cluster.died:
            raise
        return False
    finally:
        if sink:
            sink.close()
    return True


def _study(sweep: Sweep, store: Store) -> "Study | None":
    """The study of a search; None for a grid."""
    if sweep.search is None:
        return None
    from sweeps.execution.search import Study

    return Study(sweep.space(), sweep.search, store.paths.search)


def _inputs(runs: Sequence[RunConfig], configs: Iterable[ActivationsConfig], store: Store) -> list[SharedActivations]:
    """The activations of the sweep, each with its runs and its place in the cache.

    Raises:
        ConfigError: model or text are not there, or changed since records were made.
    """
    inputs = shared_activations(configs, runs, store.paths.activations)
    store.check_hashes({run.run_id: one.activations_hash for one in inputs for run in one.runs})
    return inputs


def _retry(runs: Sequence[RunConfig], store: Store, progress: SweepProgress) -> None:
    """Remove the records of runs that are to be trained again: of failures that may not happen again, and of SAEs that were damaged before
    they were evaluated."""
    for run in runs:
        record = store.read_record(run.run_id)
        is_damaged = record is not None and record.status == "trained" and not store.has_sound_sae(run.run_id)
        if is_damaged:
            progress.note(f"train: the SAE of {run.run_id} was damaged before it was evaluated, so it is trained again")
        if is_damaged or (record is not None and may_recover(record)):
            store.paths.run(run.run_id).record.unlink()


def _remove_damaged_checkpoints(runs: Sequence[RunConfig], store: Store, progress: SweepProgress) -> None:
    for run_id in store.remove_damaged_checkpoints(runs):
        progress.note(f"train: the checkpoint of {run_id} was damaged, so it starts again from its first step")


def _nothing_left(runs: Sequence[RunConfig], store: Store) -> str:
    """Why nothing is trained; and if so, that there are only the records, as of a sweep that somebody committed."""
    text = f"train: nothing is left, all {len(runs)} runs have their record in {store.directory}"
    records = [store.read_record(run.run_id) for run in runs]
    gone = sum(record is not None and record.status == "finished" and not store.paths.run(record.run_id).sae.exists() for record in records)
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
        write_report([store.directory], store.paths.report)
    progress.end_stage(str(store.paths.report / "report.html"))


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
