"""Measure published SAEs on the held-out text of a definition: a launch that trains nothing, and adds their records to a sweep's.

Checks, stages, table and report are those of `launcher.launch`. The activations of the training text are made for their mean alone, which
mean ablation needs, and not stored; what a sweep has stored is used.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from sae_core import provenance
from sae_core.errors import ConfigError
from sae_core.evaluation import is_to_evaluate
from sae_core.orders import OrdersFile
from sae_core.records import RunRecord
from sae_core.sae.base import SparseAutoencoder
from sweeps.definition.sweep import Sweep
from sweeps.execution import signals
from sweeps.execution.budget import Budget
from sweeps.execution.executor import EXECUTORS, Executor, ExecutorName
from sweeps.execution.launcher import Options, check_inputs, checked_options, finishes, results_store, work_of, write_table_and_report
from sweeps.execution.preflight import needs_of
from sweeps.execution.progress import SweepProgress
from sweeps.execution.running_ray import SCHEME
from sweeps.execution.stages import evaluate_stage, harvest_stage
from sweeps.planning.inputs import SharedActivations, passes, shared_activations
from sweeps.planning.published import Published, published
from sweeps.storage.cache_use import held
from sweeps.storage.leftovers import remove_temporary
from sweeps.storage.lock import locked
from sweeps.storage.store import Store


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """How an evaluation ended."""

    directory: Path
    saes: list[Published] = field(default_factory=list)
    """Every SAE that was given, once per activations that it was measured on."""
    records: dict[str, RunRecord] = field(default_factory=dict)
    """Run id -> record, of those that are measured."""
    notes: list[str] = field(default_factory=list)
    """What a reader should know."""
    interrupted: bool = False
    stopped: str = ""
    """Why it was ordered to stop; empty if it was not."""


def evaluate(
    sweep: Sweep,
    saes: Sequence[str],
    *,
    results: str | Path = "results",
    executor: ExecutorName = "ray",
    address: str | None = None,
    cpus_per_trial: int = 1,
    gpus_per_trial: float = 0.0,
    ship_code: bool = False,
    stall_seconds: float = 600.0,
    progress: SweepProgress | None = None,
) -> EvaluationResult:
    """Measure SAEs that others have published, so that they stand in the sweep's table and report.

    Args:
        sweep: says which model, hook points and text.
        saes: directories, or names on the Hugging Face Hub: `hub:user/repo[/folder][@revision]`.
        results: see `launcher.launch`, as all further ones.

    Raises:
        ConfigError: what is asked for is not possible. No work was begun.
        LaunchError: Ray or a worker died. What is finished is kept.
        LeaseLostError: the results directory could not be held, or another launch has taken it. What is finished is kept.
    """
    given = dict(locals())
    if address and address.startswith(SCHEME):
        raise ConfigError(f"`--address` of an evaluation must be a cluster that this machine is a node of, but got {address!r}. Go there.")
    options = checked_options(sweep, {"cache_limit": None} | {name: given[name] for name in Options.model_fields if name in given})
    with signals.handled():
        return _evaluate(sweep, saes, results, options, progress or SweepProgress())


def _evaluate(sweep: Sweep, names: Sequence[str], results: str | Path, options: Options, progress: SweepProgress) -> EvaluationResult:
    """`evaluate`, once its arguments were checked."""
    store = results_store(results, sweep.name)
    examples = work_of(sweep, store).examples
    store.check_ours(examples)
    configs = {run.activations.model_dump_json(): run.activations for run in examples}
    inputs = shared_activations(configs.values(), [], store.paths.activations)
    hashes = {key: shared.activations_hash for key, shared in zip(configs, inputs, strict=True)}
    store.check_hashes({run.run_id: hashes[run.activations.model_dump_json()] for run in examples})
    saes = published(names, list(configs.values()), inputs)
    engine = EXECUTORS[options.executor](
        options.address, options.cpus_per_trial, options.gpus_per_trial, options.kernels, options.ship_code, options.stall_seconds
    )
    interrupted = False
    with locked(store.directory, signals.interrupt) as lease, progress as shown:
        store.paths.orders.unlink(missing_ok=True)  # those of an earlier launch
        budget, used = Budget(store.paths.orders), _used(saes, store)
        with ExitStack() as until_end:
            until_end.enter_context(held([(shared.cache, shared.source.config.model_dump(mode="json")) for shared in used], lease))
            if used:
                engine.needs = needs_of(store.directory, [shared.source for shared in used])
                until_end.enter_context(engine)
                check_inputs(used, store, engine, shown)
            shown.publish(store.paths.progress, store.begin(sweep, None))
            remove_temporary(store.directory)
            for note in notes_of(saes):
                shown.note(note)
            if used:
                shown.capacity = engine.capacity
                interrupted = not finishes(lambda: _measure(saes, used, store, engine, shown), engine, shown, budget)
            lease.check()
            with signals.held(interrupted) as late:
                until_end.close()  # alone, as a launch does
                write_table_and_report(store, shown, is_hurried=interrupted and not engine.died)
        store.end()
    engine.raise_death()
    records = {sae.run_id: record for sae in saes if (record := store.read_record(sae.run_id)) and record.status == "finished"}
    return EvaluationResult(store.directory, saes, records, notes_of(saes), interrupted or late.interrupted, budget.stopped)


def notes_of(saes: Sequence[Published]) -> list[str]:
    """What a reader should know of SAEs."""
    return list(dict.fromkeys(note for sae in saes for note in sae.notes))


def _used(saes: Sequence[Published], store: Store) -> list[SharedActivations]:
    """The activations of SAEs that are to be measured, with these."""
    used: dict[int, SharedActivations] = {}
    for sae in saes:
        record = store.read_record(sae.run_id)
        if record is None or is_to_evaluate(record) or not store.has_sound_measurements(record):
            sae.shared.published.append(sae.run_id)
            sae.shared.n_stored = 0
            used[id(sae.shared)] = sae.shared
    return list(used.values())


def _measure(saes: Sequence[Published], used: Sequence[SharedActivations], store: Store, engine: Executor, shown: SweepProgress) -> None:
    """Write what is to be measured, then measure it."""
    orders = OrdersFile(store.paths.orders)
    for group in passes(used):
        store.note_stage("harvest", harvest_stage(group, store, engine, shown, orders))
    for sae in saes:
        if sae.run_id in sae.shared.published and store.read_record(sae.run_id) is None:
            _write(sae, store)
    for group in passes(used):
        store.note_stage("evaluate", evaluate_stage(group, store, engine, shown, orders))


def _write(sae: Published, store: Store) -> None:
    """Write an SAE in the format of exported ones, then a record that says that it is to be measured."""
    paths, metadata = store.paths.run(sae.run_id), sae.shared.metadata
    loaded = SparseAutoencoder.from_pretrained(sae.directory)
    loaded.save_pretrained(paths.sae, {**metadata, "run_id": sae.run_id, "published": sae.origin})
    parameter, value = sae.sparsity
    RunRecord(
        run_id=sae.run_id,
        status="trained",
        config=sae.config,
        architecture=loaded.config.architecture,
        sparsity_parameter=parameter,
        sparsity_value=value,
        seed=None,
        d_in=loaded.d_in,
        d_out=loaded.d_out,
        published=sae.origin,
        activations_hash=sae.shared.activations_hash,
        activation_facts=sae.shared.facts,
        launch=store.n_launches,
        finished_at=provenance.now(),
    ).write(paths.record)
