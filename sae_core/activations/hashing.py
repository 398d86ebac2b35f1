"""Hashes of files, and seeds from several parts: the same in every process and on every machine. Standard library only."""

import hashlib
from collections.abc import Iterable
from pathlib import Path


def hash_files(files: Iterable[Path], root: Path) -> str:
    """Hash of the files' content and of their names relative to `root`; where `root` lies does not matter."""
    total = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        total.update(f"{path.relative_to(root).as_posix()}\0{digest}\n".encode())
    return total.hexdigest()


def seed_of(*parts: int | str) -> int:
    """A seed for `torch.Generator` that depends on every part."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1
