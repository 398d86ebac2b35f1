"""Records -> one pandas table with a row per run, and per variant measured beside one: the only input of fronts, plots and reports.

Choices worth knowing:
- A metric that a run does not have is NaN in the table and empty in the CSV. Counts are nullable integers.
- So is a value that cannot be, such as an FVU below 0: it would be the best of all. The record keeps it, and a check reports it.
- Labels, units and directions of the metrics travel with the table in `table.attrs["metrics"]`; Parquet keeps them, CSV cannot.
- `comparison_hash` says which runs may share a front: same held-out text, width and training tokens. `setting_hash` says which runs
  are repeats of one another and differ in nothing but `seed` and `data_seed`, the order of the tokens: a hash of the config, because a
  coefficient that was adjusted in training differs by seed.
- A published SAE, which `sae-sweep evaluate` measured, has another `architecture`, "topk (published)", and no seed: it is neither a setting
  nor a repeat of the sweep's runs. The column `published` says where it came from.
- `sparsity_value` is the coefficient at the end of training. Where an L0 was requested, that one was found for the run, and `l0_error`
  is held-out `l0` / `target_l0` - 1; both are NaN where none was requested.
- The `status` of a variant is its kind, `snapshot` or `form`, so that whatever is worked out from finished runs leaves it out.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis import stability
from analysis.columns import (
    ARITHMETIC,
    COLUMNS,
    ENDING,
    INTEGERS,
    OF_A_REPEAT,
    OF_A_SETTING,
    OF_TRANSCODERS,
    PROVENANCE,
    PUBLISHED,
    TEXTS,
    VARIANT_OF,
    WIDTH_OUT,
)
from analysis.possible import impossible
from analysis.probes import probe_columns
from analysis.results import StoredRun, StoredSweep, read_sweeps, requested_rates
from analysis.rows import activations_of, comparison_hashes, row_of, variants
from sae_core.errors import ConfigError, UnknownNameError, border
from sae_core.files import write_text, written_whole
from sae_core.layout import SweepPaths
from sae_core.records import STATES, VARIANTS, MetricSpec, VariantKind
from sae_core.validation import at

METRICS, COMPARISONS, LEARNING_RATES, DIRECTORIES, IMPOSSIBLE = "metrics", "comparisons", "learning_rates", "directories", "impossible"
"""Keys of `table.attrs`: metric -> spec; comparison hash -> config of its activations; sweep -> architecture -> rates requested; run id ->
directory of the run on this machine, which files of the table leave out; run id -> metric -> value in its record that cannot be."""

NEEDED = (
    *("run_id", "architecture", "status", "sparsity_parameter", "sparsity_value", "seed", "lr", "d_in", "d_sae", "train_tokens"),
    *("l0", "fvu", "delta_ce", "ce_loss_recovered", "dead_fraction", "target_l0", "l0_error"),
    *("sweep", "variant", "setting_hash", "comparison_hash"),
)
"""Columns that summaries and findings read."""


def load_table(results: Path | Sequence[Path]) -> pd.DataFrame:
    """One row per run of one sweep directory or several, and per measured variant of a run, sorted by architecture, target L0 or else
    sparsity value, seed, run id and tokens.

    A run that `sweep.json` names and that left no record has status "missing". A run that several sweeps share is one row: the finished
    one, or else that of the first sweep given; one per held-out text where they measured it on different ones (`read_sweeps`).

    Raises:
        ConfigError: a directory is not a sweep's, or holds no run at all.
    """
    return table_of(read_sweeps(results))


def table_of(sweeps: Sequence[StoredSweep]) -> pd.DataFrame:
    """`load_table` for sweeps that were already read."""
    runs = [run for sweep in sweeps for run in sweep.runs]
    if not runs:
        raise ConfigError(f"results must hold at least one run, but got {[str(s.paths.directory) for s in sweeps]}. Run the sweep first.")
    runs += [variant for sweep in sweeps for variant in sweep.variants if variant.finished]
    comparisons = comparison_hashes(runs)
    probes, probe_specs = probe_columns(runs)
    rows = [row_of(run) | scores for run, scores in zip(runs, probes, strict=True)]
    table = pd.DataFrame(rows).assign(comparison_hash=comparisons, variant=variants(runs, comparisons))
    best = table["status"].map((*STATES, *VARIANTS).index).sort_values(kind="stable").index
    table = table.loc[best].drop_duplicates("run_id")
    directories = Shared({runs[index].run_id: str(runs[index].paths.directory) for index in table.index})
    columns = _column_order(table, runs, probe_specs)
    table = typed(table.reindex(columns=columns), columns)
    wrong = _without_impossible(table)
    table["l0_error"] = table["l0"] / table["target_l0"] - 1
    table, between_seeds = _with_stability(table, sweeps)
    run = table[VARIANT_OF].fillna(table["run_id"]) if VARIANT_OF in table else table["run_id"]
    own = table["target_l0"].fillna(table["sparsity_value"])  # a coefficient that was found differs by seed
    level = run.map(dict(zip(table["run_id"], own, strict=True))).fillna(own)  # variants stand beside their run
    order = ["architecture", "_level", "seed", "_run", "train_tokens", "run_id"]
    table = table.assign(_level=level, _run=run).sort_values(order, kind="stable", ignore_index=True)
    table = table.drop(columns=["_level", "_run"])
    specs = {**_merge_specs(runs), **between_seeds, **probe_specs}
    table.attrs[METRICS] = Shared({name: dataclasses.asdict(spec) for name, spec in specs.items()})
    table.attrs[DIRECTORIES] = directories
    table.attrs[IMPOSSIBLE] = Shared(wrong)
    pairs = list(zip(comparisons, runs, strict=True))[::-1]
    by_precedence = [pair for published in (True, False) for pair in pairs if (pair[1].published is not None) == published]
    table.attrs[COMPARISONS] = Shared(
        {
            comparison: {"sweep": run.sweep, "d_sae": at(run.config, "sae.d_sae"), "activations": activations_of(run)}
            for comparison, run in by_precedence
        }
    )
    table.attrs[LEARNING_RATES] = Shared({sweep.paths.directory.resolve().name: requested_rates(sweep.definitions) for sweep in sweeps})
    return table


def _without_impossible(table: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Make values that cannot be missing: run id -> metric -> such a value."""
    found: dict[str, dict[str, float]] = {}
    for metric, wrong in list(impossible(table)):
        for run_id, value in zip(table["run_id"][wrong], table[metric][wrong], strict=True):
            found.setdefault(str(run_id), {})[metric] = float(value)
        table.loc[wrong, metric] = np.nan
    return found


