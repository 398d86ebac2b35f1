"""Scores of probes, from the `probes.json` that `sae-sweep probe` leaves beside records: columns of the table."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from analysis.results import StoredRun
from sae_core.errors import DamagedFileError
from sae_core.files import read_json
from sae_core.layout import RunPaths
from sae_core.records import MetricSpec

log = logging.getLogger(__name__)


def read_probes(paths: RunPaths) -> dict[str, Any]:
    """Name of a dataset -> what `sae-sweep probe` found on it; empty where there is nothing, or a damaged file."""
    try:
        content = read_json(paths.probes).get("probes")
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except DamagedFileError as error:
        log.warning("%s Repeat `sae-sweep probe`.", error)
        return {}
    return {name: probe for name, probe in content.items() if isinstance(probe, dict)} if isinstance(content, dict) else {}


def column_of(name: str, k: int | str) -> str:
    """The column of probes of k latents on a dataset."""
    return f"probe_{name}_k{k}"


def probe_columns(runs: Sequence[StoredRun]) -> tuple[list[dict[str, float]], dict[str, MetricSpec]]:
    """Column -> accuracy of each run, and column -> what it is.

    A dataset that was not the same for all runs has no columns: its scores may not be compared.
    """
    probes = [read_probes(run.paths) if run.finished else {} for run in runs]
    contents: dict[str, set[Any]] = {}
    for name, probe in ((name, probe) for found in probes for name, probe in found.items()):
        contents.setdefault(name, set()).add(str(probe.get("checksum")))
    if mixed := sorted(name for name, checksums in contents.items() if len(checksums) > 1):
        log.warning("probes on %s were made of different texts in different runs: they are left out. Repeat `sae-sweep probe`.", mixed)
    rows = [
        {column: value for name, probe in found.items() if name not in mixed for column, value in _values(name, probe)} for found in probes
    ]
    columns = sorted({column for row in rows for column in row})
    return rows, {column: _spec(column) for column in columns}


def _values(name: str, probe: Mapping[str, Any]) -> list[tuple[str, float]]:
    by_k = probe.get("by_k")
    scores = by_k.items() if isinstance(by_k, dict) else ()
    found = [(k, score.get("accuracy")) for k, score in scores if isinstance(score, dict) and str(k).isdigit()]
    return [(column_of(name, k), float(value)) for k, value in found if isinstance(value, int | float) and not isinstance(value, bool)]


def _spec(column: str) -> MetricSpec:
    name, _, k = column.removeprefix("probe_").rpartition("_k")
    return MetricSpec(column, f"Accuracy of probes of {k} latent{'s' if k != '1' else ''}, {name}", "", "max")
