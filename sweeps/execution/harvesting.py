"""Make and verify the activations of a sweep, and train nothing: a launch that ends after its first stage.

Checks, caches and the stage are those of `launcher.launch`, which then finds the activations there.
"""

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from sae_core.activations.comparison import SAME_ROW
from sae_core.activations.shards import Manifest, damaged_files, read_manifest, shard_path, stored_bytes
from sae_core.orders import OrdersFile
from sweeps.definition.sweep import Sweep
from sweeps.execution import signals
from sweeps.execution.budget import Budget
from sweeps.execution.executor import EXECUTORS, Executor, ExecutorName
from sweeps.execution.launcher import Options, check_inputs, checked_options, finishes, results_store, work_of
from sweeps.execution.preflight import needs_of
from sweeps.execution.progress import SweepProgress
from sweeps.execution.stages import harvest_stage, tell_hangs
from sweeps.planning.caches import fit
from sweeps.planning.inputs import SharedActivations, passes
from sweeps.storage.cache_use import held
from sweeps.storage.leftovers import remove_temporary
from sweeps.storage.lock import locked
from sweeps.storage.store import Store


@dataclass(frozen=True, slots=True)
class HarvestedCache:
    """One cache of activations, as it lies on the disk."""

    path: Path
    activations_hash: str
    source: str
    model: str | None
    hook_point: str | None
    hook_out: str | None
    """Of pairs: where what is to be reconstructed was read."""
    manifest: Manifest
    n_stored: int
    """Training shards on the disk; the others are made again by each group that reads them."""
    n_bytes: int
    """Of the shards."""
    compared_rows: int
    """Rows made again and compared; 0 where no shard is stored."""
    difference: float | None
    """Largest difference between one of them and the stored one, relative to its norm."""
    damaged: tuple[str, ...]
    """Files whose content is not what was written."""

    @property
    def problem(self) -> str:
        """What is wrong with it; empty if nothing is."""
        if self.damaged:
            return f"files of the cache are damaged: {', '.join(self.damaged)}. Check the disk, then harvest again"
        if self.difference is not None and self.difference > SAME_ROW:
            found = "has other rows" if math.isinf(self.difference) else f"differs by {self.difference:.1%} in a row"
            remedy = f"Remove it with `sae-sweep cache rm {self.path.name}`, then harvest again"
            return f"a shard made again {found} (at most {SAME_ROW:.0%}). {remedy}"
        return ""


@dataclass(frozen=True, slots=True)
class HarvestResult:
    """How a harvest ended."""

    directory: Path
    caches: list[HarvestedCache] = field(default_factory=list)
    """Those that are complete; all of the sweep, unless it was interrupted or stopped."""
    n_caches: int = 0
    """Caches of the sweep."""
    interrupted: bool = False
    stopped: str = ""
    """Why the harvest was ordered to stop; empty if it was not."""


def harvest(
    sweep: Sweep,
    *,
    results: str | Path = "results",
    executor: ExecutorName = "ray",
    address: str | None = None,
    cpus_per_trial: int = 1,
    gpus_per_trial: float = 0.0,
    cache_limit: float | None = None,
    ship_code: bool = False,
    stall_seconds: float = 600.0,
    progress: SweepProgress | None = None,
) -> HarvestResult:
    """Make what is missing of the activations of a sweep, then verify all of them: checksums, and one shard of each made again.

    Args: see `launcher.launch`.

    Raises:
        ConfigError: what is asked for is not possible. No work was begun.
        LaunchError: Ray or a worker died. What is finished is kept.
        LeaseLostError: the results directory could not be held, or another launch has taken it. What is finished is kept.
    """
    given = dict(locals())
    options = checked_options(sweep, {name: given[name] for name in Options.model_fields if name in given})
    with signals.handled():
        return _harvest(sweep, results, options, progress or SweepProgress())


