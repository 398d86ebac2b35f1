"""Plugins: modules of the user's own that register architectures, metrics, activation sources, normalisations, plots, samplers or loggers.

A plugin is a module (`my_package.my_sae`) or a file (`./my_sae.py`) that a definition names, or a module that an installed package offers
in the entry-point group `sae_sweep.plugins`. Every process of a launch imports the same ones before it looks up a name.

The checksum of a plugin covers its file and the files beside it that it imports: those of the same package, or of the same directory.
"""

import ast
import importlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from sae_core.errors import ConfigError, border
from sae_core.files import checksum_of
from sae_core.registry import Registry

GROUP = "sae_sweep.plugins"
"""Entry-point group of installed packages."""
SHIPPED = "sae_sweep_plugins"
"""Directory on `sys.path` with plugin files of a launch on another machine."""
_REMEDY = "Correct `plugins`, or install the package that it is in."


@dataclass(frozen=True, slots=True)
class Plugin:
    """An imported plugin."""

    location: str
    """Name of the module, or absolute path of the file."""
    name: str
    """Name in records: that of the module or file."""
    checksum: str
    root: Path
    """Where imports inside of it begin."""
    files: frozenset[str]
    """What the checksum covers, all below `root`."""

    def shipped_files(self) -> dict[str, str]:
        """Where its files must lie, in a directory that another process imports from -> its files."""
        return {(_shipped_root(self.location) / Path(file).relative_to(self.root)).as_posix(): file for file in self.files}


_loaded: dict[str, Plugin] = {}


def is_file(location: str) -> bool:
    """Whether a definition names a file, and not a module."""
    return location.endswith(".py") or "/" in location


def absolute(location: str, directory: Path) -> str:
    """The same plugin from any directory: paths are relative to `directory`."""
    return str((directory / Path(location).expanduser()).resolve()) if is_file(location) else location


def load(locations: Iterable[str] = ()) -> list[Plugin]:
    """Import the plugins of installed packages, and those at `locations`. One that was edited since is imported again.

    Raises:
        ConfigError: with every plugin that cannot be imported, one per line.
    """
    problems = []
    for location in dict.fromkeys([*_installed(tuple(sys.path)), *locations]):
        try:
            _load(location)
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(problems))
    return loaded()


def load_same(checksums: Mapping[str, str]) -> None:
    """Import the plugins of another process.

    Args:
        checksums: location -> checksum there.

    Raises:
        ConfigError: one cannot be imported here, or has other contents.
    """
    load(checksums)
    for location, checksum in checksums.items():
        if _loaded[location].checksum != checksum:
            raise ConfigError(
                f"a plugin must be the same in every process, but {location!r} has checksum {_loaded[location].checksum} here and "
                f"{checksum} where the launch began. Install the same version on every node, and do not edit it during a launch."
            )


def unload(location: str) -> None:
    """Undo the import of a plugin, and what it registered."""
    files = _loaded.pop(location).files
    modules = {name for name, module in list(sys.modules.items()) if str(getattr(module, "__file__", "")) in files}
    Registry.forget(modules)
    for name in modules:
        del sys.modules[name]


def loaded() -> list[Plugin]:
    """Every imported plugin, sorted by name."""
    return sorted(_loaded.values(), key=lambda plugin: plugin.name)


def checksums() -> dict[str, str]:
    """Location -> checksum of every imported plugin: what `load_same` needs in another process."""
    return {plugin.location: plugin.checksum for plugin in loaded()}


def checksums_of(entries: Iterable[object]) -> dict[str, str]:
    """Name -> checksum of the plugins that define these classes or functions."""
    return {plugin.name: plugin.checksum for plugin in defining(entries)}


def defining(entries: Iterable[object]) -> list[Plugin]:
    """The plugins that define these classes or functions."""
    if not _loaded:
        return []
    homes = {str(Path(file).resolve()) for entry in entries if (file := getattr(sys.modules.get(entry.__module__), "__file__", None))}
    return [plugin for plugin in loaded() if homes & plugin.files]


def unnamed(registries: Iterable[Registry[Any]]) -> list[str]:
    """What modules registered that are neither ours nor a plugin, such as the user's script: other processes would not have it."""
    return [
        f"{registry.what} {name!r} of {entry.__module__!r}"
        for registry in registries
        for name, entry in registry.items()
        if not entry.__module__.startswith(registry.package) and not defining([entry])
    ]


