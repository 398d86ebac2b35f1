"""A copy of a sweep's results at a URL, any that fsspec opens. `mirror_fetch.py` starts from it, `mirror_copying.py` keeps it current.

The files lie below the URL as they do in the results directory. A run's record is copied last, so a run is there in full or not at all.
"""

import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from sae_core.errors import ConfigError, border
from sae_core.files import state_of
from sae_core.layout import RunPaths
from sweeps.storage.store import Store

ANSWER_SECONDS = 8.0
"""Time in which a mirror must answer when a launch begins."""
_WRITABLE = ".writable"
"""An empty file that is written to see whether the URL can be written to."""


@dataclass(frozen=True, slots=True)
class Copy:
    """Files to be copied together."""

    name: str
    """Of the file or directory, relative to the results directory."""
    files: list[Path]
    """In the order in which they are copied."""
    state: tuple[int, int, int]
    """Of the last one: `files.state_of`."""


class Mirror:
    """The mirror of a sweep.

    Args:
        url: without a password or key: those belong into the environment.
        store: what is mirrored.

    Raises:
        ConfigError: the URL cannot be opened, or holds a secret.
    """

    def __init__(self, url: str, store: Store) -> None:
        self.store, self.paths, self.url = store, store.paths, url
        check_url(url)
        remedy = "Correct it, or install what is missing: `pip install 'sae-sweep[s3]'` for s3://."
        with border(f"`--mirror` must be a URL that fsspec opens, e.g. s3://bucket/prefix, but got {url!r}", remedy):
            import fsspec

            self.fs, root = fsspec.url_to_fs(url)
            self._root = str(root).rstrip("/")
        here, there = store.directory, Path(self._root)
        if "file" in self.fs.protocol and (here == there or here in there.parents or there in here.parents):
            raise ConfigError(f"`--mirror` must lie outside of the results, but got {url!r} and {str(here)!r}. Choose another.")
        self._copied: dict[str, tuple[int, int, int]] = {}
        """What is there as it is here."""
        self._checkpoints: set[str] = set()
        """Runs whose checkpoints are there."""

    def names(self) -> set[str]:
        """Every file there, relative to the URL; but those that start with a dot, anywhere in their path."""
        self.fs.invalidate_cache()
        names = {str(path)[len(self._root) :].lstrip("/") for path in self.fs.find(self._root)}
        names = {name for name in names if all(part and part[0] != "." for part in name.split("/"))}
        self._checkpoints = {name.split("/")[1] for name in names if name.endswith(f"/{self.paths.run('').checkpoint.name}")}
        return names

    def at(self, name: str) -> str:
        """What fsspec calls a file there."""
        return f"{self._root}/{name}"

    def check_writable(self) -> None:
        """Write an empty file. Raises whatever fsspec does, and TimeoutError where it tries for too long."""
        failure: list[Exception] = [TimeoutError(f"no answer within {ANSWER_SECONDS:.0f} s")]

        def write() -> None:
            try:
                self._make_parent(_WRITABLE)
                self.fs.pipe_file(self.at(_WRITABLE), b"")
                failure.clear()
            except Exception as error:
                failure[:] = [error]

        thread = threading.Thread(target=write, name="mirror", daemon=True)
        thread.start()
        thread.join(ANSWER_SECONDS)
        for error in failure:
            raise error

    def note_copied(self, run_id: str) -> None:
        """Note that a run is there as it is here."""
        self._copied[self._name(self.paths.run(run_id).directory)] = state_of(self.paths.run(run_id).record)

    def pending(self) -> Iterator[Copy]:
        """What is not there yet, but checkpoints: the sweep's own files, then finished runs, then table and report."""
        paths = self.paths
        for file in (paths.facts, paths.definition, *_files(paths.definitions), *_files(paths.search)):
            yield from self._pending(file, [])
        for run_id in paths.run_ids():
            yield from self._pending_run(paths.run(run_id))
        for file in (paths.table_csv, paths.table_parquet, paths.stability, *_files(paths.report)):
            yield from self._pending(file, [])

    def pending_checkpoints(self) -> Iterator[Copy]:
        """Checkpoints that are not there as they are here."""
        for file in sorted(self.paths.runs.glob(f"*/{self.paths.run('').checkpoint.name}")):
            for variant in RunPaths(file.parent).recorded_variants():  # what resumes from the checkpoint does not make them again
                yield from self._pending_run(variant)
            yield from self._pending(file, [])

    def _pending_run(self, run: RunPaths) -> Iterator[Copy]:
        """The files of a run with a record, after those of its variants."""
        for variant in run.recorded_variants():
            yield from self._pending_run(variant)
        files = [run.config, run.history, run.documents, run.latents, *_files(run.sae)]
        yield from self._pending(run.record, files, name=self._name(run.directory))

    def copy(self, job: Copy) -> None:
        """Copy files there. Raises whatever fsspec does."""
        for file in job.files:
            if file.exists():
                self._put(file, self._name(file))
        self._copied[job.name] = job.state
        run = self.paths.run(job.files[-1].parent.name)
        if job.files[-1] == run.checkpoint:
            self._checkpoints.add(run.directory.name)
        elif job.files[-1] == run.record and run.directory.name in self._checkpoints:
            self._checkpoints.remove(run.directory.name)
            with suppress(Exception):  # it is only in the way
                self.fs.rm_file(self.at(self._name(run.checkpoint)))

    def _put(self, file: Path, name: str) -> None:
        self._make_parent(name)
        if "file" not in self.fs.protocol:
            self.fs.put_file(str(file), self.at(name))
            return
        directory, _, last = self.at(name).rpartition("/")
        self.fs.put_file(str(file), f"{directory}/.{last}.tmp")
        self.fs.mv(f"{directory}/.{last}.tmp", self.at(name))  # so that a launch that is killed leaves no half of a file

    def _pending(self, file: Path, others: list[Path], name: str = "") -> Iterator[Copy]:
        name = name or self._name(file)
        with suppress(FileNotFoundError):
            state = state_of(file)
            if self._copied.get(name) != state:
                yield Copy(name, [*others, file], state)

    def _name(self, path: Path) -> str:
        return path.relative_to(self.paths.directory).as_posix()

    def _make_parent(self, name: str) -> None:
        if not self.fs.async_impl:  # stores of objects, which have no directories, are asynchronous
            self.fs.makedirs(self.at(name).rpartition("/")[0], exist_ok=True)


def check_url(url: str) -> None:
    """Refuse a URL with a secret: it would be seen in lists of processes, and by loggers.

    Raises:
        ConfigError: it holds one.
    """
    with border("`--mirror` must be a URL, but it cannot be read", "Correct it."):
        parts = urlsplit(url)
    if parts.username or parts.password or parts.query:
        shown = f"{parts.scheme}://***{parts.netloc.rpartition('@')[2]}{parts.path}"
        raise ConfigError(
            f"`--mirror` must hold no user, password or key, but got {shown!r}. Put them where its fsspec backend looks: AWS_* or "
            f"~/.aws for s3://, otherwise variables such as FSSPEC_{parts.scheme.upper()}_PASSWORD."
        )


def _files(directory: Path) -> list[Path]:
    """Every file below a directory, but temporary ones."""
    return sorted(path for path in directory.rglob("*") if path.is_file() and path.name[0] != ".")
