"""Models and texts that lie on this machine: local paths made absolute, and the embedded demo found.

Ray workers run in another directory, so a relative path must not reach them. `demo` stays `demo` in configs and run ids,
so that a demo run has the same id on every machine; `locate` puts the real paths in for execution only.
"""

import functools
import os
from pathlib import Path
from typing import Any

from sae_core.activations.language_model.mixture import has_file_ending
from sae_core.config.run import SOURCES, ActivationsConfig
from sae_core.errors import ConfigError
from sae_core.files import existing

DEMO = "demo"


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
    if has_file_ending(name) or name.startswith((".", "/", "~")) or name.count("/") > 1 or not name.isprintable():
        raise ConfigError(f"a local path must exist, but {name!r} is missing (in {str(Path.cwd())!r}). Correct it, or give a hub name.")
    return name


def located_model(name: Any) -> Any:
    """The directory of the embedded model in place of `demo`; any other name as it is."""
    from sweeps.demo.corpus import model_directory

    return str(model_directory()) if name == DEMO else name


def locate(config: ActivationsConfig, cache: Path) -> ActivationsConfig:
    """`config` with real paths in place of `demo`, for execution; run ids come from the config as it was.

    Args:
        cache: directory for the demo's text, which is written there once.
    """
    from sweeps.demo.corpus import demo_text, model_directory

    content: dict[str, Any] = config.model_dump()
    is_demo = False
    for *sections, name in SOURCES[config.source].path_fields:
        section = functools.reduce(dict.__getitem__, sections, content)
        if section[name] == DEMO:
            is_demo = True
            section[name] = str(model_directory() if sections[-1:] == ["model"] else demo_text(cache))
    return type(config).model_validate(content) if is_demo else config
