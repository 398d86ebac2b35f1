"""The dry run: what a launch would do, and what it would take. Nothing is started and nothing is left on disk."""

import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sae_core import provenance
from sae_core.config.run import SOURCES, ActivationsConfig, RunConfig
from sae_core.records import RunState, flat
from sweeps.definition.local_data import locate
from sweeps.definition.sweep import Sweep
from sweeps.demo.corpus import demo_text_file
from sweeps.planning.grouping import Width, group_bytes, group_runs, lone_runs, n_parameters, training_flops
from sweeps.storage.store import Store, may_recover

_FLOAT_BYTES = 4


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """One run of the plan."""

    run_id: str
    setting: str
    """What it is, e.g. "jumprelu target_l0=16 lr=0.001 seed=0"."""
    state: RunState
    tokens: int
    """Tokens it trains on: whole batches."""
    flops: float
    """Floating-point operations of its training."""
    group: int | None
    """Number of the group it trains in, from 1; None if it need not be trained."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a launch would do. Bytes are estimates."""

    name: str
    directory: Path
    runs: tuple[PlannedRun, ...]
    n_slots: int
    n_groups: int
    harvest_tokens: int
    """Training tokens that the language model reads for all runs together, where they are not cached."""
    eval_tokens: int
    """Held-out tokens that it reads for all runs together."""
    flops: float
    """Floating-point operations of the training that is left."""
    memory_bytes: int
    """Memory a slot needs for training, beside the program itself; 0 if nothing is left to train."""
    activations_bytes: int
    """Disk for the cached activations."""
    results_bytes: int
    """Disk for the exported SAEs."""


@dataclass(frozen=True, slots=True)
class _Activations:
    config: ActivationsConfig
    """With real paths."""
    d_in: int
    n_bytes: int
    """Of the cached training activations."""


def plan(sweep: Sweep, results: Path, n_slots: int) -> Plan:
    """What `launch` would do.

    Args:
        results: the directory in which the sweep's own one is, or would be.
        n_slots: groups that train at the same time.

    Raises:
        ConfigError: the definition, the model, the text or the results directory is not as it must be.
    """
    runs = sweep.runs()
    store = Store(results / sweep.name)
    store.check_ours(runs)
    configs = {_key(run): run.activations for run in runs}
    activations = _survey(configs, store.paths.activations)

    def d_in(run: RunConfig) -> int:
        return activations[_key(run)].d_in

    records = store.records()
    ids = [run.run_id for run in runs]
    states: dict[str, RunState] = {run_id: records[run_id].status if run_id in records else "missing" for run_id in ids}
    to_do_ids = {run_id for run_id in ids if run_id not in records or may_recover(records[run_id])}
    to_do = [run for run, run_id in zip(runs, ids, strict=True) if run_id in to_do_ids]
    groups = _groups(sweep, to_do, d_in, n_slots)
    number = {run.run_id: index for index, group in enumerate(groups, start=1) for run in group}
    return Plan(
        name=sweep.name,
        directory=store.directory,
        runs=tuple(
            PlannedRun(
                run_id=run_id,
                setting=setting,
                state=states[run_id],
                tokens=run.n_steps * run.train.batch_size,
                flops=training_flops(run, d_in(run)),
                group=number.get(run_id),
            )
            for run, run_id, setting in zip(runs, ids, _settings(runs), strict=True)
        ),
        n_slots=n_slots,
        n_groups=len(groups),
        harvest_tokens=sum(config.train_tokens for config in configs.values()),
        eval_tokens=sum(config.eval_tokens for config in configs.values()),
        flops=sum(training_flops(run, d_in(run)) for run in to_do),
        memory_bytes=max((group_bytes(group, d_in) for group in groups), default=0),
        activations_bytes=sum(found.n_bytes for found in activations.values()),
        results_bytes=sum(n_parameters(run, d_in(run)) * _FLOAT_BYTES for run in runs),
    )


def _groups(sweep: Sweep, runs: Sequence[RunConfig], d_in: Width, n_slots: int) -> list[list[RunConfig]]:
    """The groups that a launch would train."""
    memory = None if provenance.n_gpus() else provenance.slot_memory_bytes(n_slots)
    if sweep.early_stopping:
        return lone_runs(runs, d_in=d_in, memory_bytes=memory)
    return group_runs(runs, n_slots=n_slots, d_in=d_in, memory_bytes=memory)


