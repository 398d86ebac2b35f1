"""Published results on our axes: `read_table` turns a file of somebody else's into a table that fronts and comparisons take.

Choices worth knowing:
- Nothing is guessed. `columns` says which of their columns is which of ours; a cell that could be read in two ways is refused by name.
- What is odd stays, and the column `flags` says what: an L0 of 0, a negative explained variance, a value that was a tensor's text, an `l0`
  far from the k that was asked for, a column with one value only. A value that cannot be, such as a negative L0, gives its row the status
  "failed" with the reason in `error`: it stays visible and takes no part in fronts.
- Rows that differ in `seed` alone are repeats of one setting; without `seed`, every row is a setting of its own.
- `delta_ce` is `ce_loss_spliced` - `ce_loss_clean` where both are there and it is not. Nothing else is computed.
"""

import dataclasses
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from analysis.columns import COLUMNS, ENDING, INTEGERS, NOT_METRICS, PROVENANCE, TEXTS
from analysis.foreign.cells import NotInterpretable, number, shown, text, whole
from analysis.foreign.files import Rows, of_frame, read_rows
from analysis.foreign.known import METRICS
from analysis.foreign.oddities import flags_of, impossible_in
from analysis.foreign.saebench import metrics_in
from analysis.table import COMPARISONS, Shared, typed
from analysis.table import METRICS as SPECS
from sae_core.errors import ConfigError, UnknownNameError
from sae_core.records import MetricSpec

log = logging.getLogger(__name__)

__all__ = ["read_table"]

Direction = Literal["min", "max", "none"]
Mappings = Mapping[str, str] | Sequence[Mapping[str, str]]

FLAGS = "flags"
"""Column of what is odd about a row, in words; empty for nothing."""
_K = "k"
"""May be mapped too: `sparsity_parameter` is then "k", and this is its value."""
_OF_RUNS = {"status", "error", "l0_error", "setting_hash", "comparison_hash", "finished_at", "hardware", "eval_hardware", "launch", "sweep"}
_MAPPABLE = {*COLUMNS, *METRICS, *PROVENANCE, "variant", _K} - _OF_RUNS
_COMPARED = (
    "model",
    "hook_point",
    "dataset",
    "context_size",
    "d_in",
    "d_sae",
    "train_tokens",
    "eval_tokens",
    "eval_hash",
    "activations_hash",
)
"""Columns in which runs that share a front agree."""
_MOST_TOLD = 10


def read_table(
    path: str | Path | pd.DataFrame,
    columns: Mappings | None = None,
    *,
    constants: Mapping[str, Any] | Sequence[Mapping[str, Any]] = (),
    directions: Mapping[str, Direction] | None = None,
    rows: str | None = None,
) -> pd.DataFrame:
    """Results that others published, as a table for `pareto_front`, `hypervolume`, `interpolate_at_l0`, `compare` and the plots.

    Args:
        path: a CSV, TSV, Parquet or JSON file (`.gz` too), a directory of SAEBench's result files, or a DataFrame.
        columns: our column -> theirs, e.g. {"l0": "L0", "fvu": "nmse", "architecture": "trainer"}; a list of such mappings where a row
            holds several SAEs, one for each. SAEBench's files need none; what is given is added to what they say.
        constants: our column -> a value that holds for every row, e.g. {"architecture": "topk", "d_sae": 24576}; or one for each of
            `columns`.
        directions: metric -> "min", "max" or "none", for metrics of theirs that are none of ours. They too are named in `columns`.
        rows: of a JSON file with several lists: path of the one that holds the rows.

    Returns:
        The columns of `load_table`, missing values where the file has none, and `flags`.

    Raises:
        ConfigError: a column, a cell or the file cannot be interpreted. All cells are named at once.
    """
    source = of_frame(path) if isinstance(path, pd.DataFrame) else read_rows(Path(path).expanduser(), rows)
    name = "table" if isinstance(path, pd.DataFrame) else Path(path).name
    if not source.cells:
        raise ConfigError(f"a table must have rows, but got {name!r} with none. Name another file.")
    directions = dict(directions or {})
    saes = _mappings(source, columns, constants, directions)
    values, notes = _interpreted(source, saes, directions)
    if _K in values:
        values = values.rename(columns={_K: "sparsity_value"}).assign(sparsity_parameter="k")
    if "delta_ce" not in values and {"ce_loss_spliced", "ce_loss_clean"} <= set(values.columns):
        values["delta_ce"] = values["ce_loss_spliced"] - values["ce_loss_clean"]
    extra = metrics_in(source.columns) if source.mapping else []
    specs = {metric: METRICS[metric] for metric in METRICS if metric in values}
    for metric in [*directions, *extra]:
        if metric in values:
            spec = specs.get(metric) or MetricSpec(metric, metric, "", "none")
            specs[metric] = dataclasses.replace(spec, direction=directions.get(metric, "none"))
    table = _as_ours(values, name, source, len(saes))
    impossible = impossible_in(table)
    table["error"] = table["error"].mask(impossible != "", impossible)
    table["status"] = table["status"].mask(impossible != "", "failed")
    read = {theirs for sae in saes for theirs in sae[0].values()}
    table[FLAGS] = flags_of(table, notes, list(specs), source.several, read, unasked=extra)
    table.attrs[SPECS] = Shared({metric: dataclasses.asdict(spec) for metric, spec in specs.items()})
    _say(name, table)
    return table


