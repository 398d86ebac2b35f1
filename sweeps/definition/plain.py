"""The one border of definitions: whatever a file or Python gives becomes dicts, lists and scalars that the rest may hash and print."""

import unicodedata
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from sae_core.errors import ConfigError
from sweeps.definition.problems import Problems, shown

DEEPEST = 20
"""Sections and lists in one another."""
MOST_VALUES = 200_000
"""Values of a definition, where what an alias stands for counts each time."""
LONGEST_TEXT = 4_096
"""Characters of a name, a path or another text."""
LARGEST_WHOLE = 2**63 - 1


def plain(content: Any) -> Any:
    """A copy of `content` made of dicts, lists and scalars; what the key `<<` holds is merged into the section that it is in.

    Raises:
        ConfigError: with every value that a definition cannot hold, one per line.
    """
    problems, n_values = Problems(), 0

    def copied(value: Any, place: str, depth: int) -> Any:
        nonlocal n_values
        n_values += 1
        if n_values > MOST_VALUES or depth > DEEPEST:
            limits = f"at most {MOST_VALUES:,} values (aliases count each time), {DEEPEST} levels deep"
            raise ConfigError(f"a definition must hold {limits}, but got more in {shown(place)}. Shorten it.")
        if isinstance(value, Mapping):
            section = {}
            for key, inner in value.items():
                if not isinstance(key, str) or _reason(key):
                    problems.add(place, f"keys must be text of one line, but got {shown(key)}. Put it in quotes, or correct it.")
                elif not problems.enough:
                    section[key] = copied(inner, f"{place}.{key}" if place else key, depth + 1)
            return _merged(section, place, problems) if "<<" in section else section
        if isinstance(value, list | tuple):
            return [copied(item, place, depth + 1) for item in value]
        if reason := _reason(value):
            name = place.rpartition(".")[2] or "a definition"
            problems.add(place, f"`{name}` must be {reason}, but got {name}={shown(value)}. Correct it.")
        return value

    result = copied(content, "", 0)
    problems.raise_any()
    return result


def _reason(value: Any) -> str:
    """What a scalar that no definition can hold must be; empty for others. That a number is finite is a rule of its field."""
    if isinstance(value, str):
        if len(value) > LONGEST_TEXT:
            return f"text of at most {LONGEST_TEXT:,} characters"
        # Control characters, lone surrogates, line separators: files, hashes and messages are lines of UTF-8.
        strange = not value.isprintable() and {"Cc", "Cs", "Zl", "Zp"} & {unicodedata.category(char) for char in value}
        return "printable text of one line" if strange else ""
    if isinstance(value, int):
        return "" if abs(value) <= LARGEST_WHOLE else "at most 2^63 - 1 in size"
    is_scalar = value is None or isinstance(value, float | BaseModel)
    return "" if is_scalar else "text, a number, true, false, null, a list or a section"


def _merged(section: dict[str, Any], place: str, problems: Problems) -> dict[str, Any]:
    """The section with those under `<<` merged in: own keys win, then the first of them."""
    sources = section.pop("<<")
    merged: dict[str, Any] = {}
    for source in reversed(sources if isinstance(sources, list) else [sources]):
        if isinstance(source, dict):
            merged |= source
        else:
            problems.add(place, f"`<<` must be followed by a section or a list of sections, but got {shown(source)}. Correct it.")
    return merged | section
