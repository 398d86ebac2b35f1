"""A lease: a file that names the launch holding a directory, with a counter that a thread of the launch raises every few seconds.

It works on any file system, also where nodes do not see each other's locks. No two clocks are compared: whoever wants the directory
watches the counter on its own monotonic clock, and a lease whose counter has not changed for `DEAD_SECONDS` is no longer held.
"""

import hashlib
import json
import os
import secrets
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

BEAT_SECONDS = 5.0
"""Time between two renewals of a lease."""
DEAD_SECONDS = 60.0
"""A lease that did not change for so long while it was watched is no longer held."""
LOST_SECONDS = 40.0
"""A holder that could not renew its lease for so long gives it up, before anybody may take it."""
_POLL_SECONDS = 1.0
_MOST_BYTES = 4096


class LeaseLostError(RuntimeError):
    """The directory is no longer this launch's. The command line prints it and exits with 1."""


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a lease."""

    launch: str
    """Random; another one for each launch."""
    host: str
    pid: int
    boot: str
    """Of the running system: the same for all its processes, also in containers."""

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


def this_process() -> Holder:
    """A new launch of this process."""
    return Holder(secrets.token_hex(8), socket.gethostname(), os.getpid(), boot())


def boot() -> str:
    """Id of the running system."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:  # not Linux
        return f"{socket.gethostname()}-{uuid.getnode():x}"


def read_lease(path: Path) -> tuple[Holder | None, bytes]:
    """Who holds a lease, None where the file does not say, and its content, which changes at each renewal.

    Raises:
        FileNotFoundError: nobody holds it.
    """
    with path.open("rb") as file:  # opened each time: only then does NFS ask its server
        content = file.read(_MOST_BYTES)
    try:
        holder = Holder(**{name: value for name, value in json.loads(content).items() if name != "beat"})
    except (ValueError, TypeError, AttributeError):
        return None, content
    return holder, content


def is_renewed(path: Path, seen: bytes) -> bool:
    """Watch a lease until its content is another than `seen`, at most `DEAD_SECONDS`. False where it did not change, or was given up."""
    began = time.monotonic()
    while True:
        overdue = time.monotonic() - began >= DEAD_SECONDS
        try:
            if read_lease(path)[1] != seen:
                return True
        except FileNotFoundError:
            return False
        if overdue:
            return False
        time.sleep(_POLL_SECONDS)


class Lease:
    """A lease of this process.

    Args:
        lost: called once, from another thread, when the lease could not be kept.
    """

    def __init__(self, path: Path, lost: Callable[[], None]) -> None:
        self.path, self.holder = path, this_process()
        self.reason = ""
        """Why the lease was lost; empty while it is held."""
        self._on_lost = lost
        self._beat = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew_until_end, name="lease", daemon=True)

    def create(self) -> bool:
        """Take the lease, unless its file exists. Whether it was taken."""
        try:
            file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            return False
        try:
            os.write(file, self._content())
            os.fsync(file)
        finally:
            os.close(file)
        return True

    def replace(self, seen: bytes) -> bool:
        """Take a lease that is no longer held, and whose content was `seen`. False where another launch was quicker.

        One launch at a time may replace a lease: the one that made a directory named after its content. The lease itself is never away.
        """
        claim = self.path.with_name(f"{self.path.name}.{hashlib.sha256(seen).hexdigest()[:16]}.tmp")
        try:
            claim.mkdir()
        except FileExistsError:
            if not is_renewed(self.path, seen):
                shutil.rmtree(claim, ignore_errors=True)  # whoever made it died before it had replaced the lease
            return False
        try:
            if not self.path.exists():  # it was given up
                return self.create()
            if read_lease(self.path)[1] != seen:
                return False
            ours = claim / self.holder.launch
            ours.write_bytes(self._content())
            ours.replace(self.path)
            return True
        finally:
            shutil.rmtree(claim, ignore_errors=True)

    def keep(self) -> None:
        """Begin to renew the lease."""
        self._thread.start()

    def check(self) -> None:
        """Make sure that the lease is held.

        Raises:
            LeaseLostError: it is not: nothing more may be written.
        """
        if self.reason:
            raise LeaseLostError(
                f"a launch must hold its results directory, but {str(self.path)!r} was lost: {self.reason}. Nothing more was written; what "
                "is finished is kept. See that no other launch runs there and that it can be written to, then repeat."
            )

    def end(self) -> None:
        """Give the lease up."""
        self._ended.set()
        self._thread.join()
        with suppress(OSError):
            if self._is_ours():
                self.path.unlink()

    def _content(self) -> bytes:
        return json.dumps({**asdict(self.holder), "beat": f"{self._beat:012d}"}).encode()

    def _is_ours(self) -> bool:
        holder, _ = read_lease(self.path)
        return holder is not None and holder.launch == self.holder.launch

    def _renew_until_end(self) -> None:
        renewed = time.monotonic()
        while not self._ended.wait(BEAT_SECONDS):
            try:
                if self._renew():
                    renewed = time.monotonic()
                else:
                    self.reason = "another launch has taken it"
            except OSError as error:
                if time.monotonic() - renewed > LOST_SECONDS:
                    self.reason = f"it could not be written to for {LOST_SECONDS:.0f} s: {error}"
            if self.reason:
                self._on_lost()
                return

    def _renew(self) -> bool:
        """Raise the counter. False where the lease is another launch's."""
        self._beat += 1
        try:
            if not self._is_ours():
                return False
            file = os.open(self.path, os.O_WRONLY)
        except FileNotFoundError:
            return self.create()
        try:
            os.pwrite(file, self._content(), 0)  # of constant length, in place: the file stays the one that is watched
            os.fsync(file)
        finally:
            os.close(file)
        return True