def _harvest(sweep: Sweep, results: str | Path, options: Options, progress: SweepProgress) -> HarvestResult:
    """`harvest`, once its arguments were checked."""
    store = results_store(results, sweep.name)
    work = work_of(sweep, store)
    store.check_ours(work.examples)
    engine = EXECUTORS[options.executor](
        options.address, options.cpus_per_trial, options.gpus_per_trial, options.kernels, options.ship_code, options.stall_seconds
    )
    caches: list[HarvestedCache] = []
    with locked(store.directory, signals.interrupt) as lease, progress as shown:
        store.paths.orders.unlink(missing_ok=True)  # those of an earlier launch
        budget, inputs = Budget(store.paths.orders), work.inputs
        with ExitStack() as until_end:
            until_end.enter_context(held([(shared.cache, shared.source.config.model_dump(mode="json")) for shared in inputs], lease))
            engine.needs = needs_of(store.directory, [shared.source for shared in inputs])
            until_end.enter_context(engine)
            check_inputs(inputs, store, engine, shown)
            needs = [(shared, work.to_train(shared)) for shared in inputs]
            fit(needs, store.directory, limit_gib=options.cache_limit, slot_bytes=None, holds_model=False)
            shown.publish(store.paths.progress, store.begin(sweep, work.runs()))
            remove_temporary(store.directory)
            shown.capacity = engine.capacity
            interrupted = not finishes(lambda: caches.extend(_caches(inputs, store, engine, shown)), engine, shown, budget)
            lease.check()
            with signals.held(interrupted) as late:
                until_end.close()  # alone, as a launch does
        store.end()
    engine.raise_death()
    return HarvestResult(store.directory, caches, len(inputs), interrupted or late.interrupted, budget.stopped)


def _caches(inputs: Sequence[SharedActivations], store: Store, engine: Executor, shown: SweepProgress) -> list[HarvestedCache]:
    """Make what is missing, then verify."""
    orders = OrdersFile(store.paths.orders)
    groups = passes(inputs)
    for group in groups:
        store.note_stage("harvest", harvest_stage(group, store, engine, shown, orders))
    shown.stage("verify", len(inputs), "caches", len(groups))
    found: list[HarvestedCache] = []
    try:
        for group in groups:
            orders.go_on()
            found += _verified(group, engine)
            shown.advance_to(len(found))
    finally:
        tell_hangs(store, shown)
    shown.end_stage(f"{len(found)} caches, {sum(cache.n_bytes for cache in found) / 2**30:.2f} GiB")
    return found


def _verified(group: Sequence[SharedActivations], engine: Executor) -> list[HarvestedCache]:
    """The caches of one pass over the text, read again, with the same shard of each made again: that in the middle of those stored."""
    damaged = [damaged_files(shared.cache) for shared in group]
    stored = [{index for index in range(shared.n_shards) if shard_path(shared.cache, index).exists()} for shared in group]
    common = sorted(set.intersection(*stored))
    sound = [shared for shared, names in zip(group, damaged, strict=True) if not names]
    index = common[len(common) // 2] if common else None
    made = engine.pool.ask("compare", index, [shared.arguments for shared in sound]) if index is not None and sound else []
    differences = dict(zip((shared.activations_hash for shared in sound), made, strict=False))
    return [
        _cache(shared, len(indices), names, index, differences.get(shared.activations_hash))
        for shared, indices, names in zip(group, stored, damaged, strict=True)
    ]


def _cache(
    shared: SharedActivations, n_stored: int, damaged: Sequence[Path], index: int | None, difference: float | None
) -> HarvestedCache:
    manifest, metadata = read_manifest(shared.cache), shared.metadata

    def name(key: str) -> str | None:
        return str(metadata[key]) if metadata.get(key) is not None else None

    return HarvestedCache(
        path=shared.cache,
        activations_hash=shared.activations_hash,
        source=shared.source.config.source,
        model=name("model_name"),
        hook_point=name("hook_name"),
        hook_out=name("hook_name_out"),
        manifest=manifest,
        n_stored=n_stored,
        n_bytes=stored_bytes(shared.cache),
        compared_rows=manifest.shard_tokens[index] if index is not None and difference is not None else 0,
        difference=difference,
        damaged=tuple(path.name for path in damaged),
    )
