"""Directories that appear whole, and SAEs in folders of their own, as SAELens and we load them, with a model card."""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from analysis.export.choice import Chosen
from sae_core.errors import ConfigError
from sae_core.files import check_tensors, read_json
from sae_core.layout import CFG, SPARSITY, WEIGHTS
from sae_core.sparsity_file import write_sparsity

CARD = "README.md"
"""Name of the model card, which the Hub shows."""


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """A temporary directory beside `path` to write to. It takes the place of `path` once all is written; after an error it is gone.

    Raises:
        ConfigError: there is something at `path`.
    """
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise ConfigError(
            f"`--to` must be a new or empty directory, because a set is every file in it, but got {str(path)!r}, which holds something. "
            "Choose another, or remove it."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield temporary
        temporary.chmod(0o755)
        temporary.replace(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def write_folders(runs: Sequence[Chosen], to: Path, card: str) -> list[Path]:
    """Copy each run's SAE to `to`/<run id>, byte for byte, and write the card.

    A folder holds cfg.json, sae_weights.safetensors, and of an evaluated run sparsity.safetensors.

    Returns:
        The folders, in the order of the runs.

    Raises:
        DamagedFileError: a file is not what was written.
        ConfigError: there is something at `to`.
    """
    with new_directory(to) as temporary:
        for run in runs:
            folder = temporary / name_of(run)
            folder.mkdir()
            read_json(run.directory / CFG)  # all are checked before they are copied
            check_tensors(run.directory / WEIGHTS)
            for name in (CFG, WEIGHTS):
                shutil.copyfile(run.directory / name, folder / name)
            _write_sparsity(run, folder)
        (temporary / CARD).write_text(card, encoding="utf-8")
    return [to / name_of(run) for run in runs]


def _write_sparsity(chosen: Chosen, folder: Path) -> None:
    """sparsity.safetensors: a copy, or of results of earlier versions made from what is known of the latents; none of other runs."""
    from safetensors.numpy import load_file

    stored, latents, record = chosen.directory / SPARSITY, chosen.run.paths.latents, chosen.run.record
    if stored.is_file():
        check_tensors(stored)
        shutil.copyfile(stored, folder / SPARSITY)
    elif latents.is_file() and record is not None and record.eval_tokens:
        check_tensors(latents)
        write_sparsity(folder, load_file(latents)["times_active"], record.eval_tokens)


def name_of(run: Chosen) -> str:
    """Name of a run's folder: its id, and the text it was measured on where that is part of the id, without characters of URLs."""
    return run.run_id.replace("@", "-")
