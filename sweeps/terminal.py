"""Standard output and error that can be written to whatever becomes of the terminal: one without UTF-8, a closed one, a broken pipe."""

import io
import os
import sys
from contextlib import suppress
from typing import Any, TextIO, cast


class _Lasting(io.TextIOWrapper):
    """A text stream that drops what can no longer be written: a sweep does not depend on who reads its progress."""

    def write(self, text: str) -> int:
        with suppress(OSError):
            super().write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):  # closed
            super().flush()


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
