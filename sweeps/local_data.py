"""Models and texts that lie on this machine: local paths made absolute, and the embedded demo found.

Ray workers run in another directory, so a relative path must not reach them. `demo` stays `demo` in configs and run ids,
so that a demo run has the same id on every machine; `locate` puts the real paths in for execution only.
"""

import hashlib
import importlib.metadata
from pathlib import Path
from typing import Any

from sae_core.config import ActivationsConfig
from sae_core.errors import ConfigError

DEMO = "demo"
_FILE_ENDINGS = (".parquet", ".json", ".jsonl", ".txt")


def absolute(name: str) -> str:
    """The absolute path of a model directory or dataset file that exists here; a hub name and `demo` as they are.

    Raises:
        ConfigError: `name` looks like a path, and nothing is there.
    """
    path = Path(name).expanduser()
    if name == DEMO:
        return name
    if path.exists():
        return str(path.resolve())
    # A hub name is `name` or `owner/name`.
    if name.startswith((".", "/", "~")) or name.endswith(_FILE_ENDINGS) or name.count("/") > 1:
        raise ConfigError(f"a local path must exist, but {name!r} is missing ({path.absolute()}). Correct it, or give a hub name.")
    return name


def locate(config: ActivationsConfig, cache: Path) -> ActivationsConfig:
    """`config` with real paths in place of `demo`, for execution; run ids come from the config as it was.

    Args:
        cache: directory for the demo's text, which is written there once.
    """
    if config.source != "language_model":
        return config
    parts: dict[str, Any] = {}
    given: Any = config  # its class is in a module that only workers import
    model, data = given.model, given.data
    if model.name == DEMO:
        from sweeps.demo.corpus import model_directory

        parts["model"] = model.model_copy(update={"name": str(model_directory())})
    if data.dataset == DEMO:
        from sweeps.demo.corpus import write_corpus

        path = demo_text_file(cache)
        if not path.exists():
            write_corpus(path)
        parts["data"] = data.model_copy(update={"dataset": str(path)})
    return config.model_copy(update=parts)


def demo_text_file(cache: Path) -> Path:
    """Where the demo's text is, once written. It is the source of installed packages: other versions are another file."""
    from sweeps.demo.corpus import PACKAGES

    # A package that is missing is found, and told, when the text is written.
    installed = {found.name.lower(): found.version for package in PACKAGES for found in importlib.metadata.distributions(name=package)}
    versions = " ".join(f"{name}=={installed.get(name, '')}" for name in PACKAGES)
    return cache.absolute() / f"demo-text-{hashlib.sha256(versions.encode()).hexdigest()[:12]}.parquet"