_Sae = tuple[dict[str, str], dict[str, Any]]
"""Of one SAE in a row: our column -> theirs, and our column -> constant."""


def _mappings(source: Rows, columns: Mappings | None, constants: Any, directions: Mapping[str, Direction]) -> list[_Sae]:
    """What is read of each SAE in a row.

    Raises:
        ConfigError: nothing is said about the columns, or something that is not so.
    """
    if columns is None and not source.mapping:
        raise ConfigError(
            f"`columns` must say which columns are ours, but got none. Map e.g. {{'l0': ...}} to one of {list(source.columns)[:30]}."
        )
    if wrong := [f"{name}: {way!r}" for name, way in directions.items() if way not in ("min", "max", "none") or name in NOT_METRICS]:
        raise ConfigError(f'`directions` must give "min", "max" or "none" for metrics, but got {wrong}. Correct them.')
    given = [columns or {}] if columns is None or isinstance(columns, Mapping) else list(columns)
    fixed = [constants] * len(given) if isinstance(constants, Mapping) else list(constants) or [{}] * len(given)
    if not given or len(fixed) != len(given):
        raise ConfigError(
            f"`constants` must be one mapping, or one for each of `columns`, but got {len(fixed)} for {len(given)}. Give as many."
        )
    known = _MAPPABLE | set(directions)
    for own in [*given, *fixed]:
        for ours in own:
            if ours not in known:
                turned = " `columns` goes from our names to those of the file: turn it round." if ours in source.columns else ""
                raise UnknownNameError.of("a column of ours", str(ours), known, f"For another metric, pass `directions`.{turned}")
    for own in given:
        for theirs in own.values():
            if theirs not in source.columns:
                raise UnknownNameError.of("a column of the file", str(theirs), map(str, source.columns))
            if not source.several.get(theirs, True):
                raise ConfigError(
                    f"a column must stand once in the file, but {theirs!r} stands several times with different cells. Rename one."
                )
    extra = {name: name for name in metrics_in(source.columns)} if source.mapping else {}
    return [({**extra, **source.mapping, **own}, dict(constant)) for own, constant in zip(given, fixed, strict=True)]


def _interpreted(source: Rows, saes: Sequence[_Sae], directions: Mapping[str, Direction]) -> tuple[pd.DataFrame, list[list[str]]]:
    """Values by our columns, a row per SAE, and what is odd about how each row was written.

    Raises:
        ConfigError: cells cannot be interpreted.
    """
    problems: list[str] = []
    values: list[dict[str, Any]] = []
    notes: list[list[str]] = []
    for place, cells in zip(source.places, source.cells, strict=True):
        for mapping, constant in saes:
            found: dict[str, Any] = {}
            odd: list[str] = []
            cells_of = [(ours, theirs, cells.get(theirs)) for ours, theirs in mapping.items() if ours not in constant]
            for ours, theirs, cell in [*cells_of, *((ours, "", cell) for ours, cell in constant.items())]:
                read = text if ours in TEXTS else whole if ours in INTEGERS else number
                try:
                    found[ours], note = read(cell)
                except NotInterpretable:
                    kind = "one text" if read is text else "a whole number" if read is whole else "a number"
                    where = f"{place}, column {theirs!r}" if theirs else "`constants`"
                    problems.append(f"{ours!r} must be {kind}, but got {shown(cell)} in {where}")
                    continue
                odd += [f"{ours} {note}"] if note else []
            values.append(found)
            notes.append(odd)
    if problems := list(dict.fromkeys(problems)):
        more = f"\n... and {len(problems) - _MOST_TOLD} more cells" if len(problems) > _MOST_TOLD else ""
        raise ConfigError(
            "\n".join(f"{problem}." for problem in problems[:_MOST_TOLD]) + f"{more}\nCorrect them in a copy, or map another column."
        )
    return pd.DataFrame(values), notes


