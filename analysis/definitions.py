"""The definitions of a sweep, as kept in its directory: one for every launch that changed it, and what they ask for.

definition.yaml          of the last launch
definitions/<n>.yaml     of launch n, from 1; a launch that changed nothing points to an earlier one in sweep.json
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sae_core.errors import DamagedFileError
from sae_core.files import checksum_of

LARGEST_FILE = 2**22
"""Bytes of a definition that is read: larger ones were not written by a launch."""

Ends = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Definition:
    """A definition as a launch wrote it."""

    file: str
    """Its path in the sweep's directory."""
    text: str
    launches: tuple[int, ...]
    """Numbers of the launches that used it, from 1; empty where that is not known."""


@dataclass(frozen=True, slots=True)
class AskedRates:
    """The learning rates that a sweep's definitions ask one architecture for."""

    low: float
    high: float
    searched: bool
    """Whether a search may take any rate between them."""


def read_definitions(directory: Path, launches: Sequence[Mapping[str, Any]]) -> tuple[list[Definition], list[str]]:
    """The kept definitions, in the order of their launches, or else `definition.yaml`; and what is wrong with those that cannot be read.

    Args:
        launches: of sweep.json.
    """
    users: dict[str, list[int]] = {}
    checksums: dict[str, str] = {}
    for number, launch in enumerate(launches, start=1):
        # Only paths of that form: sweep.json may name any.
        if (name := launch.get("definition")) and Path(name).name == name.removeprefix("definitions/"):
            name = f"definitions/{Path(name).name}"
            users.setdefault(name, []).append(number)
            checksums |= {name: checksum} if (checksum := launch.get("definition_checksum")) else {}
    kept, damages = _read(directory, users, checksums)
    if kept:
        return kept, damages
    latest, more = _read(directory, {"definition.yaml": []}, {})
    return latest, damages + more


def asked_rates(definitions: Iterable[Definition]) -> dict[str, AskedRates]:
    """Per architecture, the span of the learning rates that the definitions ask for; without what cannot be understood."""
    asked: dict[str, AskedRates] = {}
    for definition in definitions:
        for name, rates in _rates_of(definition.text).items():
            known = asked.get(name, rates)
            asked[name] = AskedRates(min(known.low, rates.low), max(known.high, rates.high), known.searched or rates.searched)
    return asked


def _read(directory: Path, users: Mapping[str, Sequence[int]], checksums: Mapping[str, str]) -> tuple[list[Definition], list[str]]:
    definitions, damages = [], []
    for name, numbers in users.items():
        try:
            content = (directory / name).read_bytes()
            if len(content) > LARGEST_FILE:
                raise ValueError(f"it has {len(content):,} bytes")
            if name in checksums and checksums[name] != checksum_of(content):
                raise ValueError("its checksum does not match its content")
            definitions.append(Definition(name, content.decode("utf-8"), tuple(numbers)))
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError) as error:
            damages.append(str(DamagedFileError.of(directory / name, error, "Put back a copy; the next launch keeps its own.")))
    return definitions, damages


def _rates_of(text: str) -> dict[str, AskedRates]:
    try:
        content = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except Exception:  # whatever a YAML reader raises: the definition only adds a range to what the runs say
        return {}
    sections = content.get("architectures") if isinstance(content, dict) else None
    if not isinstance(sections, dict):
        return {}
    train = content.get("train")
    common = train.get("lr") if isinstance(train, dict) else None
    own = {name: section.get("lr", common) if isinstance(section, dict) else common for name, section in sections.items()}
    return {str(name): rates for name, value in own.items() if (rates := _asked(value))}


def _asked(value: Any) -> AskedRates | None:
    """What a field says: a rate, a list of rates, or a range; None where it says nothing."""
    searched = isinstance(value, dict)
    given: list[Any] = [value.get("low"), value.get("high")] if isinstance(value, dict) else value if isinstance(value, list) else [value]
    try:
        rates = [float(rate) for rate in given]
    except (TypeError, ValueError, OverflowError):
        return None
    return AskedRates(min(rates), max(rates), searched) if rates and min(rates) > 0 else None
