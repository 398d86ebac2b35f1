"""What quality costs: a metric at one L0 against floating-point operations, seconds, parameters or tokens of training.

Choices worth knowing:
- A size is what one front is of: an architecture, a width, a number of training tokens. Its quality is read off its front at one L0, per
  repeat and then averaged; its cost is the mean over its finished runs.
- Sizes are compared where they were measured on the same held-out text (`eval_hash`), whatever their widths and tokens.
- At matched cost, an architecture's value is read off its front of cost against the metric, by the rules of `interpolate_at_l0`. So of a
  wide SAE on few tokens and a narrow one on many the better one counts. Of its variance, the seeds' parts add over sizes; documents are the
  same for all, and may move all sizes alike: there the standard errors add. Which sizes are on the front is taken as known.
- `train_seconds` are those of a run's own steps on its device: comparable on one kind of hardware, with as many runs side by side.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis import interpolation
from analysis.estimates import Estimate
from analysis.interpolation import FloatArray
from analysis.pareto import pareto_front
from analysis.statistics.curves import weights_of
from analysis.statistics.matched import at_matched_l0
from analysis.statistics.uncertainty import combined, made
from analysis.table import METRICS, by_comparison, check_columns, finished, orientation
from sae_core.errors import ConfigError, UnknownNameError

LABELS = {
    "train_flops": "Training FLOPs",
    "train_seconds": "Device-seconds of training",
    "parameters": "Parameters",
    "train_tokens": "Training tokens",
}
"""Cost -> its name."""
ESTIMATE = "estimate"


def quality_of_sizes(table: pd.DataFrame, l0: float, metric: str = "fvu") -> pd.DataFrame:
    """What every size reaches at one L0, and what it cost.

    Returns:
        A row per size whose front reaches the L0: `architecture`, `comparison_hash`, `eval_hash`, `d_sae`, the costs (LABELS), the metric
        itself, `low` and `high` (its 95 % interval, or the value itself where there is none), `n_seeds`, `extrapolated`, and all of that as
        an `Estimate` in `estimate`.

    Raises:
        ConfigError: a column is missing.
    """
    check_columns(table, ["architecture", "comparison_hash", "l0", metric, "d_sae", *LABELS])
    orientation(table, metric)
    done, rows = table[finished(table)], []
    for comparison, runs in by_comparison(done).items():
        values = at_matched_l0(runs, metric, [l0])
        for architecture, of_architecture in runs.groupby("architecture"):
            found = values.get(str(architecture), [None])[0]
            if found is None:
                continue
            costs = of_architecture[list(LABELS)].astype(float).mean()
            text = of_architecture["eval_hash"].dropna() if "eval_hash" in of_architecture else pd.Series(dtype=str)
            rows.append(
                {
                    "architecture": str(architecture),
                    "comparison_hash": comparison,
                    "eval_hash": text.iloc[0] if len(text) else comparison,
                    "d_sae": of_architecture["d_sae"].iloc[0],
                    **costs,
                    metric: found.value,
                    "low": found.value if found.low is None else found.low,
                    "high": found.value if found.high is None else found.high,
                    "n_seeds": found.n_seeds,
                    "extrapolated": found.extrapolated,
                    ESTIMATE: found,
                }
            )
    columns = ["architecture", "comparison_hash", "eval_hash", "d_sae", *LABELS, metric, "low", "high", "n_seeds", "extrapolated", ESTIMATE]
    sizes = pd.DataFrame(rows, columns=columns)
    sizes.attrs[METRICS] = table.attrs.get(METRICS, {})
    return sizes


def at_matched_cost(
    table: pd.DataFrame, l0: float, metric: str = "fvu", *, cost: str = "train_flops", costs: Sequence[float] | None = None
) -> dict[tuple[str, str], list[Estimate | None]]:
    """Each architecture's metric at one L0 and equal cost, e.g. equal training FLOPs.

    Args:
        cost: a key of LABELS.
        costs: where to read; by default where every architecture was measured or can be read between measurements: the sizes of the one
            with the fewest.

    Returns:
        Held-out text and architecture -> an estimate per cost; None where the architecture's sizes do not reach.

    Raises:
        ConfigError: the cost is none of LABELS, or no size reaches the L0.
    """
    if cost not in LABELS:
        raise UnknownNameError.of("`cost`", cost, LABELS)
    sizes = quality_of_sizes(table, l0, metric).dropna(subset=[cost])
    if sizes.empty:
        raise ConfigError(f"at least one front must reach the L0, but got {l0:g}. Ask for one between the ends of a front.")
    if costs is None:
        counts = sizes.groupby("architecture")[cost].nunique()
        costs = sorted(sizes.loc[sizes["architecture"] == counts.idxmin(), cost].unique())
    sizes = sizes[(sizes[cost] > 0) & (sizes[metric] > 0)]
    group = ["eval_hash", "architecture"]
    front = sizes[pareto_front(sizes, cost, metric, by=group).to_numpy(dtype=bool)].sort_values(cost, kind="stable")
    places = np.log(np.asarray(costs, dtype=float))
    return {(str(text), str(name)): _between_sizes(own.drop_duplicates(cost), cost, places) for (text, name), own in front.groupby(group)}


def _between_sizes(front: pd.DataFrame, cost: str, places: FloatArray) -> list[Estimate | None]:
    """Estimates at places, in ln cost, along a front of sizes."""
    knots, known = np.log(front[cost].to_numpy(dtype=float)), list(front[ESTIMATE])
    y = np.log([one.value for one in known])
    weights, values = weights_of(knots, y, places), interpolation.read(knots, y, places)
    reached, beyond = interpolation.reaches(knots, places), interpolation.is_beyond(knots, places)
    return [
        _at_cost(known, weights[index], float(values[index]), beyond=bool(beyond[index])) if reached[index] else None
        for index in range(len(places))
    ]


def _at_cost(known: Sequence[Estimate], weights: FloatArray, value: float, *, beyond: bool) -> Estimate:
    """An estimate of exp(`value`), the weighted sum of ln of what is known."""
    about: Any = {"n_seeds": min(one.n_seeds for one in known), "n_documents": min(one.n_documents for one in known), "raw": False}
    about["extrapolated"] = beyond or any(one.extrapolated for one in known)
    seeds, documents = [], []
    for one, weight in zip(known, weights, strict=True):
        if one.se is None or one.df is None or one.share_of_seeds is None:
            return made(value, [], [], **about)
        error = abs(float(weight)) * one.se / (one.value if one.raw else 1.0)
        seeds.append((error**2 * one.share_of_seeds, one.df))
        documents.append((error * float(np.sqrt(1 - one.share_of_seeds)), one.df))
    error, df = combined(documents)
    return made(value, seeds if about["n_seeds"] > 1 else [], [(error**2, df)] if about["n_documents"] else [], **about)


def middle_l0(table: pd.DataFrame) -> float | None:
    """The L0 at which costs are compared unless told otherwise: of the powers of two that the most fronts reach, the middle one."""
    done = table[finished(table) & (table["l0"] > 0).fillna(False).to_numpy()]
    if done.empty:
        return None
    spans = done.groupby(["comparison_hash", "architecture"])["l0"].agg(["min", "max"])
    candidates = [2.0**power for power in range(17)]
    reached = np.array([int(((spans["min"] <= l0) & (spans["max"] >= l0)).sum()) for l0 in candidates])
    best = [l0 for l0, number in zip(candidates, reached, strict=True) if number == reached.max()]
    return best[len(best) // 2] if reached.max() else None
