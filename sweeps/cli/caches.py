"""`sae-sweep cache`: the caches of activations of a results directory."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sweeps.cli.app import Answer, Results, cache_app, command

if TYPE_CHECKING:
    from sweeps.storage.caches import Cache


@command(of=cache_app)
def ls(results: Results = Path("results")) -> Answer:
    """List the caches of activations: what of, size, which sweeps use them, when last."""
    from sweeps.storage.caches import list_caches

    return _answer("caches", list_caches(results))


@command(of=cache_app)
def rm(
    hashes: Annotated[list[str] | None, typer.Argument(help="Hashes of caches, or the first characters of them.")] = None,
    results: Results = Path("results"),
    unused: Annotated[bool, typer.Option("--unused", help="Those that no sweep of the results directory uses.")] = False,
) -> Answer:
    """Remove caches of activations; one that a running launch uses is refused. A launch that needs them creates them again."""
    from sweeps.storage.caches import remove_caches

    return _answer("removed", remove_caches(results, hashes or [], unused=unused), "removed: ")


def _answer(key: str, caches: "Sequence[Cache]", prefix: str = "") -> Answer:
    total = sum(cache.n_bytes for cache in caches)
    lines = [f"{prefix}{_line(cache)}" for cache in caches]
    data = {key: [_cache(cache) for cache in caches], "bytes": total}
    return Answer(data, [*lines, f"{len(caches)} caches, {total / 2**30:.2f} GiB"])


def _line(cache: "Cache") -> str:
    where = f"{cache.hook_point} and {cache.hook_out}" if cache.hook_out else cache.hook_point
    what = " ".join(part for part in (cache.model or cache.source, where) if part) or "of unknown activations"
    tokens = f"{cache.tokens:,} tokens" if cache.tokens else "tokens unknown"
    is_part = cache.all_shards is not None and cache.n_shards < cache.all_shards
    state = f", {cache.n_shards} of {cache.all_shards} shards stored" if is_part else "" if cache.complete else ", not complete"
    used = f"used by {', '.join(cache.sweeps)}" if cache.sweeps else "unused"
    running = f", RUNNING: {', '.join(cache.running)}" if cache.running else ""
    return f"{cache.name}  {cache.n_bytes / 2**30:8.2f} GiB  {what}, {tokens}{state}, {used}, last {cache.last_used or 'unknown'}{running}"


def _cache(cache: "Cache") -> dict[str, Any]:
    data = {field.name: getattr(cache, field.name) for field in dataclasses.fields(cache)}
    return {"hash": cache.name, "bytes": data.pop("n_bytes"), "shards": data.pop("n_shards"), **data, "path": str(cache.path)}


@command(of=cache_app)
def verify(results: Results = Path("results")) -> Answer:
    """Read every file that numbers come from, in all sweeps of a results directory and their caches of activations."""
    from sweeps.storage.verify import verify as damaged_files

    damaged = damaged_files(results)
    lines = [f"damaged: {file.path}: {file.reason}. {file.remedy}" for file in damaged.files]
    files = [{"path": str(file.path), "reason": file.reason, "remedy": file.remedy} for file in damaged.files]
    summary = f"{damaged.n_read} files read, {len(files)} damaged"
    return Answer({"files_read": damaged.n_read, "damaged": files}, [*lines, summary], code=1 if files else 0)
