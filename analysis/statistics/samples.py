"""What the statistics work on: L0 and one metric of every finished run, on all held-out documents and on draws of them.

Shape letters: R runs, B draws of documents, 3 parts of the text (all of it, and two halves: settings are chosen on one and read on the
other). L0 moves with the documents, as the metric does, so both are drawn.

Choices worth knowing:
- A draw takes as many documents as there are, with replacement; one draw serves all runs, so that differences are paired. The generator
  is fixed: the same records give the same intervals.
- A metric is made of the resampled sums, never a mean of ratios per document.
- ln of the metric, unless a value or a draw of it is 0 or less: then the metric itself, for all runs (`raw`).
"""

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.documents import DocumentSums, documents_or_reason
from analysis.estimates import Band
from analysis.interpolation import FloatArray
from analysis.table import DIRECTORIES, finished, numbers
from sae_core.layout import RunPaths

N_DRAWS = 1_000
"""Draws of documents: the standard error of a standard error is then 2 %."""
FEWEST_DRAWS = 250
"""Of many runs: then 4 %."""
_MOST_VALUES = 2_000_000
"""Runs times draws that are kept: 100 MB."""
FEWEST_DOCUMENTS = 10
"""With fewer documents nothing is drawn: half of them would be too few to choose on, and their spread is hardly known."""
FEWEST_EVEN = 3
"""Documents of one length that those there are must be worth (1 / sum of their shares squared): else one of them is nearly the text."""
ALL, HALVES = 0, (1, 2)
"""Parts of the text: index of an axis of length 3."""
_OnDocuments = tuple[FloatArray, FloatArray, FloatArray]
_MOST_COUNTS = 4_000_000
"""Counts of drawn documents that are in memory at a time."""
_MOST_KEPT = 300_000_000
"""Bytes of the samples of recent tables that are kept: report and terminal ask about the same runs several times."""


@dataclass(frozen=True, slots=True)
class Samples:
    """ln L0 (`x`) and the metric on its scale (`y`) of finished runs with both."""

    rows: NDArray[np.intp]
    """[R] which rows of the table they are, by position."""
    x: FloatArray
    """[3, R] on all documents and on each half; without documents all three are equal."""
    y: FloatArray
    raw: bool
    """Whether `y` is the metric itself instead of its logarithm."""
    n_documents: int = 0
    """0 where documents cannot be drawn."""
    undrawn: str = ""
    """Why not, as a clause; empty where they are."""
    correction: float = 1.0
    """What the variance over draws is multiplied with to be unbiased: D / (D - 1) where all D documents weigh the same."""
    df: float = 0.0
    """Degrees of freedom: D - 1 where all weigh the same, fewer where some weigh more."""
    x_draws: FloatArray | None = None
    """[3, B, R]; None without documents."""
    y_draws: FloatArray | None = None
    bands: dict[Hashable, Band] = field(default_factory=dict, repr=False, compare=False)
    """Those read off them: plots and page ask for the same."""

    @property
    def n_bytes(self) -> int:
        """Memory of the draws."""
        return 0 if self.x_draws is None or self.y_draws is None else self.x_draws.nbytes + self.y_draws.nbytes


def samples_of(table: pd.DataFrame, metric: str, documents: DocumentSums | None = None) -> Samples:
    """The samples of a table's finished runs with an L0 above 0 and a value of the metric.

    Args:
        documents: sums of these runs; by default read from the runs' directories, where the table knows them.
    """
    l0, value = numbers(table, "l0"), numbers(table, metric)
    rows = np.flatnonzero(finished(table) & (l0 > 0) & np.isfinite(value))
    key = _key(table, rows, metric) if documents is None else None
    if key is not None and key in _recent:
        _recent.move_to_end(key)
        return _recent[key]
    known = documents_or_reason(table.iloc[rows], ("l0", metric)) if documents is None else documents
    made = _samples(rows, l0[rows], value[rows], known if isinstance(known, str) else _on_documents(table, rows, metric, known))
    if key is not None:
        _recent[key] = made
        while len(_recent) > 1 and sum(one.n_bytes for one in _recent.values()) > _MOST_KEPT:
            _recent.popitem(last=False)
    return made


_recent: "OrderedDict[tuple[object, ...], Samples]" = OrderedDict()


def _key(table: pd.DataFrame, rows: NDArray[np.intp], metric: str) -> tuple[object, ...] | None:
    """What the samples depend on; None where nothing is known about the runs' files."""
    directories = table.attrs.get(DIRECTORIES) or {}
    if "run_id" not in table or not directories:
        return None
    files = [RunPaths(Path(directories[run_id])).documents for run_id in table["run_id"].iloc[rows] if run_id in directories]
    stamps = tuple((str(file), file.stat().st_mtime_ns if file.is_file() else None) for file in files)
    if len(stamps) < len(rows):
        return None
    values = tuple(table[["l0", metric]].iloc[rows].to_numpy(float).ravel())
    return metric, tuple(rows), stamps, values


