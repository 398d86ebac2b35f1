"""Launch a sweep: check everything, harvest, train and evaluate or search, write table and report. Relaunching does what is missing.

An executor does the work; the records under results/ are the truth about it. A relaunch starts with the runs that have no record, each
from its own checkpoint.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from sae_core import plugins
from sae_core.activations.shards import remove_damaged
from sae_core.config.base import Config, Count
from sae_core.config.run import ARCHITECTURES, NORMALIZATIONS, SOURCES, RunConfig
from sae_core.errors import border
from sae_core.layout import SweepPaths
from sae_core.metrics.evaluators import EVALUATORS, column_specs
from sae_core.metrics.metric import METRICS
from sae_core.notebook import first_lines, table_of
from sae_core.orders import StoppedError
from sae_core.sparse.kernels.choice import Choice
from sae_core.trainable import TrialConfig
from sweeps.definition.problems import Problems, collect
from sweeps.definition.sweep import Sweep
from sweeps.execution import failures, signals
from sweeps.execution.budget import Budget
from sweeps.execution.executor import EXECUTORS, Executor, ExecutorName
from sweeps.execution.loggers import Loggers
from sweeps.execution.preflight import needs_of
from sweeps.execution.progress import SweepProgress
from sweeps.execution.stages import run_stages, tell_hangs
from sweeps.execution.work import Grid, Search, Work
from sweeps.planning.caches import fit
from sweeps.planning.inputs import SharedActivations, check_kinds
from sweeps.planning.variants import without_snapshots
from sweeps.storage.cache_use import held
from sweeps.storage.leftovers import remove_temporary
from sweeps.storage.lock import locked
from sweeps.storage.mirror import Mirror
from sweeps.storage.mirror_copying import Copying
from sweeps.storage.mirror_fetch import fetch
from sweeps.storage.store import Store, may_recover


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
    not_mirrored: dict[str, str] = field(default_factory=dict)
    """Runs and files that could not be copied to the mirror, and why."""
    stopped: str = ""
    """Why the launch was ordered to stop; empty if it was not."""

    def __repr__(self) -> str:
        ended = "interrupted" if self.interrupted else f"stopped: {self.stopped}" if self.stopped else ""
        return f"LaunchResult({', '.join(part for part in (str(self.directory), self._counts, ended) if part)})"

    @property
    def _counts(self) -> str:
        others = {"pruned": self.pruned, "failed": self.failed, "missing": self.missing, "not mirrored": self.not_mirrored}
        return ", ".join([f"{self.finished} finished", *(f"{len(names)} {what}" for what, names in others.items() if names)])

    def _repr_html_(self) -> str:
        reasons = {**self.failed, **dict.fromkeys(self.missing, "missing"), **self.not_mirrored}
        facts = {
            "runs": self._counts,
            "training tokens": f"{self.tokens_spent:,} of {self.tokens_asked:,}" if self.tokens_asked else "",
            "stopped": self.stopped or ("interrupted" if self.interrupted else ""),
            "report": SweepPaths(self.directory).report / "report.html" if self.finished else "",
            "problems": first_lines(f"{name}: {reason}" for name, reason in reasons.items()),
        }
        return table_of(f"Launch of {self.directory}", facts)


class Options(Config):
    """Arguments of `launch`, checked as the command line would."""

    executor: ExecutorName
    address: str | None
    cpus_per_trial: Count
    gpus_per_trial: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    checkpoint_seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 60.0
    kernels: Choice = "fast"
    cache_limit: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None
    mirror: str | None = None
    ship_code: bool
    local_cache: str | Path | None = None
    max_hours: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    max_tokens: Count | None = None
    stall_seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]


def launch(
    sweep: Sweep,
    *,
    results: str | Path = "results",
    executor: ExecutorName = "ray",
    address: str | None = None,
    cpus_per_trial: int = 1,
    gpus_per_trial: float = 0.0,
    checkpoint_seconds: float = 60.0,
    kernels: Choice = "fast",
    cache_limit: float | None = None,
    mirror: str | None = None,
    ship_code: bool = False,
    local_cache: str | Path | None = None,
    max_hours: float | None = None,
    max_tokens: int | None = None,
    stall_seconds: float = 600.0,
    progress: SweepProgress | None = None,
) -> LaunchResult:
    """Train and evaluate what is missing of a sweep, then write its table and report.

    Args:
        results: the directory in which the sweep's own one is made.
        executor: "ray", or "inline": one trial after another in this process, without Ray, for debuggers and tests. Results are the same.
        address: of a running Ray cluster; None starts Ray on this machine. `results` must then be on storage all nodes share.
        checkpoint_seconds: least time between two checkpoints of a run: the most training that an interruption can cost.
        kernels: `reference` trains and evaluates with plain PyTorch only, several times slower on CPU: the check that the fast kernels
            change nothing.
        cache_limit: most GiB that the activations of this sweep may take; None: what the disk has. Where they do not fit, each group makes
            the rest again as it reads them.
        mirror: URL, of any kind that fsspec opens, to which results are copied as they appear, and from which an empty directory starts.
        ship_code: run this process's code, with plugins, on the nodes of the cluster at `address`, instead of what is installed there.
        local_cache: directory on each node's own disk: activations are copied there once per node, and read from there.
        max_hours: after which the launch is stopped, with a checkpoint of each run; the same call resumes.
        max_tokens: as `max_hours`: training tokens of this launch, of all runs together.
        stall_seconds: most time that a process may train, harvest or evaluate without completing a step, or may be stopped at any moment;
            it is then ended, and what it did is repeated from the last checkpoint, shard or chunk. 0: any time. Not for the executor
            "inline".
        progress: what shows progress; the terminal by default.

    Raises:
        ConfigError: what is asked for is not possible. No work was begun.
        LaunchError: Ray or a worker died. What is finished is kept.
        LeaseLostError: the results directory could not be held, or another launch has taken it. What is finished is kept.
    """
    given = dict(locals())
    options = checked_options(sweep, {name: given[name] for name in Options.model_fields})
    with signals.handled():
        return _launch(sweep, results, options, progress or SweepProgress())


def _launch(sweep: Sweep, results: str | Path, options: Options, progress: SweepProgress) -> LaunchResult:
    """`launch`, once its arguments were checked."""
    store = results_store(results, sweep.name)
    work = work_of(sweep, store)
    store.check_ours(work.examples)
    engine = EXECUTORS[options.executor](
        options.address, options.cpus_per_trial, options.gpus_per_trial, options.kernels, options.ship_code, options.stall_seconds
    )
    copies = Mirror(options.mirror, store) if options.mirror else None
    with locked(store.directory, signals.interrupt) as lease, progress as shown, Copying(copies, shown.note) as copying:
        if copies is not None:
            fetch(copies, work.examples, shown.note)
            work = work_of(sweep, store)
        store.paths.orders.unlink(missing_ok=True)  # those of an earlier launch
        budget, loggers = Budget(store.paths.orders, options.max_hours, options.max_tokens), Loggers(sweep, store)
        inputs = work.to_do()
        interrupted = False
        with ExitStack() as until_report:
            until_report.enter_context(budget)
            until_report.enter_context(failures.last_act(lambda: _rescue(store, shown)))
            until_report.enter_context(held([(shared.cache, shared.source.config.model_dump(mode="json")) for shared in inputs], lease))
            if inputs:
                engine.needs = needs_of(store.directory, [shared.source for shared in inputs], work.runs())
                until_report.enter_context(engine)
                check_inputs(inputs, store, engine, shown)
                needs = [(shared, work.to_train(shared)) for shared in inputs]
                slot_bytes, holds_model = engine.slot_bytes, work.evaluates_trials
                fit(needs, store.directory, limit_gib=options.cache_limit, slot_bytes=slot_bytes, holds_model=holds_model)
            number = store.begin(sweep, work.runs())
            shown.publish(store.paths.progress, number)
            copying.start()
            remove_temporary(store.directory)
            _forget(work.runs(), store, shown)
            if lacking := without_snapshots(sweep, work.runs(), store):
                lack = f"{len(lacking)} run{'s lack' if len(lacking) > 1 else ' lacks'} some"
                shown.note(f"snapshots: {lack}, trained before they were asked for. Delete the directory of a run to train it again")
            if inputs:
                settings = _settings(sweep, store, number, options)
                with closing(loggers):
                    interrupted = not finishes(
                        lambda: run_stages(work, inputs, store, engine, shown, loggers, settings, budget), engine, shown, budget
                    )
            else:
                shown.note(_nothing_left(work.runs(), store))
            lease.check()
            with signals.held(interrupted) as late:
                until_report.close()  # alone: Ray ends a process, with exit code 1, in which one of its references goes while it stops
                if interrupted:
                    remove_temporary(store.directory)
                write_table_and_report(store, shown, is_hurried=interrupted and not engine.died)
        store.end()
        interrupted = interrupted or late.interrupted
        not_copied = copying.finish(signals.seconds_left() if interrupted else None)
    engine.raise_death()
    return replace(_result(store, work.runs(), interrupted, not_copied), stopped=budget.stopped)


def work_of(sweep: Sweep, store: Store) -> Work:
    return Search(sweep, store) if sweep.search else Grid(sweep, store)


def checked_options(sweep: Any, options: Mapping[str, Any]) -> Options:
    """Make sure that a caller in Python gives what the command line would, or tell all problems together."""
    from analysis.columns import NOT_METRICS

    problems = Problems()
    if not isinstance(sweep, Sweep):
        problems.add("", f"`sweep` must be a Sweep, but got {sweep!r}. Make one with `Sweep.from_yaml`.")
    checked = None
    try:
        checked = Options(**options)
    except ValidationError as error:
        collect(error, problems, ".".join, Options)
    if checked and checked.ship_code and checked.address is None:
        problems.add("", "`--ship-code` must be given with `--address`, but got no address. Leave it out: this machine has the code.")
    for entry in plugins.unnamed([ARCHITECTURES, SOURCES, NORMALIZATIONS, METRICS, EVALUATORS]):
        problems.add("", f"{entry} is registered by no plugin, so no worker would know it. Name its file or module under `plugins`.")
    if taken := sorted(column_specs().keys() & NOT_METRICS):
        problems.add("", f"metrics and evaluators must have columns of their own, but got {taken}, which the table has. Rename them.")
    problems.raise_any()
    assert checked is not None, f"{options=}"
    return checked


def results_store(results: str | Path, name: str) -> Store:
    """Where the results lie. What cannot be the path of a directory is refused."""
    with border(f"`--results` must be the path of a directory, but got {str(results)!r}", "Choose another."):
        directory = Path(results).expanduser().absolute()
        existing = next(path for path in (directory, *directory.parents) if path.exists())
        if not existing.is_dir():
            raise NotADirectoryError(f"{str(existing)!r} is not a directory")
    return Store(directory / name)


def _settings(sweep: Sweep, store: Store, number: int, options: Options) -> TrialConfig:
    """What all trials share, in the launch of this number."""
    return TrialConfig(
        runs=[],
        cache="",
        directory=str(store.paths.runs),
        orders=str(store.paths.orders),
        plugins=plugins.checksums(),
        checkpoint_seconds=options.checkpoint_seconds,
        stall_seconds=options.stall_seconds if options.executor == "ray" else 0.0,
        kernels=options.kernels,
        gpus=options.gpus_per_trial,
        local_cache=str(Path(options.local_cache).expanduser().absolute()) if options.local_cache else "",
        facts={"launch": number},
        keep_states=sweep.keep_states,
        rungs=sweep.early_stopping.rungs if sweep.early_stopping else [],
        snapshots=sweep.snapshots,
    )


def check_inputs(inputs: Sequence[SharedActivations], store: Store, executor: Executor, progress: SweepProgress) -> None:
    """Remove damaged files from the caches, then check models and texts and tokenize: in a worker, which needs the libraries anyway.

    Raises:
        ConfigError: with every problem found, one per line.
    """
    signals.check()
    for shared in inputs:
        if damaged := remove_damaged(shared.cache):
            names = ", ".join(path.name for path in damaged)
            verb = "were" if len(damaged) > 1 else "was"
            progress.note(f"activations: {names} in {shared.cache} {verb} damaged and will be created again")
    try:
        told = executor.pool.ask("prepare", [shared.arguments for shared in inputs])
    finally:
        tell_hangs(store, progress)
    for shared, (facts, shared.d_in, shared.d_out, shared.parts, shared.model_bytes) in zip(inputs, told, strict=True):
        shared.facts |= facts
    check_kinds(inputs, store.paths.runs)


def finishes(work: Callable[[], None], executor: Executor, progress: SweepProgress, budget: Budget) -> bool:
    """Do the work. Whether it came to its end, or an order ended it; else it was interrupted, if only by the death of Ray."""
    try:
        work()
    except KeyboardInterrupt:
        signals.was_interrupted()
        return False
    except StoppedError:
        budget.stopped = budget.reason or "`sae-sweep stop`"
        progress.note(f"stopped: {budget.stopped}; the same command resumes")
    except Exception:
        # An interrupt in the midst of compiled code may come as an error of its own: numba makes it a SystemError.
        if not signals.was_interrupted() and not executor.died:
            raise
        return False
    return True


def _forget(runs: Sequence[RunConfig], store: Store, progress: SweepProgress) -> None:
    """Remove the records of runs to train again: of failures that may not happen again, and of SAEs that were damaged before evaluation."""
    for run in runs:
        record = store.read_record(run.run_id)
        is_damaged = record is not None and record.status == "trained" and not store.has_sound_sae(run.run_id)
        if is_damaged:
            progress.note(f"train: the SAE of {run.run_id} was damaged before it was evaluated, so it is trained again")
        if is_damaged or (record is not None and may_recover(record)):
            store.paths.run(run.run_id).record.unlink()


def _nothing_left(runs: Sequence[RunConfig], store: Store) -> str:
    """Why nothing is trained; and if so, that there are only the records, as of a sweep that somebody committed."""
    text = f"train: nothing to do, all {len(runs)} runs have their record in {store.directory}"
    records = [store.read_record(run.run_id) for run in runs]
    gone = sum(record is not None and record.status == "finished" and not store.paths.run(record.run_id).sae.exists() for record in records)
    return f"{text}, {gone} of them without its SAE: delete their directories under runs/ to train them again" if gone else text


def write_table_and_report(store: Store, progress: SweepProgress, *, is_hurried: bool = False) -> None:
    """Table and report, from the records that are there.

    Args:
        is_hurried: leave the report out where it takes longer than a launch may after a signal: with thousands of runs that is a minute.
    """
    if not store.status():  # a search that was interrupted before its first trial
        return
    progress.stage("report", 1, "report")  # it takes the time of its imports, too
    from analysis import stability
    from analysis.results import read_sweeps
    from analysis.table import load_table, write_table

    def write() -> None:
        from analysis.report import write_report

        write_report([store.directory], store.paths.report)

    if not is_hurried:
        stability.measure(read_sweeps(store.directory))
    write_table(load_table(store.directory), store.directory)
    if store.records():
        if is_hurried:
            writing = threading.Thread(target=write, daemon=True)
            writing.start()
            writing.join(signals.seconds_left())
            if writing.is_alive():
                progress.note(f"report: left out, because it takes longer; `sae-sweep report {store.directory}` writes it")
                return
        else:
            write()
    progress.end_stage(str(store.paths.report / "report.html"))


def _rescue(store: Store, progress: SweepProgress) -> None:
    """What a launch does at its end, for one that cannot."""
    remove_temporary(store.directory)
    write_table_and_report(store, progress)
    store.end()


def _result(store: Store, runs: Sequence[RunConfig], interrupted: bool, not_mirrored: dict[str, str]) -> LaunchResult:
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
        tokens_asked=sum(run.n_tokens for run in runs),
        not_mirrored=not_mirrored,
        tokens_spent=sum(records[run_id].train_tokens or 0 for run_id in asked if run_id in records),
    )
