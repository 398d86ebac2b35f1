"""The demo's model and text: both are there after installation, nothing is downloaded.

The text is the Python source of packages that this project depends on anyway. It is a function of their installed versions:
other versions give a slightly different text, hence another hash of the activations, which is correct.
"""

import hashlib
import importlib.metadata
import importlib.resources
import logging
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

from sae_core.errors import ConfigError, DamagedFileError
from sae_core.files import read_json, write_json, written_whole

logger = logging.getLogger(__name__)

PACKAGES = ("matplotlib", "networkx", "numpy", "optuna", "pandas", "sympy")
"""Distributions whose source is the text."""
LEFT_OUT = frozenset({"tests", "test", "testing", "_examples"})
"""Directories that are skipped: much of a kind, little of it code to learn from."""
LEAST_CHARACTERS, MOST_CHARACTERS = 500, 200_000
HELD_OUT_ONE_IN = 10


def model_directory() -> Path:
    """The demo's language model, in Hugging Face layout."""
    return Path(str(importlib.resources.files("sweeps.demo"))) / "code-4l"


def demo_text_file(cache: Path) -> Path:
    """Where the demo's text is, once written: other versions of the packages are another file."""
    # A package that is missing is found, and reported, when the text is written.
    installed = {found.name.lower(): found.version for package in PACKAGES for found in importlib.metadata.distributions(name=package)}
    versions = " ".join(f"{name}=={installed.get(name, '')}" for name in PACKAGES)
    return cache.absolute() / f"demo-text-{hashlib.sha256(versions.encode()).hexdigest()[:12]}.parquet"


def demo_text(cache: Path) -> Path:
    """The demo's text in `cache`, written where it does not exist or is not what was written."""
    path = demo_text_file(cache)
    checksum = path.with_suffix(".json")
    if path.exists():
        with suppress(FileNotFoundError, DamagedFileError):
            if read_json(checksum).get("sha256") == _digest(path):
                return path
        logger.warning("the demo's text %s was changed: it is written again.", path)
    write_corpus(path)
    write_json(checksum, {"sha256": _digest(path)})
    return path


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_corpus(path: Path) -> None:
    """Write the text as a parquet file: columns `text`, `path`, `package`, `split` (train or heldout), one row per source file.

    Rows are ordered by the hash of their path, which also decides what is held out. The file appears whole or not at all.

    Raises:
        ConfigError: a package is not installed, or without a list of its files.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = sorted(_source_files())
    table = pa.table(
        {
            "text": [text for _, _, _, text in rows],
            "path": [name for _, name, _, _ in rows],
            "package": [package for _, _, package, _ in rows],
            "split": ["heldout" if int(key, 16) % HELD_OUT_ONE_IN == 0 else "train" for key, _, _, _ in rows],
        }
    )
    with written_whole(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def _source_files() -> Iterator[tuple[str, str, str, str]]:
    """Hash of the path, path, package and text of every file of the corpus."""
    for package in PACKAGES:
        for file in _listed_files(package):
            name = PurePosixPath(file).as_posix()
            if file.suffix != ".py" or LEFT_OUT & set(file.parts):
                continue
            try:
                text = Path(str(file.locate())).read_bytes().decode("utf-8")
            except (UnicodeDecodeError, FileNotFoundError):
                continue
            if LEAST_CHARACTERS <= len(text) <= MOST_CHARACTERS:
                yield hashlib.sha256(name.encode()).hexdigest(), name, package, text


def _listed_files(package: str) -> list[importlib.metadata.PackagePath]:
    try:
        files = importlib.metadata.distribution(package).files
    except importlib.metadata.PackageNotFoundError:
        files = None
    if not files:
        raise ConfigError(f"the demo's text needs the files of {list(PACKAGES)}, but got none of {package!r}. Run `pip install {package}`.")
    return files
