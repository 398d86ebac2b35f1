"""How objects look in notebooks. No torch."""

import html
from collections.abc import Iterable, Mapping

MOST_LINES = 10
"""Lines of a text that are shown."""


def table_of(title: str, facts: Mapping[str, object], text: str = "") -> str:
    """A heading and a table of two columns, as HTML; texts are escaped, empty ones left out.

    Args:
        facts: what -> value.
        text: stands below, as it is, behind a heading to unfold it.
    """
    shown = {name: str(value) for name, value in facts.items() if value not in ("", None)}
    left = "text-align: left; white-space: pre-line"
    rows = "".join(
        f'<tr><th style="{left}">{html.escape(name)}</th><td style="{left}">{html.escape(value)}</td></tr>' for name, value in shown.items()
    )
    below = f"<details><summary>as YAML</summary><pre>{html.escape(text)}</pre></details>" if text else ""
    return f"<div><b>{html.escape(title)}</b><table>{rows}</table>{below}</div>"


def first_lines(lines: Iterable[str]) -> str:
    """At most MOST_LINES of the lines, and how many more there are."""
    every = list(lines)
    more = [f"and {len(every) - MOST_LINES} more"] if len(every) > MOST_LINES else []
    return "\n".join([*every[:MOST_LINES], *more])
