"""Spans of a run: how long a warm-up or a decay lasts, as a fraction of the run, in steps, or in tokens."""

import re
from decimal import Decimal
from typing import Annotated, Any

from pydantic import BeforeValidator

from sae_core.errors import ConfigError

_PERCENT = re.compile(r"(\d+(?:\.\d+)?) ?%")
_LENGTH = re.compile(r"(\d[\d_]*(?:\.\d+)?)([kMG]?) (step|token)s?")
_LONGEST = 10**18
"""Steps or tokens: more than any run has."""
_SUFFIXES = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}


def _parse(value: Any) -> float | str:
    """A fraction as a number; a length in its one spelling, so that "2M tokens" and "2_000_000 tokens" are the same run."""
    if isinstance(value, str) and (percent := _PERCENT.fullmatch(value)) and (part := Decimal(percent.group(1)) / 100) <= 1:
        return float(part)
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1:
        return float(value)
    if isinstance(value, str) and (found := _LENGTH.fullmatch(value)):
        number, suffix, unit = found.groups()
        length = Decimal(number.replace("_", "")) * _SUFFIXES[suffix]
        if length == int(length) and length <= _LONGEST:
            return f"{int(length)} {unit}s" if length else 0.0
    raise ConfigError(
        f"a span of the run must be a fraction of its steps from 0 to 1, or a whole number of steps or tokens, but got {value!r}. "
        "Write e.g. 0.05, '5%', '500 steps', '2_000_000 tokens' or '2M tokens' (k, M, G)."
    )


Span = Annotated[float | str, BeforeValidator(_parse)]
"""A fraction of the run's steps (0 to 1, or "5%"), or a length such as "500 steps" or "2M tokens"."""


def fraction_of_run(span: float | str, n_steps: int, batch_size: int) -> float:
    """A checked `Span` as a fraction of a run of `n_steps` steps of `batch_size` tokens; above 1 if it is longer than the run."""
    if isinstance(span, float):
        return span
    length, unit = span.split()
    return int(length) / (n_steps if unit == "steps" else n_steps * batch_size)


def steps_of(span: float | str, n_steps: int, batch_size: int) -> int:
    """A checked `Span` in whole steps, rounded."""
    return round(fraction_of_run(span, n_steps, batch_size) * n_steps)
