"""What every node of a cluster must have before work begins: looked up on all nodes at once, and compared with this process.

`facts_here` runs on each node and needs nothing heavy; `problems` compares plain data.
"""

import hashlib
import importlib.util
import secrets
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_core import plugins, provenance
from sae_core.activations.source import ActivationSource
from sae_core.errors import ConfigError, reason_of
from sae_core.files import existing

_OF_THE_LAUNCH = ("optuna",)
"""Packages that only the launching process uses."""
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


def needs_of(directory: Path, sources: Sequence[ActivationSource]) -> Needs:
    """What a launch with these sources needs.

    Args:
        directory: of the sweep.
    """
    paths: dict[str, str] = {}
    for source in sources:
        for field in source.path_fields:
            value: Any = source.config
            for key in field:
                value = getattr(value, key)
            if value is not None and existing(value) is not None:
                paths[".".join(field)] = value
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


def facts_here(needs: Needs, name: str, node_id: str) -> dict[str, Any]:
    """What this process's node has of it.

    Args:
        name: of the probe.
    """
    return {
        "versions": {name: version for name, version in provenance.versions().items() if name not in _OF_THE_LAUNCH},
        "code": _code(),
        "plugins": {location: _checksum(location) for location in needs.plugins},
        "paths": {path: _content(path) for path in needs.paths.values()},
        "directory": _shares(Path(needs.directory), name, node_id),
    }


def _code() -> str:
    """Checksum of this package's source."""
    content = hashlib.sha256()
    for package in ("sae_core", "sweeps"):
        spec = importlib.util.find_spec(package)
        root = Path(next(iter((spec and spec.submodule_search_locations) or [""])))
        for file in sorted(root.rglob("*.py")):
            content.update(f"{package}/{file.relative_to(root).as_posix()}\0".encode() + file.read_bytes())
    return content.hexdigest()


def _checksum(location: str) -> str:
    """Of a plugin; else why it has none."""
    try:
        return plugins.checksum_at(location)
    except ConfigError as error:
        return str(error)


def _content(path: str) -> str | None:
    """Names and sizes of what is at a path; None where nothing is."""
    found = existing(path)
    if found is None:
        return None
    files = sorted(file for file in found.rglob("*") if file.is_file()) if found.is_dir() else [found]
    return hashlib.sha256(repr([(file.relative_to(found).as_posix(), file.stat().st_size) for file in files]).encode()).hexdigest()


def _shares(directory: Path, name: str, node_id: str) -> str:
    """Read the launch's probe, and answer with one. Returns why that is not possible; empty if it is."""
    try:
        if (directory / f"{name}.tmp").read_text() != name:
            return "what the launch wrote there is not what is read"
        (directory / f"{name}-{node_id}.tmp").write_text(node_id)
    except OSError as error:
        return reason_of(error)
    return ""


def has_answered(directory: str, name: str, node_id: str) -> bool:
    """Whether the answer of a node to the probe is there."""
    with suppress(OSError):
        return (Path(directory) / f"{name}-{node_id}.tmp").read_text() == node_id
    return False


def problems(needs: Needs, here: Mapping[str, Any], nodes: Mapping[str, Mapping[str, Any] | str]) -> list[str]:
    """What stands in the way of a launch, one message per problem.

    Args:
        here: facts of the launching process.
        nodes: node -> its facts, or why it has none.
    """
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for node, facts in nodes.items():
        for problem in [("", facts)] if isinstance(facts, str) else _differences(needs, here, facts):
            found[problem].append(node)
    return [f"{rule}{_named(names)}{rest}" if rule else f"{_named(names)}: {rest}" for (rule, rest), names in found.items()]


def _named(nodes: Sequence[str]) -> str:
    left = len(nodes) - _NAMED_NODES
    return f"{', '.join(nodes[:_NAMED_NODES])}{f' and {left} more' if left > 0 else ''}"


def _differences(needs: Needs, here: Mapping[str, Any], there: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Messages, each as what comes before the names of the nodes and what comes after."""
    for name in {**here["versions"], **there["versions"]}:
        ours, theirs = (str(facts["versions"].get(name, "none")).partition("+")[0] for facts in (here, there))
        if ours != theirs and name not in ("commit", "sae_sweep"):
            yield f"every node must have the same {name}, but it is {ours} here and {theirs} on ", f". Install {name} {ours} there."
    if here["code"] != there["code"]:
        ours, theirs = (" ".join(filter(None, map(facts["versions"].get, ("sae_sweep", "commit")))) for facts in (here, there))
        yield (
            "every node must have the same sae-sweep, but its files here are not those on ",
            f" ({ours or 'no version'} here, {theirs or 'no version'} there). Install the same one there, or add `--ship-code`.",
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
