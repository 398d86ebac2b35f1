"""sweep.json and the definitions of a sweep's launches: what no record can know.

sweep.json          name, runs (asked for by the last launch), stages, launches, hardware, versions
definition.yaml     of the last launch
definitions/<n>.yaml    of launch n, counted from 1; `launches[n - 1]["definition"]` names the file of each, because launches with the
                    same definition share one
"""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sae_core.config.run import RunConfig
from sae_core.errors import DamagedFileError
from sae_core.files import checksum_of, read_json, write_text, written_whole
from sae_core.records import RunRecord
from sae_core.validation import wrong_in_sweep
from sweeps.storage.set_aside import make_room

DEFINITIONS = "definitions"
MOST_LAUNCHES = 10_000
"""Higher numbers of launches, in files without a checksum, are not believed."""


def read_sweep_file(path: Path) -> dict[str, Any]:
    """What sweep.json holds.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedFileError: it is not what was written.
    """
    facts = read_json(path)
    if problem := wrong_in_sweep(facts):
        raise DamagedFileError.of(path, ValueError(problem))
    return facts


def entry(run: RunConfig) -> dict[str, Any]:
    """What sweep.json says about a run that was asked for."""
    return {
        "run_id": run.run_id,
        "architecture": run.sae.architecture,
        "sparsity_parameter": run.sae.sparsity_parameter,
        "sparsity_value": run.sae.sparsity_value,
        "seed": run.seed,
        "config": run.model_dump(mode="json"),
    }


def launches_so_far(directory: Path, facts: Mapping[str, Any], records: Mapping[str, RunRecord]) -> list[dict[str, Any]]:
    """The launches that sweep.json knows, and an entry for each that only a definition or a record still shows."""
    launches = [dict(launch) for launch in facts.get("launches") or []]
    numbers = [*_definitions(directory), *(record.launch or 0 for record in records.values())]
    while len(launches) < max((number for number in numbers if number <= MOST_LAUNCHES), default=0):
        launches.append({"started_at": None, "ended_at": None})
    return launches


def keep_definition(directory: Path, text: str, launches: list[dict[str, Any]]) -> None:
    """Write the definition of a launch that begins, and append the launch to `launches`.

    Args:
        launches: before it.
    """
    folder, latest = directory / DEFINITIONS, directory / "definition.yaml"
    make_room(folder, directory=True)
    make_room(latest)
    if latest.is_file() and not _definitions(directory):  # of an earlier version, which kept the last one only
        launches[:] = launches or [{"started_at": None, "ended_at": None}]
        name = f"{DEFINITIONS}/{len(launches)}.yaml"
        with written_whole(directory / name) as temporary:
            temporary.write_bytes(latest.read_bytes())
        launches[-1]["definition"] = name
    number = len(launches) + 1
    same = [n for n, file in _definitions(directory).items() if _text(file) == text]
    name = f"{DEFINITIONS}/{max(same, default=number)}.yaml"
    if not same:
        write_text(directory / name, text)
    write_text(latest, f"# Definition of launch {number}. Those of all launches are in {DEFINITIONS}/.\n{text}")
    launches.append({"started_at": now(), "ended_at": None, "definition": name, "definition_checksum": checksum_of(text.encode())})


def now() -> str:
    """UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _definitions(directory: Path) -> dict[int, Path]:
    files = (directory / DEFINITIONS).glob("*.yaml")
    return {int(file.stem): file for file in files if re.fullmatch(r"[1-9][0-9]{0,4}", file.stem) and file.is_file()}


def _text(file: Path) -> str | None:
    """Text of a definition; None where it cannot be read, so that it is no other's."""
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None
