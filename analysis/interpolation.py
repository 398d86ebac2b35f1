"""Curves through the points of a front, read at any L0: monotone cubic, many curves at once.

Letters: `L` knots of a curve, `P` places where it is read; leading dimensions `...` are curves, e.g. draws of documents and seeds.

Choices worth knowing:
- PCHIP (Fritsch and Butland 1984, SIAM J. Sci. Stat. Comput. 5), as `scipy.interpolate.PchipInterpolator` has it, over all curves in one
  call: it passes through every point, and between neighbours it never leaves what they span, so it invents no better SAE.
- Beyond an end the curve continues as a straight line, with the slope from the end to the nearest knot that is SLOPE_SPAN away. A curve
  that spans less than SLOPE_SPAN has no such slope, and continues level.
"""

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

END_TOLERANCE = 0.1
"""How far beyond an end of the front an L0 may lie and still be read off it, as a fraction: as far as a target L0 may be missed."""

SLOPE_SPAN = 2**0.5
"""Factor of L0 that the slope beyond an end is taken over, at least: between close neighbours a slope is noise."""


def read(x: FloatArray, y: FloatArray, at: FloatArray) -> FloatArray:
    """Values of the curves through (x, y), also beyond their ends: `reaches` says how far that can be trusted.

    Args:
        x: [..., L] ln L0, in any order, no two equal.
        y: [..., L] ln of the metric, or the metric.
        at: [P] ln L0.

    Returns:
        [..., P].
    """
    if not (x[..., 1:] > x[..., :-1]).all():  # in most draws of documents, L0s keep their order
        order = np.argsort(x, axis=-1, kind="stable")
        x, y = np.take_along_axis(x, order, -1), np.take_along_axis(y, order, -1)
    if x.shape[-1] == 1:
        return np.broadcast_to(y, (*y.shape[:-1], len(at))).copy()
    h = np.maximum(np.diff(x), 1e-12)
    secant = np.diff(y) / h
    slope = _slopes(h, secant)
    d0, d1 = slope[..., :-1], slope[..., 1:]
    pieces = (x[..., :-1], y[..., :-1], d0, (3 * secant - 2 * d0 - d1) / h, (d0 + d1 - 2 * secant) / h**2)
    # The knot to the left of each place: counted, because every curve has knots of its own.
    left = np.zeros((*x.shape[:-1], len(at)), dtype=np.intp)
    for knot in range(1, x.shape[-1] - 1):
        left += at >= x[..., knot, None]
    left += (np.arange(h[..., 0].size) * h.shape[-1]).reshape(*h.shape[:-1], 1)  # as an index into all pieces of all curves
    x0, y0, slopes, quadratic, cubic = (np.ascontiguousarray(piece).ravel().take(left) for piece in pieces)
    step = at - x0
    values = y0 + step * (slopes + step * (quadratic + step * cubic))
    below, above = _end_slopes(x, y)
    first, last = x[..., :1], x[..., -1:]
    if (at.min(initial=np.inf) < first).any():
        values = np.where(at < first, y[..., :1] + below * (at - first), values)
    if (at.max(initial=-np.inf) > last).any():
        values = np.where(at > last, y[..., -1:] + above * (at - last), values)
    return values


def reaches(x: FloatArray, at: FloatArray) -> NDArray[np.bool_]:
    """Where a curve may be read: between its ends, and END_TOLERANCE beyond them if it spans at least SLOPE_SPAN. Shapes as in `read`."""
    low, high = x.min(-1, keepdims=True), x.max(-1, keepdims=True)
    tolerance = np.where(high - low >= np.log(SLOPE_SPAN), np.log1p(END_TOLERANCE), 0.0)
    return (at >= low - tolerance) & (at <= high + tolerance)


def is_beyond(x: FloatArray, at: FloatArray) -> NDArray[np.bool_]:
    """Which places lie beyond the ends of a curve. Shapes as in `read`."""
    return (at < x.min(-1, keepdims=True)) | (at > x.max(-1, keepdims=True))


def _slopes(h: FloatArray, secant: FloatArray) -> FloatArray:
    """[..., L] derivatives at the knots."""
    if h.shape[-1] == 1:
        return np.concatenate([secant, secant], axis=-1)
    before, after = secant[..., :-1], secant[..., 1:]
    w1, w2 = 2 * h[..., 1:] + h[..., :-1], h[..., 1:] + 2 * h[..., :-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        inner = np.where(before * after > 0, (w1 + w2) / (w1 / before + w2 / after), 0.0)
    ends = (_end_derivative(h[..., a], h[..., b], secant[..., a], secant[..., b]) for a, b in ((0, 1), (-1, -2)))
    first, last = (end[..., None] for end in ends)
    return np.concatenate([first, inner, last], axis=-1)


def _end_derivative(h0: FloatArray, h1: FloatArray, m0: FloatArray, m1: FloatArray) -> FloatArray:
    """Three-point derivative at an end, limited so that the curve stays monotone."""
    d = ((2 * h0 + h1) * m0 - h0 * m1) / (h0 + h1)
    limited = np.where((np.sign(m0) != np.sign(m1)) & (np.abs(d) > 3 * np.abs(m0)), 3 * m0, d)
    return np.where(np.sign(d) == np.sign(m0), limited, 0.0)


def _end_slopes(x: FloatArray, y: FloatArray) -> tuple[FloatArray, FloatArray]:
    """[..., 1] slopes of the lines below the first and above the last knot; 0 where the curve spans less than SLOPE_SPAN."""
    span = np.log(SLOPE_SPAN)
    far = (x[..., -1:] - x[..., :1] >= span)[..., 0]
    right = np.where(far, np.argmax(x - x[..., :1] >= span, axis=-1), 0)[..., None]
    left = np.where(far, x.shape[-1] - 1 - np.argmax((x[..., -1:] - x >= span)[..., ::-1], axis=-1), 0)[..., None]
    with np.errstate(divide="ignore", invalid="ignore"):
        below = (np.take_along_axis(y, right, -1) - y[..., :1]) / (np.take_along_axis(x, right, -1) - x[..., :1])
        above = (y[..., -1:] - np.take_along_axis(y, left, -1)) / (x[..., -1:] - np.take_along_axis(x, left, -1))
    return np.where(far[..., None], below, 0.0), np.where(far[..., None], above, 0.0)
