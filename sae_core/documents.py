"""`documents.parquet`: what each held-out document adds to the metrics of a run, so that runs are compared on the same documents. No torch.

A row per document with a token that counts: its number, and the sums that ratios are made of (docs/formulas.md, section Documents). The
metadata of the file says which metric is which ratio of sums. The checksum of the file is in the run's record.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sae_core.errors import ConfigError, DamagedFileError
from sae_core.files import check_content, checksum_of, read_json, written_whole
from sae_core.layout import RunPaths

IntArray = np.ndarray[Any, np.dtype[np.int64]]
FloatArray = np.ndarray[Any, np.dtype[np.float64]]

_RATIOS = b"ratios"
"""Key of the file's metadata."""
_DOCUMENT = "document"
"""Column of the numbers of the documents."""


@dataclass(frozen=True, slots=True)
class Ratio:
    """A metric as one weighted total of sums divided by another."""

    numerator: Mapping[str, float]
    """Sum -> weight."""
    denominator: Mapping[str, float]

    @property
    def names(self) -> set[str]:
        """The sums that it is made of."""
        return {*self.numerator, *self.denominator}


@dataclass(frozen=True, slots=True)
class StoredDocuments:
    """Content of a `documents.parquet`."""

    documents: IntArray
    """Numbers of the documents [D], ascending; the same document has the same number in every run on the same text."""
    sums: Mapping[str, FloatArray]
    """Name -> one sum per document [D]; NaN where it is not finite."""
    ratios: Mapping[str, Ratio]
    """Metric -> how it is made of `sums`. A metric that is no ratio of sums is not here."""


def write_documents(file: Path, stored: StoredDocuments) -> str:
    """Write the file, atomically. Returns the checksum that belongs into the record."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {_DOCUMENT: pa.array(stored.documents, pa.int64())}
    # What is not finite is null: no reader takes it for a number.
    columns |= {name: pa.array(values, pa.float64(), mask=~np.isfinite(values)) for name, values in stored.sums.items()}
    ratios = {name: {"numerator": dict(ratio.numerator), "denominator": dict(ratio.denominator)} for name, ratio in stored.ratios.items()}
    table = pa.table(columns).replace_schema_metadata({_RATIOS: json.dumps(ratios, sort_keys=True).encode()})
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="zstd")
    content = buffer.getvalue().to_pybytes()
    with written_whole(file) as temporary:
        temporary.write_bytes(content)
    return checksum_of(content)


def read_documents_file(file: Path, metrics: Sequence[str] | None = None) -> StoredDocuments:
    """Read the file of a run.

    Args:
        metrics: those whose sums are needed, beside the number of tokens; None: all.

    Raises:
        FileNotFoundError: there is no such file, or the record beside it says of none or cannot be read.
        DamagedFileError: it is not the one that the record was written with.
    """
    content = file.read_bytes()
    try:
        checksum = read_json(RunPaths(file.parent).record).get("documents_checksum")  # a table needs it of each of its runs
    except (ConfigError, OSError):
        checksum = None
    if checksum is None:
        raise FileNotFoundError(f"the record beside {str(file)!r} says of no such file")
    try:
        check_content(content, checksum)
        return _parsed(content, metrics)
    except Exception as error:  # whatever pyarrow raises about a file
        raise DamagedFileError.of(file, error, "The next launch of its sweep measures the run again.") from error


def _parsed(content: bytes, metrics: Sequence[str] | None) -> StoredDocuments:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(pa.BufferReader(content)) as file:
        raw = json.loads(file.schema_arrow.metadata[_RATIOS])
        ratios = {name: Ratio(ratio["numerator"], ratio["denominator"]) for name, ratio in raw.items()}
        if metrics is not None:
            ratios = {name: ratio for name, ratio in ratios.items() if name in metrics}
        names = set(file.schema_arrow.names) - {_DOCUMENT}
        needed = names if metrics is None else {"n_tokens"}.union(*(ratio.names for ratio in ratios.values()))
        table = file.read(columns=[_DOCUMENT, *sorted(needed)], use_threads=False)  # of few rows
    sums = {name: table[name].to_numpy(zero_copy_only=False).astype(np.float64) for name in sorted(needed)}
    return StoredDocuments(table[_DOCUMENT].to_numpy(), sums, ratios)
