"""FVU at each hook point of a crosscoder: columns that its records have beside those of every SAE."""

from collections.abc import Iterable

import torch

from sae_core.metrics.evaluators import column_specs
from sae_core.metrics.metric import METRICS, Metric, Observation, Sums
from sae_core.records import MetricSpec

FVU_AT = "fvu_at_"
"""What the names of these columns begin with; the hook point follows."""


def fvu_sums(seen: Observation) -> dict[str, Sums]:
    """Column -> sums of the metric `fvu`, of one hook point's columns of y and x_hat alone. Nothing where there is one hook point."""
    if not (parts := seen.chunk.parts):
        return {}
    widths = list(parts.values())
    found: dict[str, Sums] = {}
    for name, y, x_hat in zip(parts, seen.chunk.y_double.split(widths, dim=1), seen.x_hat.split(widths, dim=1), strict=True):
        squares = {"error": y - x_hat.double(), "y_squared": y}
        found[f"{FVU_AT}{name}"] = {key: torch.linalg.vecdot(rows, rows).sum() for key, rows in squares.items()} | {"y": y.sum(dim=0)}
    return found


def metric_of(column: str) -> Metric:
    """The metric that makes the value of a column."""
    return METRICS["fvu" if column.startswith(FVU_AT) else column]()


def specs_of(columns: Iterable[str]) -> list[MetricSpec]:
    """What columns of metrics and evaluators are."""
    known = column_specs()
    return [known[name] if name in known else _spec(name.removeprefix(FVU_AT)) for name in columns]


def _spec(hook_point: str) -> MetricSpec:
    return MetricSpec(f"{FVU_AT}{hook_point}", f"Fraction of variance unexplained at {hook_point}", "", "min")
