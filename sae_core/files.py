"""Files that are complete and unchanged, or noticed: atomic writes, and checksums inside JSON and safetensors files. No torch.

A checksum is xxh3-128, in hexadecimal: a file is read from memory no faster than it is hashed. It lies inside the file that it is of, so
that a kill between two writes cannot part them:

    JSON                the last key, "checksum", of everything else, keys sorted
    other text          elsewhere: whoever writes it keeps what `write_json_lines` or `checksum_of` returns
    safetensors         the metadata key "checksum", of the whole file with zeros in its place

Files without one, written by other programs or earlier versions, are read as they are.
"""

import json
import math
import mmap
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import xxhash

from sae_core.errors import DamagedFileError

CHECKSUM = "checksum"
"""Key of the checksum in JSON and in the metadata of safetensors files."""
NO_CHECKSUM_YET = "0" * 32
"""Value of the metadata key until `seal_tensors` puts the checksum in its place."""
_MARK = f'"{CHECKSUM}":"'.encode()
"""Stands before the checksum in the header of a safetensors file, which is JSON without spaces."""
_BYTES_AT_A_TIME = 2**24


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to. It takes the place of `path` once it is whole and on disk; after an error it is gone."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Mapping[str, Any], *, checksum: bool = True) -> None:
    """Write `content` as JSON, with its checksum, atomically. NaN and infinity become null."""
    finite = finite_or_none(dict(content))
    extra = {CHECKSUM: _checksum_of(finite)} if checksum else {}
    write_text(path, json.dumps({**finite, **extra}, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """What `write_json` wrote, or another program.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedFileError: it is not a JSON object, or not the one that was written.
    """
    with _damage_noticed(path):
        _check_regular(path)
        content = json.loads(Path(path).read_text(encoding="utf-8-sig"), object_pairs_hook=_unique)
        if not isinstance(content, dict):
            raise ValueError(f"it holds {type(content).__name__}, not an object")
        checksum = content.pop(CHECKSUM, None)
        if checksum is not None and checksum != _checksum_of(content):
            raise ValueError("its checksum does not match its content")
        return content


def write_json_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> str:
    """Write one JSON object per line, atomically. NaN and infinity become null. Returns the checksum of the file."""
    text = "".join(json.dumps(finite_or_none(dict(row)), allow_nan=False) + "\n" for row in rows)
    write_text(path, text)
    return checksum_of(text.encode())


def read_json_lines(path: Path, checksum: str | None = None) -> list[dict[str, Any]]:
    """The rows that `write_json_lines` wrote; empty where there is no file. A last line that was cut off is left out.

    Args:
        checksum: what `write_json_lines` returned, where that is known.

    Raises:
        DamagedFileError: a line is not a JSON object, or the checksum does not match.
    """
    if not Path(path).is_file():
        return []
    with _damage_noticed(path):
        content = Path(path).read_bytes()
        check_content(content, checksum)
        lines = content.decode().split("\n")[:-1]  # every complete line ends in a newline
        rows = [json.loads(line) for line in lines if line.strip()]
        if not all(isinstance(row, dict) for row in rows):
            raise ValueError("a line is not a JSON object")
        return rows


def state_of(path: Path) -> tuple[int, int, int]:
    """What changes when a file is written again, without reading it.

    Raises:
        OSError: it cannot be found.
    """
    stat = path.stat()
    return stat.st_ino, stat.st_mtime_ns, stat.st_size


def checksum_of(content: bytes) -> str:
    """The checksum of a file with this content."""
    return xxhash.xxh3_128_hexdigest(content)


def check_content(content: bytes, checksum: str | None) -> None:
    """Make sure that a file has the content that a checksum is of, where that is known.

    Raises:
        ValueError: it has not.
    """
    if checksum is not None and checksum != checksum_of(content):
        raise ValueError("its checksum does not match its content")


def seal_tensors(path: Path) -> None:
    """Put the checksum into a safetensors file that was saved with `NO_CHECKSUM_YET` in its metadata."""
    with Path(path).open("r+b") as file:
        place = _place_of_checksum(file.fileno())
        assert place is not None, f"{path=} was saved without a place for its checksum"
        digest = _digest_of_tensors(file.fileno(), place)
        file.seek(place)
        file.write(digest.encode())


def check_tensors(path: Path) -> bool:
    """Make sure that a safetensors file is as it was written. A file is read once per process as long as it does not change.

    Returns:
        Whether it has a checksum.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedFileError: it is not a safetensors file, or not the one that was written.
    """
    with _damage_noticed(path):
        _check_regular(path)
        state = Path(path).stat()
        return _checked(str(path), state.st_ino, state.st_mtime_ns, state.st_ctime_ns, state.st_size)


def checksum_in(path: Path) -> str | None:
    """The checksum that a safetensors file says it has, without reading its tensors; None where it says none.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedFileError: it is not a safetensors file.
    """
    with _damage_noticed(path), Path(path).open("rb") as file:
        place = _place_of_checksum(file.fileno())
        return None if place is None else os.pread(file.fileno(), len(NO_CHECKSUM_YET), place).decode()


def existing(name: str) -> Path | None:
    """The path of this name; None where nothing is there, or there cannot be."""
    try:
        path = Path(name).expanduser()
        return path if path.exists() else None
    except (OSError, ValueError, RuntimeError):  # too long, no text, or the home directory of nobody
        return None


def finite_or_none(value: Any) -> Any:
    """`value` with every NaN or infinite float inside dicts, lists and tuples replaced by None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite_or_none(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite_or_none(item) for item in value]
    return value


def _check_regular(path: Path) -> None:
    """Refuse what would be waited for, such as a named pipe."""
    if not stat.S_ISREG(Path(path).stat().st_mode):
        raise ValueError("it is no regular file")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, whose keys may not repeat: which value counts would be a guess."""
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"it has the key {next(key for key in keys if keys.count(key) > 1)!r} more than once")
    return content


@contextmanager
def _damage_noticed(path: Path) -> Iterator[None]:
    """Whatever is raised while a file is read, but that it is not there, says that the file is damaged."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError, DamagedFileError):
        raise
    except Exception as error:
        raise DamagedFileError.of(path, error) from error


@lru_cache(maxsize=4096)
def _checked(path: str, *state: int) -> bool:
    """As `check_tensors`; `state` is another one once the file was written again."""
    with Path(path).open("rb") as file:
        place = _place_of_checksum(file.fileno())
        if place is None:
            return False
        if os.pread(file.fileno(), len(NO_CHECKSUM_YET), place) != _digest_of_tensors(file.fileno(), place).encode():
            raise ValueError("its checksum does not match its content")
        return True


def _place_of_checksum(file: int) -> int | None:
    """Where in a safetensors file the checksum stands; None where it has none."""
    length = int.from_bytes(os.pread(file, 8, 0), "little")
    if not 0 < length <= os.fstat(file).st_size - 8:
        raise ValueError("it is not a safetensors file, or cut off")
    header = os.pread(file, length, 8)
    if not isinstance(json.loads(header), dict):
        raise ValueError("it is not a safetensors file")
    found = header.find(_MARK)
    return None if found < 0 else 8 + found + len(_MARK)


def _digest_of_tensors(file: int, place: int) -> str:
    """Checksum of a safetensors file as it was before the checksum was put in its place."""
    digest = xxhash.xxh3_128()
    end = place + len(NO_CHECKSUM_YET)
    with mmap.mmap(file, 0, access=mmap.ACCESS_READ) as content, memoryview(content) as view:
        digest.update(view[:place])
        digest.update(NO_CHECKSUM_YET.encode())
        for start in range(end, len(view), _BYTES_AT_A_TIME):
            digest.update(view[start : start + _BYTES_AT_A_TIME])
    return digest.hexdigest()


def _checksum_of(content: Mapping[str, Any]) -> str:
    return checksum_of(json.dumps(content, sort_keys=True, separators=(",", ":")).encode())
