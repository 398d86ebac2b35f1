"""What each held-out document adds to the metrics of each run: runs on the same text are compared document by document.

Shape letters: R runs, D documents, B draws of documents.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.table import DIRECTORIES, finished
from sae_core.documents import FloatArray, IntArray, Ratio, StoredDocuments, read_documents_file
from sae_core.errors import ConfigError, DamagedFileError, UnknownNameError
from sae_core.layout import RunPaths

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DocumentSums:
    """Sums over the tokens of each document, for some runs on one text. Whatever documents are drawn, a metric has a value on them."""

    run_ids: tuple[str, ...]
    documents: IntArray
    """Numbers of the documents [D], ascending."""
    n_tokens: FloatArray
    """Tokens of each that count [D]."""
    sums: Mapping[str, FloatArray]
    """Name -> sums [R, D]."""
    ratios: Mapping[str, Ratio]
    """Metric -> how it is made of `sums`."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics that all runs have."""
        return tuple(self.ratios)

    def parts(self, metric: str) -> tuple[FloatArray, FloatArray]:
        """Numerator and denominator of a metric, per run and document: each [R, D], float64.

        Raises:
            UnknownNameError: not all runs have it.
        """
        if metric not in self.ratios:
            raise UnknownNameError.of("a metric with sums per document", metric, self.ratios, "Name one of these.")
        ratio = self.ratios[metric]
        return self._total(ratio.numerator), self._total(ratio.denominator)

    def values(self, metric: str, weights: FloatArray | None = None) -> FloatArray:
        """The metric of each run on some of the documents, or on some of them several times.

        Args:
            weights: how often each document is drawn, [B, D]; None: each once.

        Returns:
            [B, R], or [R] without weights; NaN where the metric has no value on these documents.
        """
        above, below = self.parts(metric)
        drawn = np.ones((1, len(self.documents))) if weights is None else np.asarray(weights, dtype=np.float64)
        numerator, denominator = drawn @ above.T, drawn @ below.T
        found = np.full(numerator.shape, np.nan)
        np.divide(numerator, denominator, out=found, where=denominator != 0)
        found[~np.isfinite(found)] = np.nan
        return found[0] if weights is None else found

    def of(self, run_ids: Sequence[str]) -> "DocumentSums":
        """The same of some of the runs, in this order."""
        rows = [self.run_ids.index(run_id) for run_id in run_ids]
        sums = {name: values[rows] for name, values in self.sums.items()}
        return DocumentSums(tuple(run_ids), self.documents, self.n_tokens, sums, self.ratios)

    def _total(self, weights: Mapping[str, float]) -> FloatArray:
        total = np.zeros((len(self.run_ids), len(self.documents)))
        for name, weight in weights.items():
            total += weight * self.sums[name]
        return total


def read_documents(table: pd.DataFrame, metrics: Sequence[str] = ("l0", "fvu", "delta_ce")) -> DocumentSums | None:
    """The sums per document of the finished runs of a table, in its order.

    Args:
        table: from `load_table`, or rows of it.
        metrics: those that are needed; those that not all runs have are left out.

    Returns:
        None where the runs cannot be compared document by document: one has no such file (results of earlier versions) or a damaged one,
        which is logged; they are on different texts; none of the metrics is there; no run is finished; or the table holds no paths.
    """
    found = documents_or_reason(table, metrics)
    return found if isinstance(found, DocumentSums) else None


def documents_or_reason(table: pd.DataFrame, metrics: Sequence[str]) -> DocumentSums | str:
    """As `read_documents`; where there are none, why not, as a clause."""
    directories = table.attrs.get(DIRECTORIES, {})
    run_ids = [str(run_id) for run_id in table.loc[finished(table), "run_id"]] if "run_id" in table else []
    if not run_ids or not directories.keys() >= set(run_ids):
        return "the table comes without files of runs"
    paths = {run_id: RunPaths(Path(directories[run_id])).documents for run_id in run_ids}
    if not any(path.exists() for path in paths.values()):
        return "no run has sums per document"
    stored: list[StoredDocuments] = []
    for run_id, path in paths.items():
        try:
            stored.append(read_documents_file(path, metrics))
        except (FileNotFoundError, NotADirectoryError):
            return f"{run_id} has no sums per document"
        except (DamagedFileError, ConfigError, OSError) as error:
            _warn_once(f"runs are not compared document by document: {error}")
            return f"the sums per document of {run_id} cannot be read"
    return _joined(run_ids, stored, metrics)


@lru_cache(maxsize=4096)
def _warn_once(damage: str) -> None:
    """A report reads the sums several times."""
    log.warning(damage)


def _joined(run_ids: Sequence[str], stored: Sequence[StoredDocuments], metrics: Sequence[str]) -> DocumentSums | str:
    first = stored[0]
    counted = first.sums["n_tokens"]
    for run_id, one in zip(run_ids, stored, strict=True):
        if not (np.array_equal(one.documents, first.documents) and np.array_equal(one.sums["n_tokens"], counted)):
            return f"{run_ids[0]} and {run_id} have sums of different documents"
    known = [name for name in metrics if name in first.ratios]
    ratios = {name: first.ratios[name] for name in known if all(one.ratios.get(name) == first.ratios[name] for one in stored)}
    if not ratios:
        return f"not all runs have sums per document of {' or '.join(metrics)}"
    names = {"n_tokens"}.union(*(ratio.names for ratio in ratios.values()))
    sums = {name: np.stack([one.sums[name] for one in stored]) for name in sorted(names)}
    return DocumentSums(tuple(run_ids), first.documents, counted, sums, ratios)
