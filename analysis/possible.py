"""Values of metrics that cannot be: what their definition rules out. Something went wrong where one was measured or written."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
from numpy.typing import NDArray

_ANY = float("inf")
POSSIBLE = {
    "l0": (0.0, _ANY),
    "mse": (0.0, _ANY),
    "fvu": (0.0, _ANY),
    "explained_variance": (-_ANY, 1.0),
    "cosine": (-1.0, 1.0),
    "dead_fraction": (0.0, 1.0),
    "ce_loss_clean": (0.0, _ANY),
    "ce_loss_spliced": (0.0, _ANY),
    "ce_loss_zero_ablated": (0.0, _ANY),
    "ce_loss_mean_ablated": (0.0, _ANY),
    "mcc": (0.0, 1.0),
}
"""Metric -> least and largest value that there can be; L0 is at most d_sae too. A row with another one takes no part in fronts."""
SLACK = 1e-5
"""A value outside by less is one at the bound, in float32."""


def impossible(table: pd.DataFrame) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Metric of the table, and which rows have a value of it that cannot be."""
    for metric, (low, high) in POSSIBLE.items():
        if metric in table:
            values = table[metric].to_numpy(dtype=float, na_value=np.nan)
            above = table["d_sae"].astype(float).fillna(high).to_numpy() if metric == "l0" else np.full(len(table), high)
            yield metric, (values < low - SLACK) | (values > above * (1 + SLACK) + SLACK)
