"""Read sweep directories: `sweep.json`, definitions, and per run `record.json` and `history.jsonl`.

Records are the truth about runs; `sweep.json` only adds what no record can know: which runs were requested and never finished, and how
long each stage took. Every key of it is optional, so that old results still read. A damaged file costs what it held and nothing else:
`StoredSweep.damages` names it.
"""

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from analysis.columns import NOT_METRICS, arm_of_published
from sae_core.errors import ConfigError, DamagedFileError, border
from sae_core.files import check_content
from sae_core.layout import OF_RUN, RunPaths, SweepPaths
from sae_core.records import RunRecord, read_sweep_file
from sae_core.validation import at, printable

log = logging.getLogger(__name__)

REQUESTED = ("config", "architecture", "sparsity_parameter", "sparsity_value", "seed")
"""What both records and `sweep.json` say about a run."""


@dataclass(frozen=True, slots=True)
class StoredRun:
    """One run that a sweep requested."""

    run_id: str
    sweep: str
    """Name of the sweep's directory."""
    paths: RunPaths
    """Its files; none may exist for a missing run."""
    requested: Mapping[str, Any]
    """Its `config`, `architecture`, `sparsity_parameter`, `sparsity_value` and `seed`, as far as its record or else `sweep.json` knows."""
    record: RunRecord | None = None
    """None where the run left no record, or a damaged one."""
    damage: str = ""
    """Message about its damaged record."""
    variant_of: str = ""
    """Run that this is a variant of; empty for a run."""

    @property
    def config(self) -> Mapping[str, Any]:
        """The run's config; empty where unknown."""
        return self.requested.get("config") or {}

    @property
    def published(self) -> str | None:
        """Where an SAE that was not trained here came from."""
        return self.record.published if self.record else None

    @property
    def finished(self) -> bool:
        """Whether it has results."""
        return self.record is not None and self.record.status == "finished"


