"""What a definition may consist of: mappings with text as keys, lists, text, numbers, true and false, and nothing.

Checked before anything else looks at a definition, so that the rest of the program may walk through it, copy it, hash it and print it:
a definition whose aliases stand for a billion values is refused before they are counted out.
"""

import unicodedata
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from sweeps.definition.problems import Problems, shown

DEEPEST = 20
"""Sections and lists in one another."""
MOST_VALUES = 300_000
"""Values of a definition, where what an alias stands for counts each time."""
LONGEST_TEXT = 4_096
"""Characters of a name, a path or another text."""
LARGEST_WHOLE = 2**63 - 1
_NOT_TEXT = {"Cc": "a control character", "Cs": "a lone surrogate, half of a character", "Zl": "a line separator", "Zp": "a line separator"}
"""Unicode categories that names, paths and columns cannot have: files, hashes and messages are lines of UTF-8."""


def check_plain(content: Any, problems: Problems) -> None:
    """Note what `content` holds that no definition can, each with its place."""
    left: list[tuple[Any, tuple[str, ...]]] = [(content, ())]
    n_values = 0
    while left and not problems.enough:
        value, path = left.pop()
        n_values += 1
        if n_values > MOST_VALUES:
            problems.add("", f"a definition must hold at most {MOST_VALUES:,} values, but got more (aliases count each time). Shorten it.")
            return
        if len(path) > DEEPEST:
            place = _place(path[:3])
            problems.add(place, f"sections and lists must be at most {DEEPEST} deep, but got more in `{place}`. Write it flat.")
            return
        if isinstance(value, Mapping):
            for key in value:
                _check_key(key, path, problems)
            left += [(value[key], (*path, key)) for key in reversed(list(value)) if isinstance(key, str)]
        elif isinstance(value, list | tuple):
            # An item is at the place of its list: `train.lr`.
            left += [(item, (*path, "")) for item in reversed(value)]
        else:
            _check_scalar(value, path, problems)


def _check_key(key: Any, path: tuple[str, ...], problems: Problems) -> None:
    if not isinstance(key, str):
        problems.add(_place(path), f"keys must be text, but got {shown(key)} ({type(key).__name__}). Put it in quotes, or correct it.")
    elif reason := _not_text(key):
        problems.add(_place(path), f"keys must be text, but got {shown(key)}, which {reason}. Correct it.")


def _check_scalar(value: Any, path: tuple[str, ...], problems: Problems) -> None:
    place = _place(path)
    name = place.rpartition(".")[2] or "a definition"
    if value is None or isinstance(value, bool | float | BaseModel):
        return  # that a number is finite is a rule of its field
    if isinstance(value, int):
        if not -LARGEST_WHOLE <= value <= LARGEST_WHOLE:
            problems.add(place, f"`{name}` must be at most 2^63 - 1 in size, but got {name}={shown(value)}. Lower it.")
    elif isinstance(value, str):
        if reason := _not_text(value):
            problems.add(place, f"`{name}` must be text, but got {name}={shown(value)}, which {reason}. Correct it.")
    else:
        kinds = "text, numbers, true, false, null, lists and mappings"
        problems.add(place, f"`{name}` must be made of {kinds}, but got {name}={shown(value)} ({type(value).__name__}). Correct it.")


def _not_text(text: str) -> str:
    """Why something is no text of one line that UTF-8 can hold; empty if it is."""
    if len(text) > LONGEST_TEXT:
        return f"has {len(text):,} characters, more than {LONGEST_TEXT:,}"
    found = next((kind for char in text if not char.isprintable() and (kind := _NOT_TEXT.get(unicodedata.category(char)))), "")
    return f"holds {found}" if found else ""


def _place(path: tuple[str, ...]) -> str:
    return ".".join(part for part in path if part)
