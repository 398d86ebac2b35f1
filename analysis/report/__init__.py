"""`report.html` and `report.md`, made from the records alone: no model, no GPU, no network.

The HTML is one file that works offline. Beside the Markdown lie the plots, as PNG and SVG, in `plots/`. The same records give the same
report, byte for byte.
"""

import html
import logging
import re
from collections.abc import Sequence
from pathlib import Path

import jinja2

from analysis import stability, words
from analysis.plots import style
from analysis.report.content import content_of
from analysis.report.figures import PAGE_COLORS
from analysis.results import read_sweeps
from analysis.table import table_of
from sae_core import plugins
from sae_core.errors import ConfigError, reason_of
from sae_core.files import write_text

log = logging.getLogger(__name__)


def write_report(results: Path | Sequence[Path], out: Path | None = None) -> Path:
    """Write the report of one sweep, or of several together.

    Args:
        results: sweep directories.
        out: where `report.html`, `report.md` and `plots/` go; by default `report/` of the first sweep.

    Returns:
        Path of `report.html`.

    Raises:
        ConfigError: a directory is not a sweep's, or holds no run; or `out` cannot be written to.
    """
    sweeps = read_sweeps(results)
    try:
        plugins.load(name for sweep in sweeps for name in sweep.plugins)
    except ConfigError as error:  # the records say all the same what came of the runs
        log.warning("%s Its plots are left out of the report.", error)
    out = sweeps[0].paths.report.absolute() if out is None else Path(out)
    stability.measure(sweeps)
    table = table_of(sweeps)
    try:
        with style.shown_together(table["architecture"].dropna()):
            content = content_of(sweeps, table, out / "plots")
        for name in ("report.md", "report.html"):
            write_text(out / name, _environment(autoescape=name.endswith("html")).get_template(f"{name}.jinja").render(content))
    except OSError as error:
        raise ConfigError(
            f"a report must be written to a directory that can be written to, but got {str(out)!r}: {reason_of(error)}. "
            "Choose another one with `--out DIR`."
        ) from error
    return out / "report.html"


def _environment(*, autoescape: bool) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=autoescape,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "label": words.label,
        "number": words.number,
        "interval": words.interval,
        "span": lambda span: f"{span.low:.1f} to {span.high:.1f} ({100 * span.coverage:.0f} %)" if span else words.number(None),
        "percent": lambda ratio: words.number(None) if ratio is None else f"{100 * ratio:.1f} %",
        "page_color": lambda color: PAGE_COLORS.get(color, color),
        "code": lambda text: re.sub("`([^`]*)`", r"<code>\1</code>", html.escape(text)),
        "kept": lambda text: re.sub(r" (?=%)|(?<=L0) ", "\N{NO-BREAK SPACE}", text),
        "cell": lambda text: str(text).replace("|", "\\|").replace("\n", " "),
    }
    return environment
