"""What hyperparameters did: which mattered, the best learning rate per architecture and L0, and how a search got on.

FVU falls with L0 whatever else one does. So what a hyperparameter is judged by is the **excess** of a run: how far its metric lies above
the lowest front of its architecture at the run's own L0, as a difference of logarithms (0.05 is 5 % worse). Formulas: docs/formulas.md
(Hyperparameters).
"""

import importlib.util
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.learning_rates import MISSED, requested_l0
from analysis.pareto import L0_WINDOW, hypervolume, interpolate_at_l0
from analysis.table import LEARNING_RATES, check_columns, evenly, finished, numbers, orientation
from sae_core.errors import ConfigError

ENOUGH_RUNS = 10
"""Finished runs of an architecture from which on importance says something."""
N_TREES, DEPTH = 16, 6
"""Of the forest: more change shares by a few percent and take seconds."""
ENOUGH_RATES = 3
"""Learning rates that a curvature takes."""
MOST_PLACES = 100
"""Hypervolumes along a search."""
_PART = re.compile(r"([^=,\s]+)=([^,]*)")


@dataclass(frozen=True, slots=True)
class BestRate:
    """A parabola of excess over ln lr, for one architecture and requested L0."""

    architecture: str
    l0: float
    rate: float
    """Its vertex, or the best rate that was tried where that is at an end or the parabola opens downwards."""
    curvature: float
    """Second derivative of ln y by ln lr: 0.5 means that half or twice the best rate costs 0.25 * ln(2)^2, 12 %."""
    within: tuple[float, float]
    """Rates that cost 1 % at most, by the parabola, of those tried."""
    at_end: bool
    """Whether the best rate is the lowest or the highest that was tried."""
    tried: tuple[tuple[float, float], ...]
    """(lr, excess) of each, means over seeds."""


def excess(table: pd.DataFrame, metric: str = "fvu") -> "pd.Series[float]":
    """ln of the metric of each run, less that of its architecture's front at the run's own L0; NaN where that cannot be read.

    Raises:
        ConfigError: the metric rises where SAEs get better, or a column is missing.
    """
    check_columns(table, ["architecture", "comparison_hash", "l0", metric])
    if orientation(table, metric) < 0:
        raise ConfigError(f"excess must be of a metric that falls, but got {metric!r}. Take fvu, delta_ce or mse.")
    found = pd.Series(np.nan, index=table.index)
    known = finished(table) & (np.nan_to_num(numbers(table, metric)) > 0) & (np.nan_to_num(numbers(table, "l0")) > 0)
    for _, rows in table[known].groupby(["comparison_hash", "architecture"]):
        l0s = rows["l0"].to_numpy(dtype=float)
        front = interpolate_at_l0(rows, l0s.tolist(), metric).iloc[0].to_numpy(dtype=float)
        found.loc[rows.index] = np.maximum(np.log(rows[metric].to_numpy(dtype=float)) - np.log(front), 0.0)
    return found


def hyperparameters(table: pd.DataFrame) -> pd.DataFrame:
    """What runs differ in, beside sparsity and seed: `lr` and the fields of `variant`; numbers where all are, else text."""
    check_columns(table, ["lr", "variant"])
    fields = pd.DataFrame([dict(_PART.findall(text)) for text in table["variant"].fillna("")], index=table.index)
    found = pd.concat([table[["lr"]], fields], axis=1)
    for name in fields:
        values = pd.to_numeric(found[name], errors="coerce")
        found[name] = values if values.notna().equals(found[name].notna()) else found[name].astype("str")
    return found.loc[:, [found[name].nunique() > 1 for name in found]]


