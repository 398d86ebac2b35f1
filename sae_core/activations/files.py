"""Files: their content as a hash, tensors written whole or not at all, and names that are no path."""

import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from sae_core.records import written_whole


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
    """Write a safetensors file so that a reader sees all of it or none."""
    with written_whole(path) as temporary:
        save_file(dict(tensors), temporary, metadata=dict(metadata) if metadata else None)
