"""What to run, and where: definitions, grouping, the dry run, the Ray launch, and what stands in results/.

`Sweep`, `launch` and `open_run` are looked up when asked for, so that `import sweeps` stays quick.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sweeps.definition.sweep import Sweep as Sweep
    from sweeps.execution.launcher import launch as launch
    from sweeps.opening import open_run as open_run

__all__ = ["Sweep", "launch", "open_run"]

_HOMES = {"Sweep": "sweeps.definition.sweep", "launch": "sweeps.execution.launcher", "open_run": "sweeps.opening"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sweeps' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
