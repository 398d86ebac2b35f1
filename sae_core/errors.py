"""Errors that a user or a definition can cause. Each message names the rule, the value and the remedy."""

import difflib
from collections.abc import Iterable


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
