"""The page of a run's latents: one HTML file that works offline, and needs no network, model or server."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from sae_core.errors import ConfigError, reason_of
from sae_core.files import finite_or_none, write_text

TEMPLATES = Path(__file__).parent / "templates"


def write_page(content: Mapping[str, Any], path: Path) -> None:
    """Write what `page_content` returned as an HTML file.

    Raises:
        ConfigError: it cannot be written there.
    """
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined)
    # Inside of <script>, only "<" could end the data.
    data = json.dumps(finite_or_none(dict(content)), separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    files = {name: (TEMPLATES / f"features.{name}").read_text(encoding="utf-8") for name in ("css", "js")}
    try:
        write_text(path, environment.get_template("features.html.jinja").render(run=content["run"], data=data, **files))
    except OSError as error:
        raise ConfigError(
            f"the page must be written to a file that can be written to, but got {str(path)!r}: {reason_of(error)}. Choose another with "
            "`--out FILE`."
        ) from error