def _with_stability(table: pd.DataFrame, sweeps: Sequence[StoredSweep]) -> tuple[pd.DataFrame, dict[str, MetricSpec]]:
    """The table with the columns of seed stability, where they are known of any run, and their specs."""
    known = stability.columns_of(sweeps)
    if known.empty:
        return table, {}
    place = list(table.columns).index(PROVENANCE[0])
    for spec in reversed(stability.SPECS):
        table.insert(place, spec.name, table["run_id"].map(known[spec.name]).astype("float64"))
    return table, {spec.name: spec for spec in stability.SPECS}


class Shared(dict[str, Any]):
    """A dict that every table made of a table shares with it: pandas copies attributes deeply, at every step."""

    def __deepcopy__(self, memo: object) -> "Shared":
        return self


def metric_specs(results: Path | Sequence[Path]) -> dict[str, MetricSpec]:
    """Label, unit and direction of every metric, from the records.

    Raises:
        ConfigError: two records disagree about which way is better.
    """
    runs = [run for sweep in read_sweeps(results) for run in sweep.runs]
    return _merge_specs(runs) | probe_columns(runs)[1]


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
        specs = table.attrs.get(METRICS, {})
        direction = specs.get(column, {}).get("direction")
        ranked = [name for name, spec in specs.items() if spec["direction"] != "none" and name != "l0" and _has(table, name)]
        if direction not in ("min", "max") and ranked:
            raise UnknownNameError.of("a metric to compare by", column, ranked)
    if direction not in ("min", "max"):
        raise ConfigError(
            f'`direction` must be "min" or "max" for a metric that is ranked, but got {direction!r} for column {column!r}. '
            "Pass `direction`, or use a table from `load_table` or Parquet."
        )
    return -1.0 if direction == "max" else 1.0


def _has(table: pd.DataFrame, column: str) -> bool:
    """Whether any row has a value of it."""
    return column in table and bool(table[column].notna().any())


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
    keys = [name for name in ("setting_hash", "comparison_hash") if name in table]  # one setting may be measured on two texts
    groups = table[table["status"] == "finished"].groupby(keys, sort=False, dropna=False)
    columns = [name for name in OF_A_SETTING if name in table and name not in keys]
    means = groups.mean(numeric_only=True).drop(columns=[*OF_A_REPEAT, *columns], errors="ignore")
    settings = groups[columns].first().join([means, groups["run_id"].agg(n_seeds="size", run_ids=tuple)]).reset_index()
    settings.attrs = dict(table.attrs)
    return settings


def write_table(table: pd.DataFrame, directory: Path) -> None:
    """Write `table.csv` and `table.parquet`, each atomically: a reader sees the old file or the new one.

    Raises:
        ConfigError: they cannot be written there, or the table cannot be written.
    """
    check_columns(table, [])
    files = SweepPaths(Path(directory))
    with border(
        f"a table must be one that CSV and Parquet can hold, in a directory that can be written to, but got {str(directory)!r}",
        "Choose another directory, or correct the table.",
    ):
        write_text(files.table_csv, table.to_csv(index=False, lineterminator="\n"))
        kept = table.copy(deep=False)
        kept.attrs = {key: value for key, value in table.attrs.items() if key != DIRECTORIES}
        with written_whole(files.table_parquet) as temporary:
            kept.to_parquet(temporary, index=False)


