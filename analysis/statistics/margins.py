"""When a difference is too small to matter: less than 5 % of how far the value is from that of a perfect SAE.

5 % of a FVU of 0.08 is 0.004. 5 % of the explained variance of the same SAE would be 0.046, more than half of all that it lacks: any two
architectures would be equivalent. So a metric with its best value at 1 is judged on what is missing to 1, and the cross-entropy of the
spliced model on what is above that of the untouched one; a metric whose best value is not known has no such margin.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.interpolation import FloatArray
from analysis.statistics.pooling import CLEAN_CE
from analysis.table import numbers, specs_of

MARGIN = 0.05
"""The fraction."""
_ABOVE_CLEAN = "ce_loss_spliced"
"""The one metric whose best value is another column's."""


@dataclass(frozen=True, slots=True)
class Ideal:
    """What a perfect SAE has."""

    value: float
    words: str
    """What the margin is a fraction of, as it ends "5 % of ..."."""

    def margin(self, values: FloatArray, *, raw: bool) -> float:
        """The margin on the scale of the samples, around values of the metric on that scale."""
        shown = values if raw else np.exp(values)
        distance = MARGIN * float(np.abs(shown - self.value).mean())
        return distance if raw else float(np.log1p(distance / shown.mean()))


def ideal_of(table: pd.DataFrame, metric: str, sign: float) -> Ideal | None:
    """What a perfect SAE has of a metric; None where that is not known.

    Args:
        table: rows that may be pooled.
        sign: 1 where a smaller value is better, -1 where a larger one is.
    """
    if metric == _ABOVE_CLEAN:
        clean = numbers(table, CLEAN_CE) if CLEAN_CE in table else np.empty(0)
        clean = clean[np.isfinite(clean)]
        return Ideal(float(clean.mean()), "what is above the untouched model's") if len(clean) else None
    if sign > 0:
        return Ideal(0.0, "the value")
    spec = specs_of(table).get(metric)
    return Ideal(1.0, "what is missing to 1") if spec and not spec.unit else None
