"""How much of a large sweep is drawn and listed: what can be seen, chosen evenly. The table has everything."""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

MOST_POINTS = 40
"""Settings of an architecture that a plot draws beside those on its front."""
MOST_CURVES = 24
"""Training curves of an architecture that are drawn."""
MOST_ROWS = 1_000
"""Runs that a comparison's table in the report lists; of more, those on a front or in a plot."""
MOST_UNFINISHED = 200
"""Unfinished runs that the report lists."""


def evenly(number: int, most: int) -> NDArray[np.intp]:
    """At most `most` of the places 0 ... number - 1, both ends among them."""
    return np.unique(np.linspace(0, number - 1, min(number, most)).round().astype(np.intp))


def thinned(settings: pd.DataFrame, most: int = MOST_POINTS) -> pd.DataFrame:
    """The settings on a front, and of each architecture's others at most `most`, evenly in the order of the rows.

    Args:
        settings: with the columns `architecture` and `on_front`.
    """
    kept = settings["on_front"].to_numpy(dtype=bool, copy=True)
    architectures = settings["architecture"].to_numpy()
    for architecture in set(architectures):
        others = np.flatnonzero((architectures == architecture) & ~kept)
        kept[others[evenly(len(others), most)]] = True
    return settings[kept]
