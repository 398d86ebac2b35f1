"""How a metric falls with width, tokens and L0: a power law with an irreducible part, fitted to a sweep, with intervals and a check.

    y = exp(a + b_k ln k + b_n ln n + g ln k ln n + b_t ln t) + exp(z + e ln k)

with k = L0, n = d_sae and t = training tokens: the form of Gao et al. 2024 (arXiv:2406.04093, section 3.1), with tokens added. The second
part is what no width removes. Choices worth knowing:
- Fitted per architecture on ln y, by least squares from several starts. Terms that the sweep cannot tell are left out: tokens where there
  is one budget, the interaction where there are two widths. Logarithms are taken relative to the geometric mean, so that terms are told
  apart as well as they can be; parameters are given for plain logarithms.
- Intervals: residuals drawn with replacement, put onto the fit, and fitted again. They hold where the form does.
- Held out: the widest width, or the longest budget where there is one width. Its error, beside that of repeating the next size, says
  whether to believe a prediction beyond.
- Without three widths, or three budgets, there is no curvature to fit, and the fit is refused.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.table import check_columns, finished, numbers, orientation, over_seeds
from sae_core.errors import ConfigError

FloatArray = NDArray[np.float64]

ENOUGH = 3
"""Widths, or token budgets, and L0s that a law is fitted to, at least."""
DRAWS = 100
"""Fits to residuals drawn again, for intervals."""
_STARTS = ((-1.0, -0.05), (-3.0, -0.05), (-6.0, 0.0))
"""Starts of (z relative to ln y, e): an irreducible part from a third of the error to almost none of it."""
SIZES = ("l0", "d_sae", "train_tokens")
_SLACK = 1.001
"""Factor by which a size may lie outside what was measured and still count as inside."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a law, with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Law:
    """A fitted law of one architecture."""

    architecture: str
    metric: str
    parameters: Mapping[str, Parameter]
    """"a", "l0", "d_sae", "l0 x d_sae", "train_tokens" (those that could be told), "irreducible" and "irreducible l0"."""
    error: float
    """Root mean square of what the fit leaves of ln y: 0.02 is 2 %."""
    held_out: "HeldOut | None"
    measured: Mapping[str, tuple[float, float]]
    """Size -> smallest and largest value that it was fitted to."""
    n_settings: int
    _terms: "_Terms" = field(repr=False)
    _draws: FloatArray = field(repr=False)

    def predict(self, l0: float, d_sae: float, train_tokens: float) -> "Prediction":
        """The metric at sizes that need not have been trained.

        Raises:
            ConfigError: a size is not a number above 0.
        """
        return self.predict_all([(l0, d_sae, train_tokens)])[0]

    def predict_all(self, sizes: Sequence[tuple[float, float, float]]) -> "list[Prediction]":
        """As `predict`, for many (l0, d_sae, train_tokens)."""
        points = np.asarray(sizes, dtype=float).reshape(-1, len(SIZES))
        wrong = points[~(np.isfinite(points) & (points > 0)).all(axis=1)]
        if len(wrong):
            got = ", ".join(f"{name}={value:g}" for name, value in zip(SIZES, wrong[0], strict=True))
            raise ConfigError(f"sizes must be numbers above 0, but got {got}. Give e.g. l0=32, d_sae=4096, train_tokens=1e8.")
        values = np.exp([self._terms.ln_y(theta, np.log(points)) for theta in (self._terms.best, *self._draws)])
        lows, highs = np.quantile(values[1:], [0.025, 0.975], axis=0)
        found = []
        for point, value, low, high in zip(points.tolist(), values[0], lows, highs, strict=True):
            ends = zip(SIZES, point, (self.measured[name] for name in SIZES), strict=True)
            beyond = tuple(name for name, size, (least, most) in ends if not least / _SLACK <= size <= most * _SLACK)
            found.append(Prediction(float(value), float(min(low, value)), float(max(high, value)), beyond))
        return found


@dataclass(frozen=True, slots=True)
class Prediction:
    """A value of a law."""

    value: float
    low: float
    high: float
    extrapolated: tuple[str, ...]
    """Sizes that lie outside what was trained; empty where all lie inside."""

    def __str__(self) -> str:
        text = f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"
        return f"{text} (extrapolated in {', '.join(self.extrapolated)})" if self.extrapolated else text


@dataclass(frozen=True, slots=True)
class HeldOut:
    """What a law fitted without the largest size says about it."""

    size: str
    """Column, e.g. "d_sae"."""
    value: float
    """The size that was left out."""
    error: float
    """Root mean square of the error of ln y there."""
    error_of_last: float
    """The same of saying "as at the next smaller size": a law that does no better has found nothing."""