def importance(table: pd.DataFrame, metric: str = "fvu") -> pd.DataFrame:
    """How much of the variance of the excess each hyperparameter explains, by functional ANOVA of a random forest (Hutter et al. 2014).

    L0 takes part, since the best of another hyperparameter may depend on it.

    Returns:
        A row per architecture, a column per hyperparameter that varies and L0; shares that sum to 1, NaN where a hyperparameter does not
        vary. Architectures with fewer than ENOUGH_RUNS runs, or one hyperparameter, have no row.

    Raises:
        ConfigError: scikit-learn is not installed.
    """
    if not importlib.util.find_spec("sklearn"):
        raise ConfigError("importance must have scikit-learn for its forest, but got none. Install it: pip install 'sae-sweep[probes]'.")
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    above, rows = excess(table, metric), {}
    for architecture, runs in table[above.notna()].groupby("architecture"):
        varied = hyperparameters(runs).dropna(axis=1)
        if len(runs) < ENOUGH_RUNS or varied.shape[1] < 2:
            continue
        varied = varied.assign(L0=runs["l0"])
        distributions = {str(name): _distribution(varied[name]) for name in varied}
        study = optuna.study.create_study(storage=optuna.storages.InMemoryStorage(), study_name=str(architecture))
        for row, value in zip(varied.to_dict("records"), above[runs.index].tolist(), strict=True):
            params = {str(name): own for name, own in row.items()}
            study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, value=value))
        forest = optuna.importance.FanovaImportanceEvaluator(n_trees=N_TREES, max_depth=DEPTH, seed=0)
        rows[str(architecture)] = optuna.importance.get_param_importances(study, evaluator=forest)
    return pd.DataFrame.from_dict(rows, orient="index", dtype=float)


def best_rates(table: pd.DataFrame, metric: str = "fvu") -> list[BestRate]:
    """The best learning rate of each architecture at each requested L0 with ENOUGH_RATES rates, and how much the rate matters there."""
    above = excess(table, metric)
    levels = requested_l0(table)
    hits = table[above.notna() & ((table["l0"] / levels - 1).abs() <= MISSED)].assign(_level=levels, _excess=above)
    found = []
    for (architecture, level), rows in hits.groupby(["architecture", "_level"]):
        means = rows.groupby("lr")["_excess"].mean()
        if len(means) >= ENOUGH_RATES:
            found.append(_parabola(str(architecture), float(str(level)), means))
    return found


def volumes_of_trials(table: pd.DataFrame, metric: str = "fvu") -> dict[str, list[tuple[int, float]]]:
    """Architecture -> (finished runs, hypervolume of their front), in the order in which they finished; at most MOST_PLACES of each."""
    check_columns(table, ["architecture", "finished_at", "l0", metric])
    known = table[finished(table) & table[metric].notna().to_numpy() & table["l0"].notna().to_numpy()]
    ordered = known.sort_values(["finished_at", "run_id"], kind="stable")
    found = {}
    for name, rows in ordered.groupby("architecture"):
        numbers = (evenly(len(rows), MOST_PLACES) + 1).tolist()
        found[str(name)] = [(number, hypervolume(rows.iloc[:number], y=metric, window=L0_WINDOW)) for number in numbers]
    return found


def is_searched(table: pd.DataFrame) -> bool:
    """Whether the definitions of the table's sweeps let a search take any learning rate of a range."""
    sweeps = table.attrs.get(LEARNING_RATES, {})
    return any(span.get("searched") for sweep in set(table["sweep"].dropna()) for span in sweeps.get(sweep, {}).values())


def _distribution(values: "pd.Series[float]") -> Any:
    """Of optuna."""
    import optuna

    if not pd.api.types.is_numeric_dtype(values):
        return optuna.distributions.CategoricalDistribution(sorted(map(str, values.unique())))
    low, high = float(values.min()), float(values.max())
    return optuna.distributions.FloatDistribution(low, high, log=low > 0)


def _parabola(architecture: str, l0: float, means: "pd.Series[float]") -> BestRate:
    rates, values = means.index.to_numpy(dtype=float), means.to_numpy(dtype=float)
    x = np.log(rates)
    second, first, _ = np.polyfit(x, values, 2)
    vertex = -first / (2 * second) if second > 0 else np.nan
    inside = bool(second > 0 and x[0] < vertex < x[-1])
    best = float(np.exp(vertex)) if inside else float(rates[values.argmin()])
    reach = float(np.sqrt(np.log(1.01) / second)) if second > 0 else np.inf
    low, high = max(np.log(best) - reach, x[0]), min(np.log(best) + reach, x[-1])
    tried = tuple(zip(rates.tolist(), values.tolist(), strict=True))
    return BestRate(architecture, l0, best, float(2 * second), (float(np.exp(low)), float(np.exp(high))), not inside, tried)
