"""Local directories of text: which files are read, and which split each belongs to.

The datasets library decides that, by file names and the header of a README, but takes a path for a pattern and writes into its cache. So
it is shown a directory of links to the files, in a temporary directory.
"""

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sae_core.activations.language_model.rows import check_file, file_format
from sae_core.errors import ConfigError
from sae_core.files import read_json

CACHE_FILES = ("cache-*.arrow", "tmp*.arrow", "*.lock", "*.pyc")
"""What libraries write beside data."""


def is_saved_dataset(path: Path) -> bool:
    """Whether the datasets library saved it with `save_to_disk`."""
    return (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()


def saved_splits(path: Path) -> Mapping[str, Any]:
    """Split -> the dataset that was saved; a single one is called train.

    Raises:
        Exception: whatever the datasets library raises for one that is not complete.
    """
    import datasets

    with tempfile.TemporaryDirectory(prefix="sae-sweep-") as temporary:
        link = Path(temporary) / "saved"
        link.symlink_to(path)
        saved = datasets.load_from_disk(str(link if "::" in str(path) else path))  # it takes what is before :: for a protocol
    return dict(saved.items()) if isinstance(saved, dict) else {"train": saved}


def files_of_splits(path: Path, subset: str | None) -> Mapping[str, list[Path]] | None:
    """Split -> the files it is read from; None where some are of formats that `rows` does not read.

    Raises:
        Exception: whatever the datasets library raises for a directory it cannot make sense of.
        ConfigError: the directory has a loading script.
    """
    files = _data_files(path, subset)
    return files if all(file_format(file) for names in files.values() for file in names) else None


def other_splits(path: Path, subset: str | None) -> Mapping[str, Any]:
    """Split -> a streamed dataset, of formats that only the datasets library reads."""
    import datasets

    return dict(datasets.load_dataset(str(path), subset, streaming=True))


def files_read(path: Path, subset: str | None) -> list[Path]:
    """The files of a directory that decide the text: not those that a library, a file browser or a version control wrote beside them."""
    if is_saved_dataset(path):
        return sorted(_saved_files(path))
    found = {file for files in _data_files(path, subset).values() for file in files}
    readme = path / "README.md"
    return sorted(found | {readme}) if _decides(readme) else sorted(found)


def _decides(readme: Path) -> bool:
    """Whether a README has a header that says which files are which split."""
    if not readme.is_file():
        return False
    text = readme.read_text(encoding="utf-8", errors="replace")
    return text.startswith("---") and "configs:" in text


def _saved_files(path: Path) -> Iterator[Path]:
    """The files of a saved dataset, or of a saved dictionary of datasets."""
    if (path / "dataset_dict.json").is_file():
        yield path / "dataset_dict.json"
        for split in read_json(path / "dataset_dict.json").get("splits", []):
            yield from _saved_files(path / split)
        return
    yield from (path / name for name in ("dataset_info.json", "state.json") if (path / name).is_file())
    yield from (path / one["filename"] for one in read_json(path / "state.json").get("_data_files", []))


def _data_files(path: Path, subset: str | None) -> Mapping[str, list[Path]]:
    """Split -> its files, as the datasets library finds them."""
    import datasets

    script = path / f"{path.name}.py"
    if script.is_file():
        raise ConfigError(
            f"`data.dataset` must be a directory of data files, but got {str(path)!r} with the loading script {script.name!r}, which no "
            "current version of datasets runs. Convert the data to parquet, or remove the script if the files beside it are the data."
        )
    with tempfile.TemporaryDirectory(prefix="sae-sweep-") as temporary:
        directory = Path(temporary).resolve() / "data"
        originals = _link_files(path, directory)
        builder = datasets.load_dataset_builder(str(directory), subset, cache_dir=f"{temporary}/cache")
        found = builder.config.data_files or {}
        return {str(split): [originals[Path(name)] for name in names] for split, names in found.items()}


def _link_files(path: Path, directory: Path) -> Mapping[Path, Path]:
    """Fill a new directory with links to the files of `path` that are data. Returns link -> file."""
    originals = {}
    for file in sorted(path.rglob("*")):
        relative = file.relative_to(path)
        hidden = any(part.startswith((".", "__")) for part in relative.parts)
        left_out = hidden or any(file.match(pattern) for pattern in CACHE_FILES) or (file == path / "README.md" and not _decides(file))
        if not left_out and (file.is_file() or (file.is_symlink() and not file.exists() and file_format(file))):
            check_file(file)
            originals[directory / str(relative).replace("::", "__")] = file
    if not originals:
        raise ValueError("it holds no data files")
    directory.mkdir()
    for link, file in originals.items():
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(file.resolve())
    return originals
