"""Records -> one pandas table with a row per run: the only input of fronts, plots and reports.

Choices worth knowing:
- A metric that a run does not have is NaN in the table and empty in the CSV. Counts are nullable integers.
- Labels, units and directions of the metrics travel with the table in `table.attrs["metrics"]`; Parquet keeps them, CSV cannot.
- `comparison_hash` says which runs may share a front: same held-out text, width and training tokens. `setting_hash` says
  which runs are repeats of one another and differ in nothing but the seed and `data_seed`, the order of the tokens: a hash of the
  config, because a coefficient that was adjusted in training differs by seed.
- `sparsity_value` is the coefficient at the end of training. Where an L0 was asked for, that one was found for the run, and
  `l0_error` is held-out `l0` / `target_l0` - 1; both are NaN where none was asked for.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.columns import COLUMNS, ENDING, INTEGERS, OF_A_REPEAT, OF_A_SETTING, PROVENANCE, TEXTS
from analysis.definitions import asked_rates
from analysis.inputs import check_columns
from analysis.results import StoredRun, StoredSweep, read_sweeps
from analysis.rows import comparison_hashes, row_of
from analysis.variants import variants
from sae_core.errors import ConfigError, border
from sae_core.files import write_text, written_whole
from sae_core.records import MetricSpec
from sae_core.validation import at

STATUSES = ("finished", "trained", "pruned", "failed", "missing")
"""What can have become of a run, best first. Only a finished one has metrics; a pruned one was stopped early, on purpose."""

METRICS, COMPARISONS, LEARNING_RATES = "metrics", "comparisons", "learning_rates"
"""Keys of `table.attrs`: metric -> spec; comparison hash -> config of its activations; sweep -> architecture -> rates asked for."""


def load_table(results: Path | Sequence[Path]) -> pd.DataFrame:
    """One row per run of one sweep directory or several, sorted by architecture, target L0 or else sparsity value, seed and run id.

    A run that `sweep.json` asks for and that left no record has status "missing". A run that several sweeps share is one
    row: the finished one, or else that of the first sweep given.

    Raises:
        ConfigError: a directory is not a sweep's, or holds no run at all.
    """
    return table_of(read_sweeps(results))


def table_of(sweeps: Sequence[StoredSweep]) -> pd.DataFrame:
    """`load_table` for sweeps that were already read."""
    runs = [run for sweep in sweeps for run in sweep.runs]
    if not runs:
        raise ConfigError(f"results must hold at least one run, but got {[str(s.directory) for s in sweeps]}. Run the sweep first.")
    rows = [row_of(run) for run in runs]
    comparisons = comparison_hashes(runs)
    for row, comparison, variant in zip(rows, comparisons, variants(runs, comparisons), strict=True):
        row |= {"comparison_hash": comparison, "variant": variant}
    table = pd.DataFrame(rows)
    table = table.assign(_rank=table["status"].map(STATUSES.index)).sort_values("_rank", kind="stable")
    table = table.drop_duplicates("run_id").drop(columns="_rank")
    table = _typed(table.reindex(columns=_column_order(table, runs)))
    table["l0_error"] = table["l0"] / table["target_l0"] - 1
    level = table["target_l0"].fillna(table["sparsity_value"])  # a coefficient that was found differs by seed
    table = table.assign(_level=level).sort_values(["architecture", "_level", "seed", "run_id"], kind="stable", ignore_index=True)
    table = table.drop(columns="_level")
    table.attrs[METRICS] = _Shared({name: dataclasses.asdict(spec) for name, spec in _merge_specs(runs).items()})
    table.attrs[COMPARISONS] = _Shared(_configs(runs, comparisons))
    asked = {sweep.directory.resolve().name: asked_rates(sweep.definitions) for sweep in sweeps}
    table.attrs[LEARNING_RATES] = _Shared(
        {name: {key: dataclasses.asdict(rates) for key, rates in per_architecture.items()} for name, per_architecture in asked.items()}
    )
    return table


class _Shared(dict[str, Any]):
    """A dict that every table made of a table shares with it: pandas copies attributes deeply, at every step."""

    def __deepcopy__(self, memo: object) -> "_Shared":
        return self


def _configs(runs: Sequence[StoredRun], comparisons: Sequence[str]) -> dict[str, Any]:
    """Comparison hash -> what decides it in the config of one of its runs, and the sweep of that run."""
    configs: dict[str, Any] = {}
    for run, comparison in zip(runs, comparisons, strict=True):
        if comparison not in configs:
            activations = run.config.get("activations") or {}
            configs[comparison] = {"sweep": run.sweep, "d_sae": at(run.config, "sae.d_sae"), "activations": activations}
    return configs


def metric_specs(results: Path | Sequence[Path]) -> dict[str, MetricSpec]:
    """Label, unit and direction of every metric, from the records.

    Raises:
        ConfigError: two records disagree about which way is better.
    """
    return _merge_specs([run for sweep in read_sweeps(results) for run in sweep.runs])


def specs_of(table: pd.DataFrame) -> dict[str, MetricSpec]:
    """The specs that `load_table` left in the table; empty where the table came from a CSV file."""
    return {name: MetricSpec(**spec) for name, spec in table.attrs.get(METRICS, {}).items()}


def orientation(table: pd.DataFrame, column: str, direction: str | None = None) -> float:
    """What to multiply a metric with so that smaller is better: 1 or -1. The one place that knows about directions.

    Args:
        direction: "min" or "max"; by default what the table's own specs say.

    Raises:
        ConfigError: the direction is unknown, or the metric has none.
    """
    if direction is None:
        direction = table.attrs.get(METRICS, {}).get(column, {}).get("direction")
    if direction not in ("min", "max"):
        raise ConfigError(
            f'`direction` must be "min" or "max" for a metric that is ranked, but got {direction!r} for column {column!r}. '
            "Pass `direction`, or use a table from `load_table` or Parquet."
        )
    return -1.0 if direction == "max" else 1.0


def by_comparison(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """`comparison_hash` -> the runs that may share a front, narrow SAEs before wide ones and short runs before long ones."""
    groups = {str(name): runs for name, runs in table.groupby("comparison_hash", sort=False)}
    sizes = {name: tuple(runs[["d_sae", "train_tokens"]].max().fillna(0)) for name, runs in groups.items()}
    return {name: groups[name] for name in sorted(groups, key=sizes.__getitem__)}


def over_seeds(table: pd.DataFrame) -> pd.DataFrame:
    """Means over repeats, of seeds and of orders of the tokens: one row per setting, from its finished runs, with `n_seeds` (how many
    repeats) and the tuple `run_ids`.

    Raises:
        ConfigError: a column that tells settings apart is missing.
    """
    check_columns(table, ["status", "setting_hash", "run_id"])
    finished = table[table["status"] == "finished"]
    groups = finished.groupby("setting_hash", sort=False)
    columns = [name for name in OF_A_SETTING if name in table]
    same = groups[columns].first()
    means = groups.mean(numeric_only=True).drop(columns=[*OF_A_REPEAT, *columns], errors="ignore")
    runs = groups["run_id"].agg(n_seeds="size", run_ids=tuple)
    settings = same.join([means, runs]).reset_index()
    settings.attrs = dict(table.attrs)
    return settings


def write_table(table: pd.DataFrame, directory: Path) -> None:
    """Write `table.csv` and `table.parquet`, each atomically: a reader sees the old file or the new one.

    Raises:
        ConfigError: they cannot be written there, or the table cannot be written.
    """
    directory = Path(directory)
    check_columns(table, [])
    with border(
        f"a table must be one that CSV and Parquet can hold, in a directory that can be written to, but got {str(directory)!r}",
        "Choose another directory, or correct the table.",
    ):
        write_text(directory / "table.csv", table.to_csv(index=False, lineterminator="\n"))
        with written_whole(directory / "table.parquet") as temporary:
            table.to_parquet(temporary, index=False)


def _column_order(table: pd.DataFrame, runs: Sequence[StoredRun]) -> list[str]:
    found = {name for run in runs if run.record for name in run.record.metrics}
    further = sorted(found - set(COLUMNS))
    versions = sorted(name for name in table.columns if name.startswith("version_"))
    return [*COLUMNS, *further, *PROVENANCE, *versions, *ENDING]


def _typed(table: pd.DataFrame) -> pd.DataFrame:
    texts = {*TEXTS, *(name for name in table.columns if name.startswith("version_"))}
    types = {name: "Int64" if name in INTEGERS else "str" if name in texts else "float64" for name in table.columns}
    return table.astype(types)


def _merge_specs(runs: Sequence[StoredRun]) -> dict[str, MetricSpec]:
    specs: dict[str, MetricSpec] = {}
    for run in runs:
        for raw in run.record.metric_specs if run.record else ():
            spec = _spec(raw)
            known = specs.setdefault(spec.name, spec)
            if known.direction != spec.direction:
                raise ConfigError(
                    f"records must agree about the direction of a metric, but got {known.direction!r} and {spec.direction!r} for "
                    f"{spec.name!r} (run {run.run_id}). Report sweeps made by different versions separately."
                )
    return specs


def _spec(raw: Mapping[str, Any]) -> MetricSpec:
    return MetricSpec(name=raw["name"], label=raw["label"], unit=raw["unit"], direction=raw["direction"])
