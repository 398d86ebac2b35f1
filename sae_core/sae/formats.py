"""The formats that SAEs are read from, told apart by the name of the file with the weights."""

from collections.abc import Callable, Iterable
from pathlib import Path

from sae_core.config.run import ARCHITECTURES
from sae_core.errors import ConfigError
from sae_core.layout import WEIGHTS
from sae_core.plugins import load as load_plugins
from sae_core.sae import dictionary_learning_files, gemma_scope_files, saelens_files, sparsify_files
from sae_core.sae.saelens_files import StoredSAE

READERS: dict[str, Callable[[Path], StoredSAE]] = {
    dictionary_learning_files.WEIGHTS: dictionary_learning_files.read,
    sparsify_files.WEIGHTS: sparsify_files.read,
    gemma_scope_files.FIRST: gemma_scope_files.read_first,
    gemma_scope_files.SECOND: gemma_scope_files.read_second,
}
"""File with the weights -> reader of the folder, of every format but SAELens', whose reader needs to know our architectures."""
_MOST_LISTED = 20


def foreign_reader(directory: Path) -> Callable[[Path], StoredSAE] | None:
    """The reader of a folder of another program; None for SAELens' format, and where there are no weights at all.

    Raises:
        ConfigError: the folder has the weights of several formats.
    """
    found = [name for name in (WEIGHTS, *READERS) if (directory / name).is_file()]
    if len(found) > 1:
        raise ConfigError(
            f"a folder must have one SAE, but {str(directory)!r} has the weights {found}, of several formats. "
            "Move the one that you do not mean to another folder."
        )
    return READERS.get(found[0]) if found else None


def check_not_above(directory: Path, name: str) -> None:
    """Make sure that a directory is no folder of SAEs' folders.

    Args:
        name: of the directory, for the message.

    Raises:
        ConfigError: it has no weights, and folders in it have.
    """
    if foreign_reader(directory) is None and not (directory / WEIGHTS).is_file() and directory.is_dir():
        inside = sorted(
            path.name for path in directory.iterdir() if path.is_dir() and any((path / own).is_file() for own in (WEIGHTS, *READERS))
        )
        if inside:
            listed = f"{inside[:_MOST_LISTED]}" + (f" and {len(inside) - _MOST_LISTED} more" if len(inside) > _MOST_LISTED else "")
            raise ConfigError(f"a folder must have one SAE, but {name!r} has {len(inside)} folders of SAEs: {listed}. Name one of them.")


def read(directory: Path, plugins: Iterable[str]) -> StoredSAE:
    """Import plugins, then read a folder of any of the formats.

    Args:
        plugins: modules or files to import, beside those that cfg.json of SAELens' format names where its architecture is unknown.

    Raises:
        ConfigError: the folder says something that is not known here, or has the weights of several formats.
        Exception: whatever reading what is not such a folder raises.
    """
    check_not_above(directory, str(directory))
    if (foreign := foreign_reader(directory)) is not None:
        load_plugins(plugins)
        return foreign(directory)
    load_plugins([*plugins, *saelens_files.plugins_needed(directory, ARCHITECTURES)])
    ours = {name: cls.Config.model_fields for name, cls in ARCHITECTURES.items() if cls.saelens_architecture is None}
    return saelens_files.read(directory, ours)