def _settings(runs: Sequence[RunConfig]) -> list[str]:
    """What each run is: what it was asked for, and the fields in which runs of its architecture differ."""
    fields = [flat(run.model_dump(mode="json")) for run in runs]
    seen: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for run, values in zip(runs, fields, strict=True):
        for name, value in values.items():
            seen[run.sae.architecture][name].add(str(value))
    varied = {architecture: [name for name, found in names.items() if len(found) > 1] for architecture, names in seen.items()}
    texts = []
    for run, values in zip(runs, fields, strict=True):
        asked = "target_l0" if run.sae.target_l0 else run.sae.sparsity_parameter
        told = {"sae.target_l0", f"sae.{run.sae.sparsity_parameter}", "seed"}
        parts = [
            f"{asked}={getattr(run.sae, asked):g}",
            *(f"{name.rpartition('.')[2]}={values.get(name)}" for name in varied[run.sae.architecture] if name not in told),
        ]
        texts.append(" ".join([run.sae.architecture, *parts, f"seed={run.seed}"]))
    return texts


def lines(plan: Plan) -> list[str]:
    """The plan as text: a line per run, the sums below."""
    id_width, setting_width = (max(len(getattr(run, name)) for run in plan.runs) for name in ("run_id", "setting"))
    left = sum(run.group is not None for run in plan.runs)
    rows = [
        f"{run.run_id:<{id_width}}  {run.setting:<{setting_width}}  {run.tokens:>11,} tokens  {run.flops:.1e} FLOPs  {_todo(run)}"
        for run in plan.runs
    ]
    return [
        f"Sweep {plan.name}: {len(plan.runs)} runs, {left} to train. Results in {plan.directory}",
        *rows,
        f"harvest     {plan.harvest_tokens:,} training tokens, once for all runs",
        f"evaluation  {plan.eval_tokens:,} held-out tokens",
        f"training    {plan.flops:.1e} FLOPs in {plan.n_groups} groups on {plan.n_slots} slots",
        f"memory      {_size(plan.memory_bytes)} per slot for training, beside the program itself",
        f"disk        {_size(plan.activations_bytes)} for activations, {_size(plan.results_bytes)} for results",
    ]


def search_lines(sweep: Sweep, results: Path, n_slots: int) -> list[str]:
    """What `launch` would do for a search, as text.

    Args:
        n_slots: trials that are made at the same time.

    Raises:
        ConfigError: the definition, the model, the text or the results directory is not as it must be.
    """
    from sweeps.execution.search import Study

    assert sweep.search is not None, f"{sweep.search=}"
    space, search = sweep.space(), sweep.search
    store = Store(results / sweep.name)
    store.check_ours(space.corners)
    _survey({"": space.activations}, store.paths.activations)
    study = Study(space, search, store.paths.search)
    left, tokens, n_runs = study.n_left(), space.activations.train_tokens, space.axes.n_repeats
    objectives = ", ".join(f"{name} ({direction})" for name, direction in zip(search.objectives, study.directions, strict=True))
    return [
        f"Search {sweep.name}: {search.trials} trials, {left} to make. Results in {store.directory}",
        *(f"  {line}" for line in space.lines()),
        f"objectives  {objectives}, proposed by {search.sampler}",
        f"training    {n_runs} x {tokens:,} tokens per trial (seeds x tokens), {left * n_runs * tokens:,} tokens left",
        f"harvest     {tokens:,} training tokens, once for all trials",
        f"evaluation  {space.activations.eval_tokens:,} held-out tokens, in each trial",
    ]


def _todo(run: PlannedRun) -> str:
    if run.group is None:
        return {"finished": "done", "trained": "to evaluate"}.get(run.state, run.state)
    return f"{'failed, ' if run.state == 'failed' else ''}to do (group {run.group})"


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 2**30:.1f} GiB" if n_bytes >= 2**30 else f"{n_bytes / 2**20:.0f} MiB"


def _key(run: RunConfig) -> str:
    return run.activations.model_dump_json()


def _survey(configs: dict[str, ActivationsConfig], cache: Path) -> dict[str, _Activations]:
    """Check every source of activations, and find how wide they are."""
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        for key, config in configs.items():
            # Where no launch has made the demo's text before, it is made for this check and thrown away.
            located = locate(config, cache if demo_text_file(cache).exists() else Path(scratch))
            source = SOURCES[located.source](located)
            source.check()
            width = 4 if source.activations_dtype == "float32" else 2
            found[key] = _Activations(located, source.d_in, config.train_tokens * source.d_in * width)
    return found
