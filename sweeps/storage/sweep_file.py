"""sweep.json and the definitions of a sweep's launches: what no record can know.

sweep.json              name, runs (requested by the last launch), stages, launches, hardware, versions
definition.yaml         definition of the last launch
definitions/<n>.yaml    definition of launch n, counted from 1; launches with the same definition share a file, which
                        `launches[n - 1]["definition"]` names
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sae_core import provenance
from sae_core.files import checksum_of, write_text
from sae_core.layout import SweepPaths
from sweeps.storage.set_aside import make_room

MOST_LAUNCHES = 10_000
"""Higher launch numbers, in files without a checksum, are ignored."""


def begin_launch(paths: SweepPaths, facts: Mapping[str, Any], numbers: Iterable[int], text: str) -> list[dict[str, Any]]:
    """Write the definition of a launch that begins.

    Args:
        facts: content of sweep.json before it.
        numbers: launches that records name; sweep.json may have lost them.
        text: the definition.

    Returns:
        All launches, this one last; lost ones without times.
    """
    make_room(paths.definitions, directory=True)
    make_room(paths.definition)
    launches = [dict(launch) for launch in facts.get("launches") or []]
    kept = _definitions(paths)
    is_old = paths.definition.is_file() and not kept  # an earlier version kept the last definition only
    n_launches = max(number for number in (int(is_old), *kept, *numbers) if number <= MOST_LAUNCHES)
    launches += [{"started_at": None, "ended_at": None} for _ in range(n_launches - len(launches))]
    if is_old:
        paths.definitions.mkdir(parents=True, exist_ok=True)
        paths.definition.replace(paths.definitions / f"{len(launches)}.yaml")
        launches[-1]["definition"] = f"{paths.definitions.name}/{len(launches)}.yaml"
    number = len(launches) + 1
    same = [n for n, file in kept.items() if file.read_bytes() == text.encode()]
    file = paths.definitions / f"{max(same, default=number)}.yaml"
    if not same:
        write_text(file, text)
    write_text(paths.definition, f"# Definition of launch {number}. Those of all launches are in {paths.definitions.name}/.\n{text}")
    name = f"{paths.definitions.name}/{file.name}"
    return [
        *launches,
        {"started_at": provenance.now(), "ended_at": None, "definition": name, "definition_checksum": checksum_of(text.encode())},
    ]


def _definitions(paths: SweepPaths) -> dict[int, Path]:
    files = paths.definitions.glob("*.yaml")
    return {int(file.stem): file for file in files if re.fullmatch(r"[1-9][0-9]{0,4}", file.stem) and file.is_file()}