@lru_cache(maxsize=1)
def _installed(path: tuple[str, ...]) -> list[str]:
    """Modules that packages on this `sys.path` offer."""
    return [entry.module for entry in importlib.metadata.entry_points(group=GROUP)]


def checksum_at(location: str) -> str:
    """Checksum of a plugin, which is not imported.

    Raises:
        ConfigError: it is not here.
    """
    return _find(location)[0].checksum


def _find(location: str) -> tuple[Plugin, str, Path]:
    """A plugin that is not imported yet, the name of its module, and its file."""
    with border(f"a plugin must be importable, but got {location!r}", _REMEDY):
        if is_file(location):
            first = _shipped(location) or Path(location).resolve(strict=True)
            root, module = first.parent, f"{first.stem}_{checksum_of(str(first).encode())[:8]}"
            files = _files(first, root, "")
        else:
            module, first = location, _file_of(location)
            root = first.parents[location.count(".") + (first.stem == "__init__")]
            files = _files(first, root, location.partition(".")[0])
        name = first.name if is_file(location) else location
        checksum = checksum_of(b"\0".join(f"{place}\0".encode() + file.read_bytes() for place, file in sorted(files.items())))
        return Plugin(location, name, checksum, root, frozenset(str(file) for file in files.values())), module, first


def _load(location: str) -> None:
    plugin, module, file = _find(location)
    before = _loaded.get(location)
    if before and before.checksum == plugin.checksum:
        return
    if taken := [other.location for other in _loaded.values() if other.name == plugin.name and other.location != location]:
        raise ConfigError(f"plugins must have different names, but got {taken[0]!r} and {location!r}. Rename one of them.")
    if before:
        unload(location)
    with border(f"a plugin must be importable, but got {location!r}", _REMEDY):
        _import(module, file if is_file(location) else None)
    _loaded[location] = plugin


def _import(module: str, file: Path | None) -> None:
    try:
        if file is None:
            importlib.import_module(module)
            return
        spec = importlib.util.spec_from_file_location(module, file)
        assert spec is not None and spec.loader is not None, f"{file=}"
        if str(file.parent) not in sys.path:
            sys.path.append(str(file.parent))  # for the files beside it
        sys.modules[module] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[module])
    except BaseException as error:
        sys.modules.pop(module, None)
        Registry.forget([module])  # what it registered before it failed
        if isinstance(error, SystemExit):
            raise ImportError("it ends the program when it is imported") from error
        raise


def _shipped_root(location: str) -> Path:
    return Path(SHIPPED, checksum_of(location.encode())) if is_file(location) else Path()


def _shipped(location: str) -> Path | None:
    """The file of a plugin as the launch shipped it; None where it ships none."""
    spec = importlib.util.find_spec(SHIPPED)
    for directory in (spec and spec.submodule_search_locations) or []:
        file = Path(directory).parent / _shipped_root(location) / Path(location).name
        if file.is_file():
            return file.resolve()
    return None


def _file_of(module: str) -> Path:
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.origin or not spec.origin.endswith(".py"):
        raise ModuleNotFoundError(f"no module named {module!r} with Python source")
    return Path(spec.origin).resolve()


def _files(first: Path, root: Path, package: str) -> dict[str, Path]:
    """A plugin's file, and those in `package` (empty: in any) that it imports from below `root`, by their paths from there."""
    found: dict[str, Path] = {}
    waiting = [first]
    while waiting:
        file = waiting.pop()
        place = file.relative_to(root).as_posix()
        if place in found:
            continue
        found[place] = file
        for parts in _imports(file, root):
            if not package or parts[0] == package:
                for n_parts in range(1, len(parts) + 1):
                    path = root.joinpath(*parts[:n_parts])
                    waiting += [one for one in (path / "__init__.py", path.with_name(f"{path.name}.py")) if one.is_file()]
    return found


def _imports(file: Path, root: Path) -> Iterator[tuple[str, ...]]:
    """The dotted names that a file imports, from `root` on."""
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (tuple(alias.name.split(".")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            here = file.parent.relative_to(root).parts
            above = here[: len(here) - node.level + 1] if node.level else ()
            base = (*above, *(node.module.split(".") if node.module else ()))
            yield from ((*base, alias.name) for alias in node.names)
