"""Commands that make what a sweep reads, and train nothing: tokens, activations."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sweeps.cli.app import Answer, CacheLimit, CpusPerTrial, Definition, GpusPerTrial, Results, Settings, command
from sweeps.cli.launching import Address, Executor, ShipCode, StallSeconds, run_on_cluster

if TYPE_CHECKING:
    from sweeps.execution.harvesting import HarvestedCache, HarvestResult


@command()
def harvest(
    definition: Definition,
    settings: Settings = None,
    results: Results = Path("results"),
    address: Address = None,
    cpus_per_trial: CpusPerTrial = 1,
    gpus_per_trial: GpusPerTrial = 0.0,
    executor: Executor = "ray",
    cache_limit: CacheLimit = None,
    ship_code: ShipCode = False,
    stall_seconds: StallSeconds = 600.0,
) -> Answer:
    """Make the activations of a sweep and verify them, without training. `run` then finds them."""
    options = dict(locals())
    from sweeps.definition.sweep import Sweep
    from sweeps.execution.harvesting import harvest as harvest_caches
    from sweeps.execution.running_ray import SCHEME

    sweep = Sweep.from_yaml(definition, settings or [])
    if address and address.startswith(SCHEME):
        run_on_cluster(harvest, sweep.to_yaml(), options)
    done = harvest_caches(sweep, **{name: value for name, value in options.items() if name not in ("definition", "settings")})
    if done.interrupted:
        raise KeyboardInterrupt
    return _answer(done, is_limited=cache_limit is not None)


@command()
def pretokenize(
    definition: Definition,
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="Where to write: a new or empty directory.")],
    settings: Settings = None,
) -> Answer:
    """Tokenize the text of a sweep once, into a dataset that `data.dataset` takes, and SAELens."""
    from sweeps.definition.sweep import Sweep
    from sweeps.planning.pretokenizing import pretokenize as write_windows

    made = write_windows(Sweep.from_yaml(definition, settings or []), to)
    data = {
        "directory": str(made.directory),
        "context_size": made.context_size,
        "train_windows": made.train_windows,
        "heldout_windows": made.heldout_windows,
        "bytes": made.n_bytes,
    }
    windows = f"{made.train_windows:,} training and {made.heldout_windows:,} held-out windows of {made.context_size} tokens"
    return Answer(data, [f"{made.directory}: {windows}, {made.n_bytes / 2**20:.1f} MiB", f"To use them: `data.dataset: {made.directory}`"])


def _answer(done: "HarvestResult", *, is_limited: bool) -> Answer:
    total = sum(cache.n_bytes for cache in done.caches)
    problems = [f"stopped: {done.stopped}. The same command resumes."] if done.stopped else []
    for cache in done.caches:
        n_shards = len(cache.manifest.shard_tokens)
        if cache.problem:
            problems.append(f"{cache.path.name}: {cache.problem}.")
        elif cache.n_stored < n_shards and not is_limited:
            problems.append(
                f"{cache.path.name}: the disk has room for {cache.n_stored} of {n_shards} shards. Free space, then harvest again."
            )
    data = {
        "directory": str(done.directory),
        "caches": [_plain(cache) for cache in done.caches],
        "all_caches": done.n_caches,
        "bytes": total,
        "stopped": done.stopped or None,
        "problems": problems,
    }
    lines = [line for cache in done.caches for line in _lines(cache)]
    summary = f"{len(done.caches)} of {done.n_caches} caches, {total / 2**30:.2f} GiB"
    return Answer(data, [*lines, summary], problems, 1 if problems else 0)


def _lines(cache: "HarvestedCache") -> list[str]:
    manifest = cache.manifest
    what = " ".join(part for part in (cache.model or cache.source, cache.hook_point) if part)
    what += f" -> {cache.hook_out}" if cache.hook_out else ""
    width = f"{manifest.d_in} + {manifest.d_out}" if manifest.d_out else str(manifest.d_in)
    n_shards = len(manifest.shard_tokens)
    same = f"{cache.compared_rows:,} rows made again, largest difference {cache.difference:.2g}" if cache.difference is not None else ""
    checked = "damaged" if cache.damaged else ", ".join(part for part in ("checksums correct", same) if part)
    return [
        f"{what}: {manifest.n_tokens:,} tokens of width {width}, {manifest.dtype}, {cache.n_bytes / 2**30:.2f} GiB",
        f"  {cache.path}, {cache.n_stored} of {n_shards} shards stored; {checked}",
        f"  {manifest.outlier_rows:,} rows ten times as far from the mean as usual hold {manifest.outlier_share:.1%} of the variance",
    ]


def _plain(cache: "HarvestedCache") -> dict[str, Any]:
    manifest = cache.manifest
    return {
        "hash": cache.path.name,
        "path": str(cache.path),
        "source": cache.source,
        "model": cache.model,
        "hook_point": cache.hook_point,
        "hook_out": cache.hook_out,
        "tokens": manifest.n_tokens,
        "d_in": manifest.d_in,
        "d_out": manifest.d_out,
        "dtype": manifest.dtype,
        "shards": cache.n_stored,
        "all_shards": len(manifest.shard_tokens),
        "bytes": cache.n_bytes,
        "outlier_rows": manifest.outlier_rows,
        "outlier_share": manifest.outlier_share,
        "compared_rows": cache.compared_rows,
        "largest_difference": cache.difference,
        "damaged": list(cache.damaged),
    }