def draws(n_documents: int, n_draws: int | None = None) -> Iterator[FloatArray]:
    """How often each document is drawn: rows of counts [B, D] in chunks, N_DRAWS by default, always the same for a number of documents."""
    n_draws = N_DRAWS if n_draws is None else n_draws
    generator, chance = np.random.default_rng(20_240_607), np.full(n_documents, 1 / n_documents)
    size = max(1, min(n_draws, _MOST_COUNTS // n_documents))
    for start in range(0, n_draws, size):
        yield generator.multinomial(n_documents, chance, size=min(size, n_draws - start)).astype(np.float64)


def _on_documents(table: pd.DataFrame, rows: NDArray[np.intp], metric: str, documents: DocumentSums) -> _OnDocuments | str:
    """L0 and metric [2, 3, R] on the parts of the text, and [2, 3, B, R] on draws, of sums alone; weights of the documents [D].

    Where they have no value, why not.
    """
    if lacking := {"l0", metric} - set(documents.metrics):
        return f"not all runs have sums per document of {' or '.join(sorted(lacking))}"
    if (n_documents := len(documents.documents)) < FEWEST_DOCUMENTS:
        return f"there are {n_documents} documents, fewer than {FEWEST_DOCUMENTS}"
    run_ids = [str(run_id) for run_id in table["run_id"].iloc[rows]]
    if not set(run_ids) <= set(documents.run_ids):
        return "not all runs have sums per document"
    documents = documents.of(run_ids)
    parts = [_halves(*documents.parts(name)) for name in ("l0", metric)]
    point = np.stack([_ratios(one, np.ones((1, n_documents)))[:, 0] for one in parts])
    chunks = draws(n_documents, max(min(N_DRAWS, _MOST_VALUES // len(rows)), min(N_DRAWS, FEWEST_DRAWS)))
    drawn = np.concatenate([np.stack([_ratios(one, counts) for one in parts]) for counts in chunks], axis=2)
    if not (np.isfinite(point).all() and np.isfinite(drawn).all() and (point[0] > 0).all() and (drawn[0] > 0).all()):
        return f"L0 or {metric} has no value on some of the documents"
    weights = np.abs(documents.parts(metric)[1].mean(axis=0))
    weights = weights / weights.sum()
    return (point, drawn, weights) if 1 / (weights**2).sum() >= FEWEST_EVEN else "nearly all of the text is one or two documents"


_Halves = list[tuple[FloatArray, FloatArray]]


def _halves(above: FloatArray, below: FloatArray) -> _Halves:
    """What is above and below the line, each [R, D/2] or [1, D/2]: of every second document from the first on, and of the others."""
    if (below == below[:1]).all():  # what is below the line is the text's, the same for all runs
        below = below[:1]
    return [(above[:, start::2], below[:, start::2]) for start in (0, 1)]


def _ratios(halves: _Halves, counts: FloatArray) -> FloatArray:
    """[3, B, R] the ratio on all documents and on each half, every document counted as often as `counts` [B, D] says."""
    sums = [(counts[:, start::2] @ above.T, counts[:, start::2] @ below.T) for start, (above, below) in enumerate(halves)]
    parts = [(sums[0][0] + sums[1][0], sums[0][1] + sums[1][1]), *sums]
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.stack([top / bottom for top, bottom in parts])


def _samples(rows: NDArray[np.intp], l0: FloatArray, value: FloatArray, on_documents: _OnDocuments | str) -> Samples:
    x = np.log(l0)
    if isinstance(on_documents, str):
        raw = bool((value <= 0).any())
        y = value if raw else np.log(value)
        return Samples(rows, np.stack([x] * 3), np.stack([y] * 3), raw, undrawn=on_documents)
    point, drawn, weights = on_documents
    raw = bool((value <= 0).any() or (point[1] <= 0).any() or (drawn[1] <= 0).any())
    y, y_point, y_drawn = (part if raw else np.log(part) for part in (value, point[1], drawn[1]))
    x_point, x_drawn = np.log(point[0]), np.log(drawn[0])
    # The table's values are the truth, to the last digit; the sums say how they move.
    x_shift, y_shift = x - x_point[ALL], y - y_point[ALL]
    return Samples(
        rows, x_point + x_shift, y_point + y_shift, raw, len(weights), "", *_small_sample(weights), x_drawn + x_shift, y_drawn + y_shift
    )


def _small_sample(weights: FloatArray) -> tuple[float, float]:
    """Correction and degrees of freedom of a bootstrap variance of a ratio of sums.

    To first order the variance is the sum of (w_i e_i)^2, with w_i a document's share of what is below the line and e_i its deviation from
    the ratio, which is fitted to the same documents: that takes 1 - 2 sum w^3 / sum w^2 + sum w^2 of it away. A long document has its
    deviation in the ratio's error and in that variance, so the error in standard errors does not grow with it (Efron 1969, "Student's
    t-test under symmetry conditions", JASA 64): 1 / sum w^2 - 1 degrees of freedom, as of that many documents of one length. A chi-squared
    of the variance alone would have (sum w^2)^2 / sum w^4, and intervals that cover 99 % of the time.
    """
    squares, cubes = float((weights**2).sum()), float((weights**3).sum())
    return 1 / (1 - 2 * cubes / squares + squares), 1 / squares - 1