@dataclass(frozen=True, slots=True)
class Definition:
    """A definition as a launch wrote it."""

    file: Path
    text: str
    launches: tuple[int, ...]
    """Numbers of the launches that used it, from 1; empty where unknown."""

    @property
    def content(self) -> Mapping[str, Any]:
        """Its sections; empty where it is not YAML."""
        try:
            content = yaml.load(self.text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        except Exception:  # whatever a YAML reader raises: what a report takes from a definition only adds to the records
            return {}
        return content if isinstance(content, dict) else {}


@dataclass(frozen=True, slots=True)
class StoredSweep:
    """What one sweep directory holds."""

    paths: SweepPaths
    facts: Mapping[str, Any]
    """`sweep.json` without its runs; empty where there is none, or a damaged one."""
    definitions: tuple[Definition, ...]
    """Every definition that was kept."""
    runs: tuple[StoredRun, ...]
    """Every run with a record or named in `sweep.json`, sorted by run id."""
    variants: tuple[StoredRun, ...] = ()
    """What was measured beside these runs: snapshots, and other forms of their SAEs."""
    damages: tuple[str, ...] = ()
    """One message per damaged file."""

    @property
    def name(self) -> str:
        """The sweep's own name, or its directory's."""
        return str(self.facts.get("name") or self.paths.directory.name)

    @property
    def plugins(self) -> list[str]:
        """Plugins that its definitions list, each once."""
        listed = [definition.content.get("plugins") for definition in self.definitions]
        return list(dict.fromkeys(name for names in listed if isinstance(names, list) for name in names if isinstance(name, str)))


def read_sweeps(results: str | Path | Sequence[str | Path]) -> list[StoredSweep]:
    """Read one sweep directory, or several; the same one twice counts once.

    A run that several of them measured on different held-out texts has the hash of the text after its id: "3f0a...@b82e7745aa01".

    Raises:
        ConfigError: no directory was given, one of them is not a sweep's or cannot be read, or a record is of a newer version.
    """
    with border(f"results must be one path or several, but got {results!r}", "Give the directory of a sweep, e.g. results/demo."):
        directories = [Path(path) for path in ([results] if isinstance(results, str | os.PathLike) else results)]
    if not directories:
        raise ConfigError(f"at least one results directory must be given, but got {results!r}. Give the directory of a sweep.")
    return _told_apart([_read_sweep(directory) for directory in dict.fromkeys(directories)])


def _told_apart(sweeps: list[StoredSweep]) -> list[StoredSweep]:
    texts: dict[str, set[str]] = {}
    for run in (run for sweep in sweeps for run in sweep.runs if run.record and run.record.eval_hash):
        texts.setdefault(run.run_id, set()).add(run.record.eval_hash)  # type: ignore[union-attr, arg-type]
    several = {run_id for run_id, own in texts.items() if len(own) > 1}

    def named(run: StoredRun) -> StoredRun:
        text = run.record.eval_hash if run.record and (run.variant_of or run.run_id) in several else None
        return replace(run, run_id=f"{run.run_id}@{text}", variant_of=run.variant_of and f"{run.variant_of}@{text}") if text else run

    if not several:
        return sweeps
    return [replace(sweep, runs=tuple(map(named, sweep.runs)), variants=tuple(map(named, sweep.variants))) for sweep in sweeps]


def requested_rates(definitions: Iterable[Definition]) -> dict[str, dict[str, Any]]:
    """Learning rates that definitions request, per architecture: `low`, `high`, and `searched`, whether a search may take any between."""
    requested: dict[str, dict[str, Any]] = {}
    for content in (definition.content for definition in definitions):
        sections = content.get("architectures")
        for name, section in sections.items() if isinstance(sections, dict) else ():
            lr = section["lr"] if isinstance(section, dict) and "lr" in section else at(content, "train.lr")
            given: Any = [lr.get("low"), lr.get("high")] if isinstance(lr, dict) else lr if isinstance(lr, list) else [lr]
            try:
                rates = [float(rate) for rate in given]
            except (TypeError, ValueError, OverflowError):
                continue
            if rates and min(rates) > 0:
                span = requested.setdefault(str(name), {"low": rates[0], "high": rates[0], "searched": False})
                span |= {"low": min(span["low"], *rates), "high": max(span["high"], *rates)}
                span["searched"] |= isinstance(lr, dict)
    return requested


def _read_sweep(directory: Path) -> StoredSweep:
    with border(f"a results directory must be readable, but got {str(directory)!r}", "Correct its path or permissions."):
        paths = SweepPaths(directory.expanduser())
        if not paths.facts.is_file() and not paths.runs.is_dir():
            raise ConfigError(
                f"a results directory must hold `runs/` or `sweep.json`, but got {str(directory)!r}. "
                "Give the directory of a sweep, not its parent."
            )
        run_ids = paths.run_ids()
    damages: list[str] = []
    facts = _read_facts(paths.facts, damages)
    definitions = _read_definitions(paths, facts.get("launches") or [], damages)
    planned = {entry["run_id"]: entry for entry in facts.pop("runs", None) or []}
    sweep = paths.directory.resolve().name
    runs = tuple(_read_run(paths.run(run_id), run_id, sweep, planned.get(run_id, {})) for run_id in sorted({*run_ids, *planned}))
    variants = tuple(
        replace(_read_run(paths.run(variant_id), variant_id, sweep, {}), variant_of=run.run_id)
        for run in runs
        for variant_id in paths.variant_ids(run.run_id)
    )
    damages += [run.damage for run in (*runs, *variants) if run.damage]
    for damage in damages:
        _warn_once(damage)
    return StoredSweep(paths, facts, definitions, runs, variants, tuple(damages))


def _read_facts(file: Path, damages: list[str]) -> dict[str, Any]:
    try:
        return read_sweep_file(file)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except DamagedFileError as error:
        damages.append(f"{printable(str(error))} Missing runs and the times of stages are unknown.")
        return {}


def _read_definitions(paths: SweepPaths, launches: Sequence[Mapping[str, Any]], damages: list[str]) -> tuple[Definition, ...]:
    """The kept definitions in the order of their launches, or else the last one."""
    used: dict[str, tuple[list[int], str | None]] = {}
    for number, launch in enumerate(launches, start=1):
        name = Path(launch.get("definition") or "").name  # only files of that directory: sweep.json may name any
        used.setdefault(name, ([], launch.get("definition_checksum")))[0].append(number)
    kept = [_read_definition(paths.definitions / name, *launched, damages) for name, launched in used.items() if name]
    if not any(kept):
        kept = [_read_definition(paths.definition, (), None, damages)]
    return tuple(definition for definition in kept if definition)


def _read_definition(file: Path, launches: Sequence[int], checksum: str | None, damages: list[str]) -> Definition | None:
    if not file.is_file():
        return None
    try:
        content = file.read_bytes()
        check_content(content, checksum)
        return Definition(file, content.decode("utf-8"), tuple(launches))
    except (OSError, ValueError) as error:
        damages.append(str(DamagedFileError.of(file, error, "Put back a copy; the next launch keeps its own.")))
        return None


def _read_run(files: RunPaths, run_id: str, sweep: str, planned: Mapping[str, Any]) -> StoredRun:
    try:
        record = RunRecord.read(files.record)
        problem = "" if record.run_id == run_id else f"it is the record of {record.run_id!r}"
        if (OF_RUN in run_id) != (record.variant_kind is not None):
            problem = f"its `variant_kind` is {record.variant_kind!r}"
        if taken := [name for name in record.metrics if name in NOT_METRICS or name.startswith("version_")]:
            problem = f"`metrics` holds {taken[0]!r}, which is no metric"
        if problem:
            raise DamagedFileError.of(files.record, ValueError(problem), "Delete it: the same command trains the run again.")
    except (FileNotFoundError, NotADirectoryError):
        return StoredRun(run_id, sweep, files, planned)
    except DamagedFileError as error:
        return StoredRun(run_id, sweep, files, planned, damage=printable(str(error)))
    requested = {name: getattr(record, name) for name in REQUESTED}
    if record.published is not None:
        requested["architecture"] = arm_of_published(record.architecture, record.published)
    return StoredRun(run_id, sweep, files, requested, record)


@lru_cache(maxsize=4096)
def _warn_once(damage: str) -> None:
    """A launch reads its results several times."""
    log.warning(damage)