def fit(table: pd.DataFrame, metric: str = "fvu", *, seed: int = 0) -> dict[str, Law]:
    """A law per architecture of the finished runs.

    Args:
        table: runs on one held-out text; several widths or token budgets.
        metric: one that falls to 0 as SAEs get better: FVU, delta CE, MSE.
        seed: of the draws for intervals.

    Raises:
        ConfigError: the metric is not one that falls, or no architecture has enough sizes: each is named with what is missing.
    """
    check_columns(table, ["architecture", "setting_hash", *SIZES, metric])
    if orientation(table, metric) < 0:
        raise ConfigError(f"a law of scaling must be of a metric that falls, but got {metric!r}. Fit fvu, delta_ce or mse.")
    if "eval_hash" in table and table.loc[finished(table), "eval_hash"].nunique() > 1:
        raise ConfigError("runs must be measured on one held-out text to share a law, but got several. Pass rows of one `eval_hash`.")
    known = table[finished(table) & (numbers(table, metric) > 0) & (numbers(table, "l0") > 0)]
    settings = over_seeds(known.dropna(subset=list(SIZES)))
    missing: list[str] = []
    laws: dict[str, Law] = {}
    for architecture, rows in settings.groupby("architecture"):
        lacking = _lacking(rows)
        if lacking:
            missing.append(f"{architecture}: {lacking}")
        else:
            laws[str(architecture)] = _fit(str(architecture), rows, metric, seed)
    if not laws:
        raise ConfigError(
            f"a law of scaling must be fitted to {ENOUGH} widths or token budgets and {ENOUGH} L0s, but got "
            f"{'; '.join(missing) or 'no finished run'}. Add `d_sae` or `train_tokens` to the sweep, or pass several sweeps."
        )
    return laws


def frontier(law: Law, d_sae: float, train_tokens: float, l0s: Sequence[float] = (8, 16, 32, 64, 128)) -> pd.DataFrame:
    """A front that was not trained: columns `l0`, the metric, `low`, `high` and `extrapolated` (in what, as text; empty for nothing)."""
    found = law.predict_all([(float(l0), d_sae, train_tokens) for l0 in l0s])
    rows = [
        {"l0": float(l0), law.metric: one.value, "low": one.low, "high": one.high, "extrapolated": ", ".join(one.extrapolated)}
        for l0, one in zip(l0s, found, strict=True)
    ]
    return pd.DataFrame(rows)


def _lacking(rows: pd.DataFrame) -> str:
    """What is missing for a law; empty for nothing."""
    counts = {name: rows[name].round().nunique() for name in ("d_sae", "train_tokens")}
    if max(counts.values()) < ENOUGH:
        return f"{counts['d_sae']} width(s) and {counts['train_tokens']} token budget(s)"
    n_l0s = _n_levels(rows["l0"])
    if n_l0s < ENOUGH:
        return f"{n_l0s} L0(s)"
    n_terms = len(_Terms.of(rows).names)
    return f"{len(rows)} settings for {n_terms} parameters" if len(rows) <= n_terms else ""


def _n_levels(l0s: "pd.Series[float]") -> int:
    """L0s that differ by more than 10 %."""
    ordered = np.sort(np.log(l0s.to_numpy(dtype=float)))
    return 1 + int((np.diff(ordered) > np.log(1.1)).sum())


@dataclass(frozen=True)
class _Terms:
    """Which terms a law has, and the logarithms that sizes are taken relative to."""

    names: tuple[str, ...]
    center: FloatArray
    """[3] mean ln of SIZES."""
    best: FloatArray = field(default_factory=lambda: np.empty(0))

    @classmethod
    def of(cls, rows: pd.DataFrame) -> "_Terms":
        widths, budgets = (rows[name].round().nunique() for name in ("d_sae", "train_tokens"))
        names = ["a", "l0"]
        names += ["d_sae"] if widths > 1 else []
        names += ["l0 x d_sae"] if widths >= ENOUGH else []
        names += ["train_tokens"] if budgets > 1 else []
        center = np.log(rows[list(SIZES)].to_numpy(dtype=float)).mean(axis=0)
        return cls((*names, "irreducible", "irreducible l0"), center)

    def design(self, points: FloatArray) -> FloatArray:
        """[N, terms of the reducible part]."""
        k, n, t = (points - self.center).T
        columns = {"a": np.ones_like(k), "l0": k, "d_sae": n, "l0 x d_sae": k * n, "train_tokens": t}
        return np.column_stack([columns[name] for name in self.names[:-2]])

    def ln_y(self, theta: FloatArray, points: FloatArray) -> FloatArray:
        """ln of the law at points [N, 3] of ln SIZES."""
        k = points[:, 0] - self.center[0]
        return np.logaddexp(self.design(points) @ theta[:-2], theta[-2] + theta[-1] * k)

    def slopes(self, theta: FloatArray, points: FloatArray) -> FloatArray:
        """Derivatives of `ln_y` by the parameters [N, parameters]."""
        design, k = self.design(points), points[:, 0] - self.center[0]
        part = np.exp(design @ theta[:-2] - self.ln_y(theta, points))[:, None]
        return np.hstack([part * design, 1 - part, (1 - part) * k[:, None]])

    def plain(self, theta: FloatArray) -> dict[str, float]:
        """Parameters for logarithms that are not relative to anything."""
        value = dict(zip(self.names, theta.tolist(), strict=True))
        k, n, t = self.center.tolist()
        cross = value.get("l0 x d_sae", 0.0)
        found = dict(value)
        found["a"] = value["a"] - value["l0"] * k - value.get("d_sae", 0.0) * n - value.get("train_tokens", 0.0) * t + cross * k * n
        found["l0"] = value["l0"] - cross * n
        if "d_sae" in value:
            found["d_sae"] = value["d_sae"] - cross * k
        found["irreducible"] = value["irreducible"] - value["irreducible l0"] * k
        return found


