"""The horizontal gap: how many more or fewer latents one front needs than another for the same value."""

from dataclasses import dataclass

import numpy as np

from analysis.interpolation import FloatArray
from analysis.statistics.curves import Curves

PLACES = 24
"""Values at which L0s are compared, evenly over those that both fronts reach."""
_FINE = 400
FLATTEST = 0.05
"""A front that is anywhere this much flatter than on average, as a fraction, is not read across: its L0 at a value is hardly determined."""


@dataclass(frozen=True, slots=True)
class Crossing:
    """Where a front has the values compared, and how its mean ln L0 there moves with the front."""

    places: FloatArray
    """[PLACES] ln L0."""
    coefficients: FloatArray
    """[PLACES] change of the mean ln L0 per change of the front's value at each place."""


def crossings(a: Curves, b: Curves, sign: float) -> tuple[float, Crossing, Crossing] | None:
    """Mean difference of ln L0, `a` less `b`, at equal values, and where it was read. None where no value is reached by both.

    Args:
        sign: 1 where a smaller value is better, -1 where a larger one is.
    """
    fronts = []
    for curves in (a, b):
        low, high = curves.span
        if low >= high:
            return None
        x = np.linspace(low, high, _FINE)
        fronts.append((x, np.minimum.accumulate(sign * curves.at(x).mean(axis=0))))
    best, worst = max(y[-1] for _, y in fronts), min(y[0] for _, y in fronts)
    if best >= worst:
        return None
    values = best + (worst - best) * (np.arange(PLACES) + 0.5) / PLACES
    found = []
    for x, y in fronts:
        places = np.interp(-values, -y, x)
        slopes = np.interp(places, x, np.gradient(y, x))
        if (slopes > FLATTEST * (y[-1] - y[0]) / (x[-1] - x[0])).any():
            return None
        found.append(Crossing(places, -1 / (PLACES * sign * slopes)))
    return float(found[0].places.mean() - found[1].places.mean()), found[0], found[1]
