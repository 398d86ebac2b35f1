"""Files: their content as a hash, tensors written whole or not at all, and names that are no path."""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from sae_core.errors import DamagedFileError
from sae_core.files import CHECKSUM, NO_CHECKSUM_YET, check_tensors, seal_tensors, written_whole


def is_hub_name(name: str) -> bool:
    """Whether `name` can be the name of a model or data set on the Hugging Face Hub: `name` or `owner/name`."""
    return re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name) is not None


def hash_files(files: Iterable[Path], root: Path) -> str:
    """Hash of the files' content and of their names relative to `root`, which may be the one file itself; not of where `root` lies."""
    total = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        total.update(f"{path.relative_to(root).as_posix()}\0{digest}\n".encode())
    return total.hexdigest()


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file, with its checksum, so that a reader sees all of it or none."""
    with written_whole(path) as temporary:
        save_file(dict(tensors), temporary, metadata={**(metadata or {}), CHECKSUM: NO_CHECKSUM_YET})
        seal_tensors(temporary)


@contextmanager
def open_tensors(path: Path, device: str | torch.device = "cpu") -> Iterator[Any]:
    """A safetensors file, checked, to read from: `safetensors.safe_open`.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedFileError: it is not what was written.
    """
    check_tensors(path)
    try:
        opened = safe_open(path, framework="pt", device=str(device))
    except Exception as error:
        raise DamagedFileError.of(path, error) from error
    with opened as file:
        yield file


def load_tensors(path: Path, device: str | torch.device = "cpu") -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a safetensors file, checked, and its metadata.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedFileError: it is not what was written.
    """
    with open_tensors(path, device) as file:
        try:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118  not a dict
        except Exception as error:
            raise DamagedFileError.of(path, error) from error
