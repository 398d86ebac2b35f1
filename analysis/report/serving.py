"""The report at an address of this machine, made again whenever a record changes: for looking at a sweep while it runs.

The page asks every other second whether it is still the newest (`templates/explorer.js`), and replaces what it says. What a reader chose
stays. Only this machine can connect, and only by its own name: no page of another site reads it.
"""

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from analysis.report import write_report
from sae_core.errors import ConfigError, reason_of
from sae_core.files import state_of
from sae_core.layout import SweepPaths

log = logging.getLogger(__name__)

HOST = "127.0.0.1"
PORT = 8765
"""Where nothing else is asked for."""
SECONDS = 1.0
"""Between two looks at the records."""
_REST = 2.0
"""A report that takes a second to make is made again after this many at the soonest: a launch needs the processor, too."""


def serve_report(results: Sequence[Path], out: Path | None = None, port: int = PORT, *, say: Callable[[str], None] = log.info) -> Path:
    """Write a report, serve it, and write it again as records change, until Ctrl-C.

    Args:
        results: sweep directories.
        out: as for `write_report`.
        port: 0 for any that is free.
        say: called with the address, once the page is there.

    Returns:
        Path of `report.html`.

    Raises:
        ConfigError: as `write_report`; or the port is taken.
    """
    page = _Page()
    with _listen(port, page) as server:
        page.load(write_report(results, out))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            say(f"The report is at http://{HOST}:{server.server_port}/ and follows the records. Ctrl-C ends this.")
            _follow(results, out, page)
        except KeyboardInterrupt:
            server.shutdown()
    return page.file


class _Page:
    """The newest report."""

    file: Path
    newest: tuple[str, bytes]
    """Its version, and what a browser gets."""

    def load(self, file: Path) -> None:
        """Read it from its file."""
        content = file.read_bytes()
        version = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
        self.file, self.newest = file, (version, content.replace(b"<html ", f"<html data-follow='{version}' ".encode(), 1))


def _listen(port: int, page: _Page) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            version, content = page.newest
            if (self.headers["Host"] or "").partition(":")[0] not in (HOST, "localhost"):  # or else a name of another site's, for us
                self.send_error(HTTPStatus.FORBIDDEN)
            elif self.path != "/":
                self.send_error(HTTPStatus.NOT_FOUND)
            elif self.headers["If-None-Match"] == version:
                self._answer(HTTPStatus.NOT_MODIFIED, version, b"")
            else:
                self._answer(HTTPStatus.OK, version, content)

        def _answer(self, status: HTTPStatus, version: str, content: bytes) -> None:
            self.send_response(status)
            headers = {"ETag": version, "Cache-Control": "no-cache", "Content-Type": "text/html; charset=utf-8"}
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Nothing: one line per request is no news."""

    try:
        return ThreadingHTTPServer((HOST, port), Handler)
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"`--port` must be one that is free, but got {port}: {reason_of(error)}. Choose another one, or 0 for any that is free."
        ) from error


def _follow(results: Sequence[Path], out: Path | None, page: _Page) -> None:
    """Write the report again whenever a record has changed. A sweep that cannot be read just now keeps its last report."""
    seen = _state(results)
    while True:
        time.sleep(SECONDS)
        if (now := _state(results)) == seen:
            continue
        began, seen = time.monotonic(), now
        try:
            page.load(write_report(results, out))
        except (ConfigError, OSError) as error:
            log.warning("the report stays as it was: %s", error)
        time.sleep(_REST * (time.monotonic() - began))


def _state(results: Sequence[Path]) -> dict[Path, tuple[int, int, int]]:
    """What changes when a record, or `sweep.json`, is written."""
    states = {}
    for paths in map(SweepPaths, results):
        run_ids = [name for run_id in paths.run_ids() for name in (run_id, *paths.variant_ids(run_id))]
        for file in (paths.facts, *(paths.run(run_id).record for run_id in run_ids)):
            try:
                states[file] = state_of(file)
            except OSError:  # not written yet
                continue
    return states
