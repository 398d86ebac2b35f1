"""Standard output and error that can be written to whatever becomes of the terminal: one without UTF-8, a closed one, a broken pipe."""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

from sae_core.errors import reason_of


class _Lasting(io.TextIOWrapper):
    """A text stream that drops what can no longer be written: a sweep does not depend on who reads its progress."""

    lost: OSError | None = None
    """Why something could not be written, unless its reader left."""

    def write(self, text: str) -> int:
        with self._noticing():
            super().write(text)
        return len(text)

    def flush(self) -> None:
        with self._noticing(), suppress(ValueError):  # closed
            super().flush()

    @contextmanager
    def _noticing(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            pass
        except OSError as error:
            self.lost = error


def lost_output() -> str:
    """Why output could not be written, in words; empty where all of it was, or its reader left."""
    sys.stdout.flush()
    lost = getattr(sys.stdout, "lost", None)
    return f"standard output must be writable, but got {reason_of(lost)}. Repeat the command with another output." if lost else ""


def outlast_terminal() -> None:
    """Put streams in the place of stdout and stderr that never raise: a character that the terminal does not have becomes "?"."""
    for name in ("stdout", "stderr"):
        setattr(sys, name, _lasting(getattr(sys, name)))


def _lasting(stream: Any) -> TextIO:
    if stream is None:  # Python was started with it closed
        return _Lasting(open(os.devnull, "wb"), encoding="utf-8", errors="replace")  # noqa: PTH123  it is used to the end
    if not isinstance(stream, io.TextIOWrapper):
        return cast(TextIO, stream)
    encoding = stream.encoding
    return _Lasting(stream.detach(), encoding=encoding, errors="replace", line_buffering=True)
