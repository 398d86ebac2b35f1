"""Sweeps and tables as a command line names them: "results/demo", "results/demo:topk", "published.csv", and what is compared in them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path

import pandas as pd

from analysis import words
from analysis.estimates import Comparison
from analysis.foreign import read_table
from analysis.foreign.known import METRICS as KNOWN
from analysis.statistics.comparison import compare
from analysis.statistics.pooling import KEPT_APART
from analysis.table import COMPARISONS, DIRECTORIES, METRICS, NEEDED, as_loaded, finished, load_table
from sae_core.errors import ConfigError, UnknownNameError, border
from sae_core.layout import SweepPaths

ARM = "arm"
"""Column of what is compared, where rows of several sources are put together."""
_DIFFERENCES = {"d_sae": "d_sae", "train_tokens": "training tokens", "dataset": "dataset", "batch_size": "batch size"}
"""Columns in which arms may differ, and a reader should know."""
_DIFFER = "They differ in"
_SUFFIXES = (".csv", ".tsv", ".parquet", ".json", ".gz")


@dataclass(frozen=True, slots=True)
class Source:
    """A sweep or a table, or one architecture of it."""

    path: Path
    architecture: str | None

    @classmethod
    def of(cls, text: str) -> "Source":
        """From "PATH" or "PATH:ARCHITECTURE"."""
        path, colon, architecture = text.rpartition(":")
        return cls(Path(path), architecture) if colon and path and not Path(text).exists() else cls(Path(text), None)

    @property
    def name(self) -> str:
        """For readers."""
        return self.path.name if self.path.suffix in _SUFFIXES else self.path.resolve().name

    def rows(self, columns: Mapping[str, str]) -> pd.DataFrame:
        """Its rows.

        Args:
            columns: of a table that is not ours: our column -> theirs.
        """
        table = _read(self.path, columns)
        if self.architecture is None:
            return table
        known = [str(name) for name in table["architecture"].dropna().unique()]
        if self.architecture not in known:
            raise UnknownNameError.of(f"an architecture of {str(self.path)!r}", self.architecture, known)
        rows = table[table["architecture"] == self.architecture]
        rows.attrs = dict(table.attrs)
        return rows


def compare_sources(
    texts: Sequence[str], *, metric: str = "fvu", l0s: Sequence[float] | None = None, equal_tries: bool = False, columns: Mapping[str, str]
) -> Comparison:
    """Compare architectures of one source, or one architecture, or each that they share, of several.

    Raises:
        ConfigError: a source cannot be read, there is nothing to compare, or no two of the arms were measured on the same text.
    """
    sources = [Source.of(text) for text in texts]
    if len({source.path for source in sources}) == 1:
        compared = compare(_same_path(sources, columns), metric=metric, l0s=l0s, equal_tries=equal_tries)
    else:
        table, pairs = _several(sources, columns)
        widths = table.groupby("source")["comparison_hash"].nunique().max()
        same = ("comparison_hash",) if widths > 1 else ()
        compared = compare(table, metric=metric, l0s=l0s, by=ARM, same=same, pairs=pairs, equal_tries=equal_tries)
        unknown = "eval_hash" not in table or bool(table["eval_hash"].isna().all())
        text = ["Nothing says whether they were measured on the same text."] if unknown else []
        compared = replace(compared, notes=(*compared.notes, *text, *_differences(table)))
    if columns and all(_is_sweep(source.path, columns) for source in sources):
        given = ", ".join(f"{ours}={theirs}" for ours, theirs in columns.items())
        raise ConfigError(f"columns are mapped of tables that are not ours, but got {given} for sweeps of ours. Leave it out.")
    names = list(dict.fromkeys(arm.name for arm in compared.arms))
    if len(names) < 2:
        raise ConfigError(f"there must be two things to compare that have finished runs with {metric}, but got {names}. Name others.")
    if not compared.pairs:
        why = [note for note in compared.notes if note.startswith((KEPT_APART, _DIFFER))]
        raise ConfigError(f"what is compared must have been measured alike and on the same text, but got {names}. {' '.join(why)}".rstrip())
    if l0s and not any(one for pair in compared.pairs for one in pair.at.values()):
        raise ConfigError(_nothing_reached(compared))
    return compared


def _nothing_reached(compared: Comparison) -> str:
    """Which L0s there are instead."""
    windows = [pair.window for pair in compared.pairs if pair.window]
    known = f"fronts overlap from L0 {min(low for low, _ in windows):.3g} to {max(high for _, high in windows):.3g}" if windows else ""
    asked = " and ".join(f"{l0:g}" for l0 in compared.l0s)
    remedy = "Ask for an L0 between, or leave it out." if windows else "Leave it out."
    return f"two fronts must reach an L0 to be compared there, but got {asked}, and {known or 'no two fronts overlap'}. {remedy}"


def _same_path(sources: Sequence[Source], columns: Mapping[str, str]) -> pd.DataFrame:
    """Rows of one source: all of it, or the architectures that are named."""
    if all(source.architecture is None for source in sources):
        return sources[0].rows(columns)
    parts = [source.rows(columns) for source in dict.fromkeys(sources)]
    rows = pd.concat(parts).drop_duplicates("run_id").reset_index(drop=True)
    rows.attrs = dict(parts[0].attrs)
    return rows


def _several(sources: Sequence[Source], columns: Mapping[str, str]) -> tuple[pd.DataFrame, list[tuple[str, str]]]:
    """Rows of several sources with a column ARM, and which arms to compare: every two, or those of one architecture."""
    parts, names = [], _distinct([source.name for source in sources])
    for number, (source, name) in enumerate(zip(sources, names, strict=True)):
        rows = source.rows(columns)
        arms = [f"{words.label(str(architecture))} of {name}" for architecture in rows["architecture"]]
        # The same run may lie in two sweeps: it is two rows here, with a directory each.
        part = rows.assign(**{ARM: arms, "source": name, "run_id": [f"{number}/{run_id}" for run_id in rows["run_id"]]})
        part.attrs = {**rows.attrs, DIRECTORIES: {f"{number}/{run_id}": path for run_id, path in rows.attrs.get(DIRECTORIES, {}).items()}}
        parts.append(part)
    table = pd.concat([_bare(part) for part in parts], ignore_index=True)
    for key in (METRICS, COMPARISONS, DIRECTORIES):
        table.attrs[key] = {name: value for part in parts for name, value in part.attrs.get(key, {}).items()}
    of_source = [list(dict.fromkeys(part[ARM][finished(part)])) for part in parts]
    if all(len(arms) == 1 for arms in of_source):
        pairs = list(combinations([arms[0] for arms in of_source], 2))
    else:
        architectures = [dict(zip(part["architecture"], part[ARM], strict=True)) for part in parts]
        pairs = [(a[name], b[name]) for a, b in combinations(architectures, 2) for name in words.in_order(map(str, a)) if name in b]
    if not pairs:
        raise ConfigError(
            f"sources must share an architecture, or each must be one, but got {names}. Name one of each, e.g. {sources[0].path}:topk."
        )
    return table, pairs


def _bare(table: pd.DataFrame) -> pd.DataFrame:
    bare = table.copy(deep=False)
    bare.attrs = {}
    return bare


def _distinct(names: Sequence[str]) -> list[str]:
    """The same names, numbered where one is there twice."""
    return [f"{name} ({names[: index + 1].count(name)})" if names.count(name) > 1 else name for index, name in enumerate(names)]


def _is_sweep(path: Path, columns: Mapping[str, str]) -> bool:
    return SweepPaths(path).facts.is_file() or SweepPaths(path).runs.is_dir() or (path.is_dir() and not columns)


def _read(path: Path, columns: Mapping[str, str]) -> pd.DataFrame:
    if _is_sweep(path, columns):
        return load_table(path)
    if not path.exists():
        raise ConfigError(f"a sweep's directory or a table must exist, but got {str(path)!r}. Correct its path.")
    if columns:
        return read_table(path, columns)
    with border(f"a table must be readable, but got {str(path)!r}", "Give a CSV or Parquet file, or a sweep's directory."):
        table = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    if table.empty:
        raise ConfigError(f"a table must have rows, but got {str(path)!r} with none. Name another file.")
    if not set(NEEDED) <= set(table.columns):
        raise ConfigError(
            f"columns of a table that is not ours must be mapped, but got {str(path)!r} with {list(map(str, table.columns))[:30]}. "
            "Add e.g. --columns l0=their_l0 --columns fvu=their_fvu --columns architecture=trainer."
        )
    loaded = as_loaded(table)
    loaded.attrs = {METRICS: {name: asdict(spec) for name, spec in KNOWN.items()}, **table.attrs}
    return loaded


def _differences(table: pd.DataFrame) -> list[str]:
    """Columns in which arms differ, as sentences."""
    return [
        f"{_DIFFER} {name}: {words.listed(str(value) for value in sorted(table[column].dropna().unique()))}."
        for column, name in _DIFFERENCES.items()
        if column in table and table[column].nunique() > 1
    ]
