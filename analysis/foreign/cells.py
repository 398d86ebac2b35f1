"""Cells of published tables: what is a number, what is missing, and what is neither.

Nothing is guessed: "12,345", "0.9*" or "0.95 ± 0.01" could be read in two ways, or only in part, and are refused.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sae_core.validation import printable

MISSING = frozenset({"", "nan", "na", "n/a", "none", "null", "<na>", "-", "–", "—"})
"""Texts that mean "no value", in lower case."""
_LONGEST_SHOWN = 60
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_PLAIN = re.compile(rf"({_NUMBER})(\s*%)?")
_INFINITE = re.compile(r"[-+]?inf(inity)?", re.IGNORECASE)
_FINITE_OR_NOT = rf"{_NUMBER}|nan|[-+]?inf"
_ARRAY = re.compile(
    r"(?:(?:torch\.)?tensor|(?:np\.|numpy\.)?(?:array|float\d+|int\d+))"
    rf"\(\s*(?:({_FINITE_OR_NOT})|\[\s*({_FINITE_OR_NOT})\s*\])\s*(?:,\s*\w+=[^()\[\]]*)?\)"
)
"""How a tensor or array of one value is printed."""


class NotInterpretable(ValueError):  # noqa: N818 - it says what a cell is
    """A cell that is not what its column is to hold."""


@dataclass(frozen=True, slots=True)
class Missing:
    """A cell that a format marks as one without a value."""

    why: str
    """E.g. "was -1, which stands for no value"."""


def number(cell: Any) -> tuple[float, str]:
    """A cell as a number, and what is odd about how it was written: empty for nothing.

    Returns:
        NaN where the cell says that there is no value.

    Raises:
        NotInterpretable: it is neither a number nor missing.
    """
    if cell is None or (isinstance(cell, str) and cell.strip().lower() in MISSING):
        return np.nan, ""
    if isinstance(cell, Missing):
        return np.nan, cell.why
    if isinstance(cell, bool | np.bool_):
        raise NotInterpretable
    if isinstance(cell, int | float | np.integer | np.floating):
        return (float(cell), "") if np.isfinite(cell) or np.isnan(cell) else (np.nan, "is infinite")
    if not isinstance(cell, str):
        raise NotInterpretable
    return _of_text(cell.strip().replace("\N{MINUS SIGN}", "-"))


def _of_text(text: str) -> tuple[float, str]:
    if match := _PLAIN.fullmatch(text):
        value = float(match[1])
        odd = "was written in percent" if match[2] else ""
        return (value / 100 if match[2] else value, odd) if np.isfinite(value) else (np.nan, "is infinite")
    if _INFINITE.fullmatch(text):
        return np.nan, "is infinite"
    if match := _ARRAY.fullmatch(text):
        value = float(match[1] or match[2])
        return (value, "was written as a tensor") if np.isfinite(value) else (np.nan, "was written as a tensor without a finite value")
    raise NotInterpretable


def whole(cell: Any) -> tuple[float, str]:
    """As `number`, of whole numbers.

    Raises:
        NotInterpretable: it is not a whole number.
    """
    value, odd = number(cell)
    if np.isfinite(value) and value != round(value):
        raise NotInterpretable
    return value, odd


def text(cell: Any) -> tuple[str | None, str]:
    """A cell as text; None where it says that there is no value.

    Raises:
        NotInterpretable: it holds several values.
    """
    if cell is None or (isinstance(cell, float | np.floating) and np.isnan(cell)):
        return None, ""
    if isinstance(cell, Mapping | Sequence | np.ndarray) and not isinstance(cell, str):
        raise NotInterpretable
    if isinstance(cell, float | np.floating) and cell == round(cell):
        cell = int(cell)
    found = printable(str(cell))
    return (None if found.lower() in MISSING else found), ""


def shown(cell: Any) -> str:
    """A cell for a message."""
    found = repr(cell)
    return found if len(found) <= _LONGEST_SHOWN else f"{found[:_LONGEST_SHOWN]}..."
