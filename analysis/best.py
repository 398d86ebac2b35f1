"""The run to use at a given L0: which it is, how good it is and how sure that is, where it lies, and how to load it.

Choices worth knowing:
- A setting can be chosen when its mean L0 is within END_TOLERANCE of the one asked for and it is on its architecture's front. Architectures
  (and widths, token budgets) are ranked by their front read at that very L0, so that none wins by being a little denser; within one, the
  setting nearest in ln L0 is taken (of several within 5 %, as of several learning rates, the best), and of its repeats the best one.
- The best of several seeds looks better than the recipe is. So numbers come twice: of this run, with an interval over held-out documents,
  and of its setting, over seeds and documents.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis import words
from analysis.estimates import Estimate
from analysis.interpolation import END_TOLERANCE
from analysis.pareto import settings_with_front
from analysis.statistics.choosing import CLOSE
from analysis.statistics.matched import at_matched_l0, label_of, of_runs, settings_of
from analysis.table import DIRECTORIES, by_comparison, check_columns, finished, load_table, orientation
from sae_core.errors import ConfigError, UnknownNameError
from sae_core.layout import CFG, RunPaths

SHOWN = ("l0", "fvu", "delta_ce", "ce_loss_recovered", "kl", "dead_fraction")
"""Metrics that are shown beside the one that was asked for, where the run has them."""
_MOST_RIVALS = 12
IN_SAELENS = frozenset(
    {
        *("standard", "gated", "jumprelu", "topk", "abstopk", "matching_pursuit"),
        *("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder"),
    }
)
"""What `cfg.json` calls architectures that SAELens loads."""


@dataclass(frozen=True, slots=True)
class Best:
    """The run, and what is known about it."""

    run_id: str
    architecture: str
    setting: str
    """E.g. "k=32"."""
    seed: int | None
    comparison: str
    """What its rivals have in common with it, e.g. "demo · blocks.2.hook_resid_post · d_sae 1024"."""
    metric: str
    labels: dict[str, str]
    """Of the metrics that are shown, e.g. "FVU"."""
    l0: float
    """That was asked for."""
    of_run: dict[str, Estimate]
    """Metric -> value of this run, with an interval over held-out documents where there are sums of them."""
    of_setting: dict[str, Estimate]
    """Metric -> mean over the repeats of its setting, over seeds and documents."""
    rivals: dict[str, Estimate]
    """Architecture, with its size where there are several -> the metric on its front at this L0, best first."""
    directory: Path | None
    """Of the run; None where the table holds no paths."""
    loading: str
    """Python that loads it; empty where there is no SAE."""


def best(
    results: "str | Path | Sequence[str | Path] | pd.DataFrame", l0: float, *, metric: str = "fvu", architecture: str | None = None
) -> Best:
    """The run to use at an L0.

    Args:
        results: directories of sweeps, or a table (or rows of one) from `load_table`.
        l0: active latents per token.
        architecture: take only runs of this one.

    Raises:
        ConfigError: no run is near this L0, the runs were measured on different texts, or a column is missing.
    """
    table = results if isinstance(results, pd.DataFrame) else load_table(results)  # type: ignore[arg-type]
    check_columns(table, ["architecture", "comparison_hash", "setting_hash", "l0"])
    sign = orientation(table, metric)
    check_columns(table, [metric])
    if not (np.isfinite(l0) and l0 > 0):
        raise ConfigError(f"`l0` must be a number above 0, but got {l0!r}. Give active latents per token, e.g. 32.")
    runs = table[finished(table) & table[metric].notna().to_numpy() & (table["l0"] > 0).fillna(False).to_numpy()]
    if architecture is not None:
        if architecture not in set(runs["architecture"]):
            raise UnknownNameError.of("an architecture with finished runs", architecture, map(str, set(runs["architecture"].dropna())))
        runs = runs[runs["architecture"] == architecture]
    if len(texts := texts_of(runs)) > 1:
        raise ConfigError(
            f"runs must be measured on one held-out text to be ranked, but got {len(texts)}: {', '.join(map(words.shortened, texts))}. "
            "Give one results directory; in Python, rows of one `eval_hash`."
        )
    candidates = [found for name, own in by_comparison(runs).items() for found in _candidates(name, own, metric, l0, sign)]
    if not candidates:
        raise ConfigError(_nothing_near(runs, l0))
    return _described(table, runs, min(candidates, key=lambda found: sign * found.value.value), metric, l0, sign)


def texts_of(runs: pd.DataFrame) -> list[str]:
    """The held-out texts of some runs."""
    return sorted(map(str, runs["eval_hash"].dropna().unique())) if "eval_hash" in runs else []


def lines_of(found: Best) -> list[str]:
    """For the terminal: the run, its numbers, its rivals, and how to load it."""
    seed = f", seed {found.seed}" if found.seed is not None else ""
    label = found.labels[found.metric]
    lines = [f"Best {label} at L0 {found.l0:g}: {found.run_id}", f"  {words.label(found.architecture)}, {found.setting}{seed}", ""]
    several = {name: own for name, own in found.of_setting.items() if own.n_seeds > 1}
    n_seeds = max((own.n_seeds for own in several.values()), default=1)
    width = max(map(len, found.labels.values())) + 2
    lines.append(f"  {'':<{width}}{'this run':<26}{f'mean of {n_seeds} repeats' if several else ''}".rstrip())
    for name, own in found.of_run.items():
        mean = words.interval(several[name]) if name in several else ""
        lines.append(f"  {found.labels[name]:<{width}}{words.interval(own):<26}{mean}".rstrip())
    for what, one in (("this run", found.of_run.get(found.metric)), ("the mean", several.get(found.metric))):
        lines += [f"  [95 %] of {what}: {one.covers}"] if one and one.low is not None else []
    if len(found.rivals) > 1:
        lines += ["", f"  {label} on each front at L0 {found.l0:g}:"]
        width = max(map(len, found.rivals))
        lines += [f"    {name:<{width}}  {words.interval(own)}" for name, own in list(found.rivals.items())[:_MOST_RIVALS]]
        lines += [f"    ... and {len(found.rivals) - _MOST_RIVALS} more"] if len(found.rivals) > _MOST_RIVALS else []
    lines += ["", f"  {found.directory}"] if found.directory else []
    return [*lines, "", *(f"  {line}" for line in found.loading.splitlines())] if found.loading else lines


@dataclass(frozen=True, slots=True)
class _Candidate:
    comparison: str
    architecture: str
    setting_hash: str
    l0: float
    value: Estimate
    """On the front at the L0 asked for, or of the setting itself where the front cannot be read there."""


def _candidates(comparison: str, runs: pd.DataFrame, metric: str, l0: float, sign: float) -> list[_Candidate]:
    """Of each architecture: the setting on its front that is nearest to the L0; of several about as near, the best."""
    settings = settings_with_front(runs, metric)
    distance = (np.log(settings["l0"]) - np.log(l0)).abs()
    near = settings[settings["on_front"] & (distance <= np.log1p(END_TOLERANCE))].assign(distance=distance)
    if near.empty:
        return []
    on_fronts, own = at_matched_l0(runs, metric, [l0]), settings_of(runs, metric)
    nearest = near.groupby("architecture")["distance"].transform("min")
    alike = near[near["distance"] <= nearest + CLOSE].assign(rank=sign * near[metric])
    chosen = alike.sort_values(["rank", "distance"], kind="stable").groupby("architecture", sort=False).head(1)
    return [
        _Candidate(
            comparison,
            row["architecture"],
            row["setting_hash"],
            row["l0"],
            on_fronts.get(row["architecture"], [None])[0] or own[row["setting_hash"]],
        )
        for row in chosen.to_dict("records")
    ]


def _rivals(runs: pd.DataFrame, names: Mapping[str, words.Title], metric: str, l0: float, sign: float) -> dict[str, Estimate]:
    """Every front that reaches the L0, best first."""
    comparisons, found = by_comparison(runs), {}
    for comparison, own in comparisons.items():
        for architecture, (value,) in at_matched_l0(own, metric, [l0]).items():
            if value is not None:
                size = names[comparison].short if len(comparisons) > 1 else ""
                found[", ".join(part for part in (words.label(architecture), size) if part)] = value
    return dict(sorted(found.items(), key=lambda item: sign * item[1].value))


def _described(table: pd.DataFrame, runs: pd.DataFrame, first: _Candidate, metric: str, l0: float, sign: float) -> Best:
    rows = table[finished(table) & (table["comparison_hash"] == first.comparison).to_numpy()]
    repeats = rows[rows["setting_hash"] == first.setting_hash]
    run = repeats.iloc[int(np.argmin(sign * repeats[metric].to_numpy(dtype=float)))]
    names = [name for name in dict.fromkeys(["l0", metric, *SHOWN]) if name in table and pd.notna(run[name])]
    alike = rows[rows["architecture"] == first.architecture]
    directory = table.attrs.get(DIRECTORIES, {}).get(run["run_id"])
    titles = words.titles(table)
    return Best(
        run_id=str(run["run_id"]),
        architecture=str(run["architecture"]),
        setting=words.setting(run, with_lr=alike["lr"].nunique() > 1),
        seed=None if pd.isna(run["seed"]) else int(run["seed"]),
        comparison=titles[first.comparison].full,
        metric=metric,
        labels={name: label_of(table, name) for name in names},
        l0=float(l0),
        of_run={name: of_runs(repeats, name)[str(run["run_id"])] for name in names},
        of_setting={name: settings_of(alike, name)[first.setting_hash] for name in names},
        rivals=_rivals(runs, titles, metric, l0, sign),
        directory=None if directory is None else Path(directory),
        loading="" if directory is None else loading_of(RunPaths(Path(directory)).sae),
    )


def loading_of(sae: Path) -> str:
    """Python that loads an exported SAE."""
    try:
        cfg: dict[str, Any] = json.loads((sae / CFG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    ours = f'from sae_core import SparseAutoencoder\nsae = SparseAutoencoder.from_pretrained("{sae}")'
    if cfg.get("architecture") not in IN_SAELENS:
        return ours
    return f'{ours}\n\nfrom sae_lens import SAE  # or with SAELens\nsae = SAE.load_from_disk("{sae}")'


def _nothing_near(runs: pd.DataFrame, l0: float) -> str:
    l0s = np.sort(runs["l0"].dropna().to_numpy(dtype=float))
    nearest = [*l0s[l0s < l0][-1:], *l0s[l0s > l0][:1]]
    known = f"the nearest have L0 {' and '.join(f'{value:.3g}' for value in nearest)}" if nearest else "no run is finished"
    return (
        f"a run on a front must be within {100 * END_TOLERANCE:g} % of the L0, but got {l0:g}, and {known}. "
        "Ask for one that was trained, or add it to the sweep."
    )
