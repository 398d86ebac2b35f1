"""Points of a run's training at which a snapshot of its SAE is taken."""

import re
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator, TypeAdapter

from sae_core.config.spans import Span, steps_of
from sae_core.errors import ConfigError

FIRST_OF_LOG = 0.01
"""Fraction of the run at which the first of the points is that "log n" stands for."""
MOST_POINTS = 100
_LOG = re.compile(r"log (\d+)")
_SPAN: TypeAdapter[float | str] = TypeAdapter(Span)


def _parse(value: Any) -> float | str:
    if isinstance(value, str) and (found := _LOG.fullmatch(value)) and 1 <= int(found[1]) <= MOST_POINTS:
        return f"log {int(found[1])}"
    try:
        span = _SPAN.validate_python(value)
    except ValueError:
        span = 0.0
    if span in (0.0, 1.0):
        raise ConfigError(
            f"a point of training must be a fraction of the steps above 0 and below 1, a number of steps or tokens, or 'log n' with n from "
            f"1 to {MOST_POINTS}, but got {value!r}. Write e.g. 10%, '500 steps', '2M tokens' or 'log 5'."
        )
    return span


Point = Annotated[float | str, BeforeValidator(_parse)]
"""A `Span` from the start of training, or "log n": n points, each the same factor after the one before, from 1 % of the run to that factor
before its end."""


def snapshot_steps(points: Sequence[float | str], n_steps: int, batch_size: int) -> list[int]:
    """Steps done at checked points of a run, in order, each once. Those of lengths may lie beyond its end."""
    steps = set()
    for point in points:
        if isinstance(point, str) and (found := _LOG.fullmatch(point)):
            n = int(found[1])
            fractions = [FIRST_OF_LOG ** (1 - i / n) for i in range(n)]
            steps |= {min(max(1, round(fraction * n_steps)), n_steps - 1) for fraction in fractions}
        else:
            steps.add(max(1, steps_of(point, n_steps, batch_size)))
    return sorted(steps - {0})