def _as_ours(values: pd.DataFrame, name: str, source: Rows, per_row: int) -> pd.DataFrame:
    """All columns of `load_table`."""
    table = values.copy()
    index = [place if per_row == 1 else f"{place}, SAE {number}" for place in source.places for number in range(1, per_row + 1)]
    own = table["run_id"] if "run_id" in table else pd.Series(index)
    table["run_id"] = own.where(own.notna(), pd.Series(index))
    if len(repeated := table["run_id"][table["run_id"].duplicated()]):
        raise ConfigError(f"`run_id` must tell rows apart, but got {repeated.iloc[0]!r} several times. Map another column, or none.")
    columns = list(dict.fromkeys([*COLUMNS, *table.columns, *PROVENANCE, *ENDING]))
    settings = [
        column for column in table.columns if column not in METRICS and column not in ("run_id", "seed", "data_seed") and column in columns
    ]
    settings = [column for column in settings if column in COLUMNS or column == "variant"]
    keys = table[settings].astype(object).where(table[settings].notna(), None).to_dict("records")
    if "seed" in table:
        first: dict[str, str] = {}
        for key, seed, place in zip(keys, table["seed"], index, strict=True):
            if (before := first.setdefault(_hash([key, seed]), place)) != place:
                raise ConfigError(
                    f"rows with one `seed` must differ in a setting, but got {before} and {place} with {_seed_in_words(seed)} and the same "
                    "settings. Map a column that is the same for all seeds of a setting and different for other settings: as 'k', "
                    "'target_l0' or 'lr' if it is one, else as 'variant', which takes any text. Without one, do not map 'seed': each row "
                    "is then a setting of its own."
                )
    hashes = [_hash([name, key]) if "seed" in table else _hash([name, place]) for key, place in zip(keys, index, strict=True)]
    table = table.reindex(columns=columns).assign(sweep=name, status="finished", setting_hash=hashes)
    compared = table[list(_COMPARED)].astype(object).where(table[list(_COMPARED)].notna(), None)
    table["comparison_hash"] = [_hash([name, *row]) for row in compared.itertuples(index=False, name=None)]
    table = typed(table, columns)
    table["variant"] = table["variant"].fillna("")
    table["l0_error"] = table["l0"] / table["target_l0"] - 1
    table.attrs[COMPARISONS] = Shared(
        {row["comparison_hash"]: _activations(row) for row in table.drop_duplicates("comparison_hash").to_dict("records")}
    )
    return table


def _seed_in_words(seed: Any) -> str:
    return "no seed" if pd.isna(seed) else f"seed {seed:g}"


def _activations(row: Mapping[Any, Any]) -> dict[str, Any]:
    """What titles say of a comparison, in the form of a record's config."""
    value = {column: None if pd.isna(row[column]) else row[column] for column in _COMPARED}
    model = {"name": value["model"], "hook_point": value["hook_point"], "context_size": value["context_size"]}
    activations = {
        "model": model,
        "data": {"dataset": value["dataset"]},
        "train_tokens": value["train_tokens"],
        "eval_tokens": value["eval_tokens"],
    }
    return {"sweep": row["sweep"], "d_sae": value["d_sae"], "activations": activations}


def _say(name: str, table: pd.DataFrame) -> None:
    """What is odd, once."""
    flagged = table[table[FLAGS] != ""]
    if len(flagged):
        kinds = Counter(flag for flags in flagged[FLAGS] for flag in flags.split("; "))
        most = "; ".join(f"{flag} ({number})" for flag, number in kinds.most_common(_MOST_TOLD))
        log.warning("%s: %d of %d rows are flagged: %s. See the column %r.", name, len(flagged), len(table), most, FLAGS)


def _hash(content: Any) -> str:
    plain = json.dumps(content, sort_keys=True, default=lambda value: value.item() if isinstance(value, np.generic) else str(value))
    return hashlib.sha256(plain.encode()).hexdigest()[:12]
