"""Standard output and error that can be written to whatever becomes of the terminal: one without UTF-8, a closed one, a broken pipe."""

import io
import os
import sys
from contextlib import suppress

from sae_core.errors import reason_of


class _Lasting(io.TextIOWrapper):
    """A text stream that drops what can no longer be written: a sweep does not depend on who reads its progress."""

    lost = ""
    """Why something could not be written, unless its reader left."""

    def write(self, text: str) -> int:
        try:
            super().write(text)
        except OSError as error:
            self._lose(error)
        return len(text)

    def flush(self) -> None:
        try:
            with suppress(ValueError):  # closed
                super().flush()
        except OSError as error:
            self._lose(error)

    def _lose(self, error: OSError) -> None:
        self.lost = self.lost if isinstance(error, BrokenPipeError) else reason_of(error)


def lost_output() -> str:
    """Message why output could not be written; empty where all of it was, or its reader left."""
    sys.stdout.flush()
    lost = getattr(sys.stdout, "lost", "")
    return f"standard output must be writable, but got {lost}. Repeat the command with another output." if lost else ""


def outlast_terminal() -> None:
    """Replace stdout and stderr by streams that never raise: a character that the terminal does not have becomes "?"."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # Python was started with it closed
            setattr(sys, name, _Lasting(open(os.devnull, "wb"), encoding="utf-8", errors="replace"))  # noqa: PTH123, SIM115  used to the end
        elif isinstance(stream, io.TextIOWrapper):
            setattr(sys, name, _Lasting(stream.detach(), encoding=stream.encoding, errors="replace", line_buffering=True))