def _fit(architecture: str, rows: pd.DataFrame, metric: str, seed: int) -> Law:
    points, ln_y = np.log(rows[list(SIZES)].to_numpy(dtype=float)), np.log(rows[metric].to_numpy(dtype=float))
    terms = _Terms.of(rows)
    best = _least_squares(terms, points, ln_y)
    draws = _drawn(terms, points, ln_y, best, seed)
    of_draws = pd.DataFrame([terms.plain(theta) for theta in draws])
    parameters = {
        name: Parameter(value, *(float(end) for end in np.quantile(of_draws[name], [0.025, 0.975])))
        for name, value in terms.plain(best).items()
    }
    measured = {name: (float(rows[name].min()), float(rows[name].max())) for name in SIZES}
    error = float(np.sqrt(np.mean((terms.ln_y(best, points) - ln_y) ** 2)))
    fitted = _Terms(terms.names, terms.center, best)
    return Law(architecture, metric, parameters, error, _held_out(rows, metric), measured, len(rows), fitted, draws)


def _least_squares(terms: _Terms, points: FloatArray, ln_y: FloatArray, start: FloatArray | None = None) -> FloatArray:
    """The parameters. A fit that starts at another one, for intervals, is cheaper and good to a few digits."""
    from scipy.optimize import least_squares

    linear = np.linalg.lstsq(terms.design(points), ln_y, rcond=None)[0]
    tolerance = 1e-10 if start is None else 1e-4
    starts = [start] if start is not None else [np.array([*linear, ln_y.mean() + z, e]) for z, e in _STARTS]
    # The irreducible part is below what was measured, and not so far below that its logarithm means nothing.
    low = np.full(len(terms.names), -np.inf)
    low[-2], high = ln_y.min() - 10.0, np.full(len(terms.names), np.inf)
    fits = [
        least_squares(
            lambda theta: terms.ln_y(theta, points) - ln_y,
            np.clip(one, low + 1e-6, high),
            jac=lambda theta: terms.slopes(theta, points),
            bounds=(low, high),
            x_scale="jac",
            ftol=tolerance,
            xtol=tolerance,
        )
        for one in starts
    ]
    return np.asarray(min(fits, key=lambda found: found.cost).x, dtype=np.float64)


def _drawn(terms: _Terms, points: FloatArray, ln_y: FloatArray, best: FloatArray, seed: int) -> FloatArray:
    """Fits to residuals drawn again: [DRAWS, parameters]."""
    generator = np.random.default_rng(seed)
    fitted = terms.ln_y(best, points)
    residuals = (ln_y - fitted) * np.sqrt(len(ln_y) / max(len(ln_y) - len(best), 1))
    found = []
    for _ in range(DRAWS):
        drawn = fitted + generator.choice(residuals, size=len(residuals))
        found.append(_least_squares(terms, points, drawn, start=best))
    return np.array(found)


def _held_out(rows: pd.DataFrame, metric: str) -> HeldOut | None:
    """How well the largest width, or else budget, is predicted from the others; None where too few would be left."""
    for size in ("d_sae", "train_tokens"):
        values = np.sort(rows[size].round().unique())
        kept, left = rows[rows[size].round() < values[-1]], rows[rows[size].round() == values[-1]]
        if len(values) < ENOUGH or _too_few(kept):
            continue
        terms = _Terms.of(kept)
        points, ln_y = (np.log(kept[list(SIZES)].to_numpy(dtype=float)), np.log(kept[metric].to_numpy(dtype=float)))
        theta = _least_squares(terms, points, ln_y)
        truth = np.log(left[metric].to_numpy(dtype=float))
        there = np.log(left[list(SIZES)].to_numpy(dtype=float))
        before = there.copy()
        before[:, SIZES.index(size)] = np.log(values[-2])
        errors = [float(np.sqrt(np.mean((terms.ln_y(theta, at) - truth) ** 2))) for at in (there, before)]
        return HeldOut(size, float(values[-1]), *errors)
    return None


def _too_few(rows: pd.DataFrame) -> bool:
    return len(rows) <= len(_Terms.of(rows).names)
