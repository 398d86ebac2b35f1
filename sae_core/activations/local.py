"""Copies of shards on a node's own disk, in front of shared storage: each is made once per node, by the first trial that reads it."""

import errno
import fcntl
import shutil
import socket
from pathlib import Path

from sae_core.errors import DamagedFileError, reason_of
from sae_core.files import check_tensors, checksum_in, written_whole

SPARE_BYTES = 2**30
"""Disk that copies leave free."""


class LocalCopies:
    """Copies below a directory, which trials of a node share. Nothing here removes them.

    Args:
        directory: on the node's own disk.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.problem = ""
        """Why shards are read from shared storage; empty if they are not."""

    def path(self, shard: Path) -> Path:
        """A copy with the same checksum, made now if there is none; `shard` itself where there can be none."""
        try:
            return self._copy(shard, self.directory / shard.parent.name / shard.name)
        except (OSError, DamagedFileError) as error:  # if the shard itself is damaged, whoever opens it says so
            where = f"{str(self.directory)!r} on {socket.gethostname()}"
            self.problem = f"local cache: {where} does not hold all activations, the rest is read from shared storage: {reason_of(error)}"
            return shard

    def _copy(self, shard: Path, copy: Path) -> Path:
        checksum = checksum_in(shard)
        if checksum is None:
            return shard
        if not _is_sound(copy, checksum):
            copy.parent.mkdir(parents=True, exist_ok=True)
            with copy.with_suffix(".lock").open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)  # another trial may be copying it; a disk of a node has locks
                if not _is_sound(copy, checksum):
                    _make(shard, copy)
        return copy


def _is_sound(copy: Path, checksum: str) -> bool:
    """Whether a copy is there, undamaged, and of this content: a shard that is made again on other hardware may differ in its last bits."""
    try:
        return checksum_in(copy) == checksum and check_tensors(copy)
    except (FileNotFoundError, NotADirectoryError, DamagedFileError):
        return False


def _make(shard: Path, copy: Path) -> None:
    for left in copy.parent.glob(f".{copy.name}.*"):  # of trials that were killed: who copies holds the lock
        left.unlink()
    n_bytes = shard.stat().st_size
    if shutil.disk_usage(copy.parent).free < n_bytes + SPARE_BYTES:
        raise OSError(errno.ENOSPC, f"there must be room for {n_bytes / 2**20:.0f} MiB and {SPARE_BYTES / 2**30:.0f} GiB free beside it")
    with written_whole(copy) as temporary:
        shutil.copyfile(shard, temporary)
        check_tensors(temporary)
