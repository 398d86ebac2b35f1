"""What to run, and where: definitions, grouping, the dry run, the Ray launch, and what stands in results/.

`Sweep` and `launch` are looked up when asked for, so that `import sweeps` stays quick.
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sweeps.definition import Sweep as Sweep
    from sweeps.launch import launch as launch

__all__ = ["Sweep", "launch"]

_HOMES = {"Sweep": "sweeps.definition", "launch": "sweeps.launch"}


class _Package(ModuleType):
    """`sweeps.launch` is the function, however the module of that name was imported before."""

    def __setattr__(self, name: str, value: Any) -> None:
        # The import system binds a submodule to its package once it has run.
        super().__setattr__(name, value.launch if name == "launch" and isinstance(value, ModuleType) else value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sweeps' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
