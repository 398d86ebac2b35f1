"""Models and texts that lie on this machine: local paths made absolute, and the embedded demo found.

Ray workers run in another directory, so a relative path must not reach them. `demo` stays `demo` in configs and run ids,
so that a demo run has the same id on every machine; `locate` puts the real paths in for execution only.
"""

import hashlib
import importlib.metadata
import logging
import os
from pathlib import Path
from typing import Any

from sae_core.config.run import ActivationsConfig
from sae_core.errors import ConfigError, DamagedFileError
from sae_core.files import existing, read_json, write_json

logger = logging.getLogger(__name__)

DEMO = "demo"
_FILE_ENDINGS = (".parquet", ".json", ".jsonl", ".txt", ".gz", ".bz2", ".xz", ".zst")


def absolute(name: str) -> str:
    """The absolute path of a model directory or dataset file that exists here; a hub name and `demo` as they are.

    Raises:
        ConfigError: `name` looks like a path, and nothing is there.
    """
    if name == DEMO:
        return name
    path = existing(name)
    if path is not None:
        resolved = path.resolve()
        # A link to a file whose name does not say its format keeps the name that does.
        return str(resolved) if path.is_dir() or resolved.suffix == path.suffix else os.path.normpath(path.absolute())
    # A hub name is `name` or `owner/name`.
    if name.startswith((".", "/", "~")) or name.lower().endswith(_FILE_ENDINGS) or name.count("/") > 1 or not name.isprintable():
        raise ConfigError(f"a local path must exist, but {name!r} is missing (in {str(Path.cwd())!r}). Correct it, or give a hub name.")
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
        parts["data"] = data.model_copy(update={"dataset": str(_demo_text(cache))})
    return config.model_copy(update=parts)


def _demo_text(cache: Path) -> Path:
    """The demo's text, written where it is not there or not what was written."""
    from sweeps.demo.corpus import write_corpus

    path = demo_text_file(cache)
    beside = path.with_suffix(".json")
    if path.exists():
        if _recorded(beside) == _digest(path):
            return path
        logger.warning("the demo's text %s is not what was written: it is written again.", path)
    write_corpus(path)
    write_json(beside, {"sha256": _digest(path)})
    return path


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _recorded(beside: Path) -> object:
    """The hash of the demo's text when it was written; None where that is not known."""
    try:
        return read_json(beside).get("sha256")
    except (FileNotFoundError, DamagedFileError):
        return None


def demo_text_file(cache: Path) -> Path:
    """Where the demo's text is, once written. It is the source of installed packages: other versions are another file."""
    from sweeps.demo.corpus import PACKAGES

    # A package that is missing is found, and told, when the text is written.
    installed = {found.name.lower(): found.version for package in PACKAGES for found in importlib.metadata.distributions(name=package)}
    versions = " ".join(f"{name}=={installed.get(name, '')}" for name in PACKAGES)
    return cache.absolute() / f"demo-text-{hashlib.sha256(versions.encode()).hexdigest()[:12]}.parquet"
