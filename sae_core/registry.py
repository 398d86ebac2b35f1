"""Registries: names -> classes, filled by importing every module of a package.

A new architecture, metric, activation source or plot is one file in the registry's package, or a plugin: no list is edited.
Standard library only, so that `analysis` can use it without torch.
"""

import importlib
import pkgutil
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, ClassVar, Generic, TypeVar

from sae_core.errors import UnknownNameError

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """A read-only mapping from names to registered objects.

    Args:
        what: what an entry is, for messages ("architecture").
        package: dotted name of the package whose modules register entries; imported on first look-up.
    """

    _all: ClassVar["list[Registry[Any]]"] = []

    def __init__(self, what: str, package: str) -> None:
        self.what = what
        self.package = package
        self._entries: dict[str, T] = {}
        self._discovered = False
        self._all.append(self)

    def register(self, name: str) -> Callable[[T], T]:
        """Class decorator that adds an entry.

        Raises:
            ValueError: the name is taken by another object.
        """

        def add(entry: T) -> T:
            if not str(getattr(entry, "__module__", "")).startswith(self.package):
                self._discover()  # so that a plugin cannot take a name of ours
            taken = self._entries.get(name)
            if taken is not None and not _is_again(taken, entry):
                raise ValueError(f"{self.what} names must be unique, but {name!r} is registered twice: {taken} and {entry}.")
            self._entries[name] = entry
            return entry

        return add

    @classmethod
    def forget(cls, modules: Collection[str]) -> None:
        """Take what these modules registered, anywhere, out again."""
        for registry in cls._all:
            registry._entries = {name: entry for name, entry in registry._entries.items() if _origin(entry)[0] not in modules}

    def _discover(self) -> None:
        if self._discovered:
            return
        self._discovered = True  # now, because modules look names up while they are imported
        try:
            package = importlib.import_module(self.package)
            for module in pkgutil.iter_modules(package.__path__):
                importlib.import_module(f"{self.package}.{module.name}")
        except BaseException:
            self._discovered = False
            raise

    def __getitem__(self, name: str) -> T:
        self._discover()
        if name not in self._entries:
            raise UnknownNameError.of(self.what, name, self._entries, "To add one, name the plugin that registers it under `plugins`.")
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        self._discover()
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        self._discover()
        return iter(sorted(self._entries))

    def __len__(self) -> int:
        self._discover()
        return len(self._entries)


def _is_again(taken: object, entry: object) -> bool:
    """Whether an entry is another copy of one that is there: of a module imported again, or of the script that runs, as a plugin."""
    (module, name), (new_module, new_name) = _origin(taken), _origin(entry)
    return name == new_name and module in (new_module, "__main__")


def _origin(entry: object) -> tuple[str | None, str | None]:
    """Where an object was defined: a module that is imported again registers its entries again."""
    return getattr(entry, "__module__", None), getattr(entry, "__qualname__", None)
