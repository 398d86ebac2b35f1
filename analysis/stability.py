"""Seed stability: how much of what an SAE learned another seed learns again. Formulas: docs/formulas.md (Seed stability).

Choices worth knowing:
- Runs of one setting that differ in `seed` alone or in the order of their tokens are compared in pairs, by the decoder rows of the latents
  that are alive on the held-out tokens: the rows of dead ones are random and would drag the mean down.
- A pair is worked out once and kept in `stability.json` of the sweep, by the content of both SAEs. Tables only read what is there;
  `measure` works out what is missing, at the end of a launch and for `sae-sweep report`.
- Runs without `latents.safetensors` (results of earlier versions) or without their SAE have no value.
"""

import itertools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.matching import match
from analysis.results import StoredRun, StoredSweep
from analysis.rows import setting_hash
from sae_core.errors import ConfigError, DamagedFileError, reason_of
from sae_core.files import check_tensors, checksum_in, checksum_of, read_json, write_json
from sae_core.layout import WEIGHTS, RunPaths
from sae_core.records import MetricSpec

log = logging.getLogger(__name__)

RECURS = 0.7
"""|cos| of matched decoder rows from which on a latent counts as found again (arXiv:2501.16615 uses the same)."""
VERSION = 1
"""Of how pairs are worked out: another one makes them anew."""
SPECS = (
    MetricSpec("pw_mcc", "PW-MCC between seeds", "", "max"),
    MetricSpec("recurring_latents", "Latents that recur in another seed", "", "max"),
    MetricSpec("recurring_explained", "Explained variance of recurring latents", "", "max"),
)
"""The columns. `pw_mcc`: mean |cos| of matched latents; `recurring_latents`: share of the latents alive; `recurring_explained`: share of
what all latents together explain."""

_Pairs = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class _Latents:
    """An SAE's latents that are alive."""

    rows: NDArray[np.float32]
    """Decoder [A, d_in]."""
    explained: NDArray[np.float64] | None
    """What each explains [A]; None where it was not measured."""


def measure(sweeps: Sequence[StoredSweep]) -> None:
    """Work out every pair that is not known yet, and keep it in the sweep of the first of the two runs."""
    for sweep in sweeps:
        file, pairs = sweep.paths.stability, _kept(sweep)
        missing = {key: pair for key, pair in _pairs_of(sweep.runs).items() if key not in pairs}
        if not missing:
            continue
        log.info("seed stability: %d pairs of runs", len(missing))
        found: _Pairs = {}
        loaded: dict[str, _Latents] = {}
        for key, (first, second) in missing.items():
            try:
                loaded = {run.run_id: loaded.get(run.run_id) or _latents_of(run.paths) for run in (first, second)}
            except (OSError, DamagedFileError) as error:
                log.warning("seed stability of %s and %s is not known: %s", first.run_id, second.run_id, error)
                continue
            found[key] = _compared(loaded[first.run_id], loaded[second.run_id])
        try:
            write_json(file, {"pairs": {**pairs, **found}})
        except OSError as error:
            log.warning("seed stability is not kept in %s: %s.", file, reason_of(error))


def columns_of(sweeps: Sequence[StoredSweep]) -> pd.DataFrame:
    """What is known about the runs of some sweeps: an index of run ids, a column per name of SPECS; each a mean over the other repeats."""
    rows: list[dict[str, Any]] = []
    for sweep in sweeps:
        pairs = _kept(sweep)
        for key, pair in (_pairs_of(sweep.runs) if pairs else {}).items():
            for place, run in enumerate(pair):
                if key in pairs:
                    of_pair = pairs[key]
                    values = (of_pair["pw_mcc"], of_pair["recurring"][place], of_pair["explained"][place])
                    rows.append({"run_id": run.run_id, **{spec.name: value for spec, value in zip(SPECS, values, strict=True)}})
    table = pd.DataFrame(rows, columns=["run_id", *(spec.name for spec in SPECS)])
    return table.astype({spec.name: "float64" for spec in SPECS}).groupby("run_id").mean()


def _pairs_of(runs: Sequence[StoredRun]) -> dict[str, tuple[StoredRun, StoredRun]]:
    """Key of the content -> two runs of one setting, for all that have what is needed."""
    groups: dict[str, list[tuple[StoredRun, str]]] = {}
    for run in runs:
        if run.finished and (content := _content_of(run.paths)):
            groups.setdefault(setting_hash(run), []).append((run, content))
    return {
        checksum_of(f"{VERSION} {one} {other}".encode()): (first, second)
        for group in groups.values()
        for (first, one), (second, other) in itertools.combinations(group, 2)
    }


def _content_of(paths: RunPaths) -> str:
    """What tells the content of an SAE and of what its latents do; empty where one is missing or damaged."""
    try:
        sums = [checksum_in(file) for file in (paths.sae / WEIGHTS, paths.latents)]
    except (OSError, DamagedFileError):
        return ""
    return " ".join(sums) if all(sums) else ""  # type: ignore[arg-type]


def _latents_of(paths: RunPaths) -> _Latents:
    from safetensors.numpy import load_file

    for file in (paths.sae / WEIGHTS, paths.latents):
        check_tensors(file)
    weights, latents = load_file(paths.sae / WEIGHTS), load_file(paths.latents)
    alive = latents["times_active"] > 0
    explained = latents.get("explained")
    return _Latents(weights["W_dec"][alive], None if explained is None else explained[alive].astype(np.float64))


def _compared(first: _Latents, second: _Latents) -> dict[str, Any]:
    if not len(first.rows) or not len(second.rows):
        return {
            "pw_mcc": None,
            "is_bound": False,
            "n_alive": [len(first.rows), len(second.rows)],
            "recurring": [None] * 2,
            "explained": [None] * 2,
        }
    matching = match(first.rows, second.rows)
    again = matching.cosines >= RECURS
    sides = ((first, matching.rows[again]), (second, matching.columns[again]))
    return {
        "pw_mcc": matching.mean,
        "is_bound": matching.is_bound,
        "n_alive": [len(latents.rows) for latents, _ in sides],
        "recurring": [len(recurring) / len(latents.rows) for latents, recurring in sides],
        "explained": [_share(latents.explained, recurring) for latents, recurring in sides],
    }


def _share(explained: NDArray[np.float64] | None, recurring: NDArray[np.intp]) -> float | None:
    """Of what all latents explain, the part of some of them."""
    total = None if explained is None else float(explained.sum())
    return float(explained[recurring].sum()) / total if explained is not None and total else None


def _kept(sweep: StoredSweep) -> _Pairs:
    """What `measure` kept; nothing where it is damaged, since it can be made again."""
    try:
        pairs = read_json(sweep.paths.stability).get("pairs")
    except (OSError, ConfigError):
        return {}
    return pairs if isinstance(pairs, Mapping) else {}  # type: ignore[return-value]
