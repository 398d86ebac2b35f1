"""What every node of a cluster must have before work begins: looked up on all nodes at once, and compared with this process.

`facts_here` runs on each node and needs nothing heavy; `problems` compares plain data.
"""

import hashlib
import importlib.metadata
import importlib.util
import platform
import secrets
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_core import plugins
from sae_core.activations.source import ActivationSource
from sae_core.config.run import RunConfig
from sae_core.errors import reason_of
from sae_core.files import existing
from sweeps.execution.failures import cause_of

_PACKAGES = ("sae_sweep", "ray", "torch", "numpy", "numba", "transformer_lens", "transformers", "datasets", "safetensors")
"""Whose versions may change a number, or whether there is one."""
ALL_SLOW_SECONDS = 60.0
"""Most time until the first node answers: where all are slow, none is refused for it."""
SLOWER = 3.0
"""Each node may take this many times as long as the first."""
_NAMED_NODES = 3
"""Most nodes that a message names."""


@dataclass(frozen=True, slots=True)
class Needs:
    """What a launch needs on every node."""

    directory: str
    """Of the sweep: every node reads and writes there."""
    paths: Mapping[str, str]
    """Field of the definition -> local path that it names."""
    plugins: Mapping[str, str]
    """Location -> checksum."""


def needs_of(directory: Path, sources: Sequence[ActivationSource], runs: Sequence[RunConfig] = ()) -> Needs:
    """What a launch with these sources needs.

    Args:
        directory: of the sweep.
        runs: that may start from SAEs.
    """
    paths: dict[str, str] = {}
    for source in sources:
        for field in source.path_fields:
            value: Any = source.config
            for key in field:
                value = getattr(value, key)
            if value is not None and existing(value) is not None:
                paths[".".join(field)] = str(Path(value).expanduser())
    starts = dict.fromkeys(run.train.init_from for run in runs if run.train.init_from is not None)
    paths |= {f"init_from: {name}": name for name in starts if Path(name).is_absolute()}
    return Needs(str(directory), paths, plugins.checksums())


@contextmanager
def probe(directory: str) -> Iterator[str]:
    """A file under a directory that nodes look for, as its name; removed at the end with those that nodes wrote beside it."""
    name = f".probe-{secrets.token_hex(8)}"
    (Path(directory) / f"{name}.tmp").write_text(name)
    try:
        yield name
    finally:
        for path in Path(directory).glob(f"{name}*.tmp"):
            with suppress(OSError):
                path.unlink()


def check(needs: Needs, nodes: Sequence[Mapping[str, Any]], seconds: float) -> list[str]:
    """Look at all nodes at once. Returns every problem, as a message.

    Args:
        nodes: as Ray describes them.
        seconds: time that they are given, unless the first answer comes late.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    started, look = time.monotonic(), ray.remote(facts_here)
    facts: dict[str, Any] = {}
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # nodes may have another version of this package, or none
    with probe(needs.directory) as name:
        asked = {}
        for node in nodes:
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            asked[node["NodeID"]] = look.options(num_cpus=0, max_retries=0, scheduling_strategy=there).remote(needs, name, node["NodeID"])
        here = facts_here(needs, name, "launch")
        waiting = list(asked.values())
        ray.wait(waiting, timeout=ALL_SLOW_SECONDS)
        limit = max(seconds, SLOWER * (time.monotonic() - started)) - (time.monotonic() - started)
        answered, _ = ray.wait(waiting, num_returns=len(waiting), timeout=max(0.0, limit))
        for node in nodes:
            reference = asked[node["NodeID"]]
            found = _result(reference) if reference in answered else None
            if isinstance(found, dict) and not found["directory"] and not has_answered(needs.directory, name, node["NodeID"]):
                found["directory"] = "what it wrote there is not seen here"
            facts[f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"] = found
    return problems(needs, here, facts)


def _result(reference: Any) -> Any:
    """Facts of a node, or why it has none."""
    import ray

    try:
        return ray.get(reference)
    except Exception as error:  # whatever another node's code raises
        return reason_of(cause_of(error))


def facts_here(needs: Needs, name: str, node_id: str) -> dict[str, Any]:
    """What this process's node has of it. Nothing of this package need be there.

    Args:
        name: of the probe.
    """
    return {
        "versions": {"python": platform.python_version()} | {package: _version(package) for package in _PACKAGES},
        "code": _code(),
        "plugins": {location: _checksum(location) for location in needs.plugins},
        "paths": {path: _content(Path(path)) for path in needs.paths.values()},
        "directory": _shares(Path(needs.directory), name, node_id),
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def _code() -> str:
    """Checksum of this package's source."""
    content = hashlib.sha256()
    for package in ("sae_core", "sweeps"):
        spec = importlib.util.find_spec(package)
        for root in map(Path, (spec and spec.submodule_search_locations) or []):
            for file in sorted(root.rglob("*.py")):
                content.update(f"{package}/{file.relative_to(root).as_posix()}\0".encode() + file.read_bytes())
    return content.hexdigest()


