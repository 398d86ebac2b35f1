"""Start from a mirror: fetch what is there and missing here. Everything is verified before it takes its place.

Results on this side are the truth: no file here is replaced.
"""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from sae_core.config.run import RunConfig
from sae_core.errors import ConfigError, border
from sae_core.layout import CFG, WEIGHTS, RunPaths
from sweeps.storage.mirror import Mirror
from sweeps.storage.store import Store
from sweeps.storage.verify import verify

_REMEDY = "Check its name, the network and permissions, or leave `--mirror` out."


def fetch(mirror: Mirror, runs: Sequence[RunConfig], note: Callable[[str], None]) -> None:
    """Fetch finished runs, and checkpoints of runs that are not finished.

    Args:
        runs: of the sweep, to see that the mirror is of the same one.
        note: is told what was fetched, and what is damaged there.

    Raises:
        ConfigError: the mirror cannot be read or written to, or is of something else.
    """
    paths = mirror.paths
    with border(f"`--mirror` must be readable and writable, but got {mirror.url!r}", _REMEDY):
        mirror.check_writable()
        names = mirror.names()
        in_records = [mirror.at(name) for name in names if name.endswith(f"/{paths.run('').record.name}")]
        records = mirror.fs.cat(in_records) if in_records else {}
    facts, runs_name = paths.facts.name, paths.runs.name
    if names and not any(name == facts or name.split("/")[0] == runs_name for name in names):
        raise ConfigError(f"`--mirror` must be empty or a sweep's, but {mirror.url!r} holds {sorted(names)[:5]}. Choose another URL.")
    with tempfile.TemporaryDirectory(prefix=".mirror-", suffix=".tmp", dir=paths.directory) as directory:
        staged = Store(directory)
        wanted = [name for name in sorted(names) if _is_missing(paths.directory / name, mirror, names)]
        with border(f"`--mirror` must be readable, but got {mirror.url!r}", _REMEDY):
            fetched = [*wanted, *({facts} & names - {*wanted})]
            for name in fetched:
                (staged.directory / name).parent.mkdir(parents=True, exist_ok=True)
            if fetched:
                mirror.fs.get([mirror.at(name) for name in fetched], [str(staged.directory / name) for name in fetched])
        if differences := staged.differences(runs):
            raise ConfigError(f"`--mirror` must hold this sweep, but {mirror.url!r} holds another: {differences}. Choose another URL.")
        _take(mirror, staged, wanted, note)
    for run_id in paths.run_ids():
        content = records.get(mirror.at(f"{runs_name}/{run_id}/{paths.run('').record.name}"))
        if content == paths.run(run_id).record.read_bytes():
            mirror.note_copied(run_id)


def _is_missing(file: Path, mirror: Mirror, names: set[str]) -> bool:
    """Whether a file there is to be fetched: the sweep's own ones where there is no sweep yet, those of a run only with its record."""
    paths = mirror.paths
    if paths.runs not in file.parents:
        own = file == paths.facts or file == paths.definition or file.parent in (paths.definitions, paths.search)
        return own and not paths.facts.exists()
    run = paths.run(file.relative_to(paths.runs).parts[0])
    if run.record.exists() or file == run.directory:
        return False
    has_record = run.record.relative_to(paths.directory).as_posix() in names
    if has_record:
        return file != run.checkpoint
    return (file == run.checkpoint or run.variants in file.parents) and not file.exists()


def _take(mirror: Mirror, staged: Store, names: Sequence[str], note: Callable[[str], None]) -> None:
    """Move what was fetched to its place, a run's record last; what is damaged is left out."""
    paths = mirror.paths
    damaged = {damage.path: damage.reason for damage in verify(staged.directory).files}
    n_runs = n_checkpoints = 0
    for name in names:
        file = staged.directory / name
        if staged.paths.runs not in file.parents and file not in damaged:
            _move(file, paths.directory / name)
    for directory in sorted(staged.paths.runs.glob("*/")):
        here, there = paths.run(directory.name), staged.paths.run(directory.name)
        bad = [f"{path.name}: {reason}" for path, reason in damaged.items() if directory in path.parents]
        record = staged.read_record(directory.name) if there.record.exists() and not bad else None
        if record is not None and record.status in ("trained", "finished"):
            files = [there.config, there.history, there.sae / CFG, there.sae / WEIGHTS]
            files += [there.documents, there.latents] if record.documents_checksum else []
            bad += [f"{file.name} is missing" for file in files if not file.exists()]
        if bad:
            what = "run" if there.record.exists() else "checkpoint of"
            note(f"mirror: {what} {directory.name} is damaged at {mirror.url} and not used: {'; '.join(bad)}")
        elif record is None:
            for file in sorted(path for path in there.variants.rglob("*") if path.is_file()):
                _move(file, here.directory / file.relative_to(there.directory))
            if there.checkpoint.exists():
                _move(there.checkpoint, here.checkpoint)
                n_checkpoints += 1
        else:
            _take_run(there, here)
            n_runs += 1
    if n_runs or n_checkpoints:
        note(f"mirror: {n_runs} runs with a record and {n_checkpoints} checkpoints fetched from {mirror.url}")


def _take_run(there: RunPaths, here: RunPaths) -> None:
    for file in sorted(path for path in there.directory.rglob("*") if path.is_file() and path != there.record):
        _move(file, here.directory / file.relative_to(there.directory))
    _move(there.record, here.record)
    here.checkpoint.unlink(missing_ok=True)


def _move(file: Path, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    file.replace(place)
