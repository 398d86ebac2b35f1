"""`cache ls` and `cache rm`: the caches of activations of a results directory."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sae_core.activations.shards import read_manifest
from sae_core.errors import ConfigError, DamagedFileError, border
from sae_core.layout import SweepPaths
from sweeps.definition.problems import Problems
from sweeps.storage import lease
from sweeps.storage.cache_use import LOCK, try_alone, users
from sweeps.storage.lock import HOLDER
from sweeps.storage.store import Store

_LEAST_PREFIX = 4
_REMOVED = ".removed-"


@dataclass(frozen=True, slots=True)
class Cache:
    """A cache of activations."""

    path: Path
    n_bytes: int
    n_shards: int
    """Shards that are stored."""
    all_shards: int | None
    """Shards that it was made of, of which some may not be stored; None until it is complete."""
    complete: bool
    """Whether it has its manifest."""
    tokens: int | None
    """Training tokens, if they are known; as the next fields."""
    d_in: int | None
    source: str | None
    model: str | None
    hook_point: str | None
    hook_out: str | None
    sweeps: list[str]
    """Sweeps of the results directory that used it, or have records of its activations."""
    running: list[str]
    """Those with a launch that seems to be using it now."""
    last_used: str | None
    """Begin of the last launch that used it: UTC, ISO 8601."""

    @property
    def name(self) -> str:
        """Its hash."""
        return self.path.name


def list_caches(results: Path) -> list[Cache]:
    """All caches of a results directory, by name.

    Raises:
        ConfigError: there is no such directory.
    """
    with border(f"`--results` must be a directory that can be read, but got {str(results)!r}", "Correct it."):
        directories = sorted(path for path in Path(results).iterdir() if path.is_dir() and path.name[0] != ".")
    recorded: dict[str, dict[str, dict[str, Any]]] = {}
    for directory in directories:
        for record in Store(directory).records().values():
            recorded.setdefault((record.activations_hash or "")[:24], {})[directory.name] = record.config.get("activations") or {}
    caches = SweepPaths(Path(results) / "any").activations.glob("[!.]*/")
    return [_cache(path, recorded.get(path.name, {})) for path in sorted(caches)]


def remove_caches(results: Path, names: Sequence[str], *, unused: bool) -> list[Cache]:
    """Remove caches, and return them. Nothing is removed if any of them cannot be.

    Args:
        names: their hashes, or the beginnings of them.
        unused: also those that no sweep of the results directory uses.

    Raises:
        ConfigError: with every problem, one per line: a hash that does not exist, or a cache in use by a running launch.
    """
    caches = list_caches(results)
    problems, chosen = Problems(), {cache.name: cache for cache in caches if unused and not cache.sweeps and not cache.running}
    if not names and not unused:
        problems.add("", "`cache rm` must get hashes or `--unused`, but got neither. `sae-sweep cache ls` lists the hashes.")
    for name in names:
        matching = [cache for cache in caches if cache.name.startswith(name) and len(name) >= _LEAST_PREFIX]
        if len(matching) != 1:
            problems.add("", f"a hash must name one cache, but {name!r} names {len(matching)}. `sae-sweep cache ls` lists the hashes.")
        chosen |= {cache.name: cache for cache in matching}
    for cache in chosen.values():
        for user in users(cache.path):
            if user.holder() and _lives(user.directory):
                problems.add(
                    "", f"a cache must not be in use, but {cache.name} is: {user.holder()} runs {user.directory.name!r}. Stop it first."
                )
    problems.raise_any()
    for cache in chosen.values():
        _remove(cache.path)
    return list(chosen.values())


def _lives(directory: Path) -> bool:
    """Whether the launch that seems to hold a sweep does: watched for up to a minute."""
    try:
        return lease.is_renewed(directory / HOLDER, lease.read_lease(directory / HOLDER)[1])
    except FileNotFoundError:
        return False


def _remove(cache: Path) -> None:
    for left in cache.parent.glob(f"{_REMOVED}*"):  # of a removal that was killed
        shutil.rmtree(left, ignore_errors=True)
    with (cache / LOCK).open("a") as file:
        if not try_alone(file):
            raise ConfigError(f"a cache must not be in use, but {cache.name} is, by a launch on this machine. Stop it first.")
        aside = cache.with_name(f"{_REMOVED}{cache.name}.tmp")
        cache.rename(aside)  # at once: whoever waits for the lock sees that the cache is gone
        shutil.rmtree(aside)


def _cache(path: Path, recorded: dict[str, dict[str, Any]]) -> Cache:
    used = users(path)
    source = next(iter([*(user.source for user in used), *recorded.values()]), {})
    model = source.get("model") or {}
    try:
        manifest = read_manifest(path)
    except (FileNotFoundError, DamagedFileError):
        manifest = None
    files = [file for file in path.rglob("*") if file.is_file()]
    return Cache(
        path=path,
        n_bytes=sum(file.stat().st_size for file in files),
        n_shards=len([*path.glob("train-*.safetensors")]),
        all_shards=len(manifest.shard_tokens) if manifest else None,
        complete=manifest is not None,
        tokens=manifest.n_tokens if manifest else source.get("train_tokens"),
        d_in=manifest.d_in if manifest else None,
        source=source.get("source"),
        model=model.get("name"),
        hook_point=model.get("hook_point"),
        hook_out=model.get("hook_out"),
        sweeps=sorted({*recorded, *(user.directory.name for user in used if user.directory.is_dir())}),
        running=[user.directory.name for user in used if user.holder()],
        last_used=max((datetime.fromtimestamp(user.used_at, UTC).isoformat(timespec="seconds") for user in used), default=None),
    )