def check_columns(table: Any, columns: Iterable[str]) -> None:
    """Make sure that `table` is one and has each of `columns` once.

    Raises:
        ConfigError: it is not, or does not.
    """
    if not isinstance(table, pd.DataFrame):
        raise ConfigError(f"a table must be a pandas DataFrame, but got {type(table).__name__}. Pass what `load_table` returns.")
    repeated = table.columns[table.columns.duplicated()]
    if len(repeated):
        raise ConfigError(f"a table must have each column once, but got {repeated[0]!r} several times. Drop the others.")
    for column in columns:
        if column not in table.columns:
            raise UnknownNameError.of("a column of the table", str(column), map(str, table.columns), "Name a column that it has.")


def numbers(table: pd.DataFrame, column: str) -> NDArray[np.float64]:
    """A column as float64, in the table's order; NaN where a value is missing or infinite.

    Raises:
        ConfigError: a value is not a number.
    """
    check_columns(table, [column])
    values = table[column] if pd.api.types.is_numeric_dtype(table[column]) else table[column].astype(object)
    with border(f"column {column!r} must hold numbers, but it holds something else", "Convert it, or leave those rows out."):
        read = pd.to_numeric(values).to_numpy(dtype=float, na_value=np.nan, copy=True)
    read[~np.isfinite(read)] = np.nan
    return read


def evenly(amount: int, most: int) -> NDArray[np.intp]:
    """At most `most` of the indices 0 ... amount - 1, both ends among them."""
    return np.unique(np.linspace(0, amount - 1, min(amount, most)).round().astype(np.intp))


def finished(table: pd.DataFrame) -> NDArray[np.bool_]:
    """Which rows are of finished runs, in the table's order; all of them where it has no `status`."""
    if "status" not in table:
        return np.ones(len(table), dtype=bool)
    return (table["status"] == "finished").fillna(False).to_numpy(dtype=bool)


def of_runs(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of runs, without those of their variants."""
    return table[~table["status"].isin(VARIANTS)]


def variants_as_runs(table: pd.DataFrame, kind: VariantKind) -> pd.DataFrame:
    """The rows of finished runs and of their variants of one kind, these as if they were finished runs, too.

    So that an SAE in several forms can be compared as separate SAEs are: `compare(variants_as_runs(table, "form"))`.
    """
    rows = table[table["status"].isin(["finished", kind])]
    return rows.assign(status="finished")


def trained_here(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of runs, without published SAEs."""
    return table[table[PUBLISHED].isna()] if PUBLISHED in table else table


def as_loaded(table: pd.DataFrame) -> pd.DataFrame:
    """A copy of a table that a user read from CSV, joined or filtered, with the types of `load_table`, numbered from 0.

    Raises:
        ConfigError: a column that summaries need is missing, repeated or of another kind.
    """
    check_columns(table, NEEDED)
    with border("a table must hold what `load_table` returns, but got another one", "Pass that table, or rows of it."):
        loaded = typed(table.reset_index(drop=True), NEEDED)
    return loaded.assign(variant=loaded["variant"].fillna(""))


def _column_order(table: pd.DataFrame, runs: Sequence[StoredRun], probes: Iterable[str]) -> list[str]:
    further = sorted({*probes, *(name for run in runs if run.record for name in run.record.metrics)} - set(COLUMNS))
    versions = sorted(name for name in table.columns if name.startswith("version_"))
    arithmetic = [name for name in ARITHMETIC if name in table and table[name].notna().any()]
    of_some = [name for name in (*OF_TRANSCODERS, WIDTH_OUT, VARIANT_OF, PUBLISHED) if _has(table, name)]
    return [*COLUMNS, *of_some, *further, *PROVENANCE, *versions, *ENDING, *arithmetic]


def typed(table: pd.DataFrame, columns: Iterable[str]) -> pd.DataFrame:
    """The table with the types that these of its columns have in every table."""
    texts = {*TEXTS, *(name for name in columns if name.startswith("version_"))}
    return table.astype({name: "Int64" if name in INTEGERS else "str" if name in texts else "float64" for name in columns})


def _merge_specs(runs: Sequence[StoredRun]) -> dict[str, MetricSpec]:
    specs: dict[str, MetricSpec] = {}
    for run in runs:
        for spec in run.record.metric_specs if run.record else ():
            before = specs.setdefault(spec.name, spec)
            if before.direction != spec.direction:
                raise ConfigError(
                    f"records must agree about the direction of a metric, but got {before.direction!r} and {spec.direction!r} for "
                    f"{spec.name!r} (run {run.run_id}). Report sweeps made by different versions separately."
                )
    return specs
