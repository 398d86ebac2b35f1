"""The launch's own code on every node, through Ray's `working_dir`: this package, and the files of every plugin."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sae_core import plugins, provenance

_HERE = Path(__file__).resolve().parents[2]
_PACKAGES = ("sae_core", "sweeps", "analysis")


@contextmanager
def shipped() -> Iterator[dict[str, Any]]:
    """Fields of a `runtime_env` that carry the code. Ray has read them when it is connected; the copy is removed at the end."""
    with tempfile.TemporaryDirectory(prefix="sae-sweep-code-") as directory:
        for package in _PACKAGES:
            shutil.copytree(_HERE / package, Path(directory) / package, ignore=shutil.ignore_patterns("__pycache__"))
        for plugin in plugins.loaded():
            for place, file in plugin.shipped_files().items():
                target = Path(directory) / place
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target)
        versions = {name: version for name, version in provenance.versions().items() if name in ("sae_sweep", "commit")}
        yield {"working_dir": directory, "env_vars": {provenance.SHIPPED_VERSIONS: json.dumps(versions)}}
