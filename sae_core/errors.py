"""Errors that a user or a definition can cause. Each message names the rule, the value and the remedy."""

import difflib
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

_LONGEST_REASON = 300


class ConfigError(ValueError):
    """Something a user asked for breaks a rule. The command line prints it and exits with 2."""


class UnknownNameError(ConfigError):
    """A name that no registry, model or dataset knows."""

    @classmethod
    def of(cls, what: str, name: str, known: Iterable[str], remedy: str = "") -> "UnknownNameError":
        """Build the message for an unknown `name`, with the nearest known one.

        Args:
            what: what the name should be, e.g. "architecture".
            name: what was given.
            known: the names that exist.
            remedy: a last sentence, e.g. where to add a new one.
        """
        names = sorted(known)
        close = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        shown = names if len(names) <= 30 else [*names[:30], f"... and {len(names) - 30} more"]
        return cls(f"{what} must be one of {shown}, but got {name!r}.{hint} {remedy}".rstrip())


class DamagedFileError(ConfigError):
    """A file is not what was written to it: cut off, changed, or another program's."""

    @classmethod
    def of(cls, path: Path, error: BaseException, remedy: str = "Delete it or put back a copy.") -> "DamagedFileError":
        """Build the message.

        Args:
            error: what was raised while the file was read.
            remedy: a last sentence: how to have the file again.
        """
        return cls(f"a file must be unchanged since it was written, but {str(path)!r} is damaged: {reason_of(error)}. {remedy}")


def is_out_of_memory(kind: str, message: str) -> bool:
    """Whether an exception says that there was no memory for something: with less beside it, it may succeed.

    Args:
        kind: name of its type; PyTorch's and Ray's is OutOfMemoryError, but for the memory of the CPU PyTorch raises RuntimeError.
        message: what it says.
    """
    return kind in ("MemoryError", "OutOfMemoryError") or "can't allocate memory" in message


@contextmanager
def border(what: str, remedy: str) -> Iterator[None]:
    """Turn everything that is raised while reading what a user named into one ConfigError; a ConfigError passes as it is.

    Args:
        what: the rule and what was read, up to "but got": "`model.name` must be a readable language model, but got 'gpt3'".
        remedy: what to do.
    """
    try:
        yield
    except (ConfigError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # a panic of a library written in Rust is no Exception
        raise ConfigError(f"{what}: {reason_of(error)}. {remedy}") from error


def facts_of(error: BaseException) -> dict[str, str]:
    """An exception, as records have it."""
    return {"type": type(error).__name__, "message": str(error), "traceback": "".join(traceback.format_exception(error))}


def reason_of(error: BaseException) -> str:
    """What an exception says, in one line without a full stop at its end: its first line that is not empty, or its type."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    name = type(error).__name__
    # A bare KeyError or AssertionError says nothing without its name.
    text = lines[0] if isinstance(error, OSError | ConfigError) and lines else f"{name}: {lines[0]}" if lines else name
    return (text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]}...").rstrip(".")