def _checksum(location: str) -> str:
    """Of a plugin; else why it has none."""
    try:
        from sae_core import plugins

        return plugins.checksum_at(location)
    except Exception as error:  # of another version of this package, or of none
        return str(error).rstrip(".")


def _content(path: Path) -> str | None:
    """Names and sizes of what is at a path; None where nothing is."""
    if not path.exists():
        return None
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    return hashlib.sha256(repr([(file.relative_to(path).as_posix(), file.stat().st_size) for file in files]).encode()).hexdigest()


def _shares(directory: Path, name: str, node_id: str) -> str:
    """Read the launch's probe, and answer with one. Returns why that is not possible; empty if it is."""
    try:
        if (directory / f"{name}.tmp").read_text() != name:
            return "what the launch wrote there is not what is read"
        (directory / f"{name}-{node_id}.tmp").write_text(node_id)
    except OSError as error:
        return str(error)
    return ""


def has_answered(directory: str, name: str, node_id: str) -> bool:
    """Whether the answer of a node to the probe is there."""
    with suppress(OSError):
        return (Path(directory) / f"{name}-{node_id}.tmp").read_text() == node_id
    return False


def problems(needs: Needs, here: Mapping[str, Any], nodes: Mapping[str, Mapping[str, Any] | str | None]) -> list[str]:
    """What stands in the way of a launch, one message per problem.

    Args:
        here: facts of the launching process.
        nodes: node -> its facts, why it has none, or None where it did not answer in time.
    """
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for node, facts in nodes.items():
        for problem in _differences(needs, here, facts) if isinstance(facts, Mapping) else [_without_facts(facts)]:
            found[problem].append(node)
    return [f"{before}{_named(names)}{after}" for (before, after), names in found.items()]


def _without_facts(reason: str | None) -> tuple[str, str]:
    problem = "" if reason is None else f": {reason}"
    return "every node must answer within some seconds, but not so ", f"{problem}. Repeat the command, or take it out of the cluster."


def _named(nodes: Sequence[str]) -> str:
    left = len(nodes) - _NAMED_NODES
    return f"{', '.join(nodes[:_NAMED_NODES])}{f' and {left} more' if left > 0 else ''}"


def _differences(needs: Needs, here: Mapping[str, Any], there: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Messages, each as what comes before the names of the nodes and what comes after."""
    for name in here["versions"]:
        ours, theirs = (str(facts["versions"].get(name)).partition("+")[0] for facts in (here, there))
        if ours != theirs and name != "sae_sweep":
            yield f"every node must have the same {name}, but it is {ours} here and {theirs} on ", f". Install {name} {ours} there."
    if here["code"] != there["code"]:
        ours, theirs = (facts["versions"]["sae_sweep"] for facts in (here, there))
        yield (
            "every node must have the same sae-sweep, but its files here are not those on ",
            f" (version {ours} here, {theirs} there). Install the same one there, or add `--ship-code`.",
        )
    for location, checksum in needs.plugins.items():
        if there["plugins"][location] != checksum:
            yield (
                f"a plugin must be the same on every node, but {location!r} has checksum {checksum} here; on ",
                f": {there['plugins'][location]}. Install the same one there, or add `--ship-code`.",
            )
    for field, path in needs.paths.items():
        if here["paths"][path] != there["paths"][path]:
            what = "is missing" if there["paths"][path] is None else "has other files"
            yield f"`{field}` must be on storage that every node shares, but {path!r} {what} on ", ". Copy it to shared storage."
    if there["directory"]:
        yield (
            f"`--results` must be on storage that every node shares, but {needs.directory!r} cannot be used on ",
            f": {there['directory']}. Choose a directory on shared storage.",
        )
