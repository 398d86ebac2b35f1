"""What is wrong with a definition: `<place>: <rule>, but got <value>. <remedy>.`, one line per problem."""

import difflib
import re
import typing
from collections.abc import Callable, Iterable
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from sae_core.errors import ConfigError

_LONGEST_VALUE = 80
_LONGEST_LINE = 1_500
_LONGEST_REMEDY = 300
MOST_PROBLEMS = 100
"""Lines of an error."""


class Problems:
    """Lines about what is wrong, in the order found, each once: a bad value shared by many runs is one problem."""

    def __init__(self) -> None:
        self._lines: dict[str, None] = {}

    def add(self, place: str, message: str) -> None:
        """Note a problem at `place`, e.g. "architectures.topk.k". Of a line that is too long the start and the remedy are kept."""
        for text in message.splitlines():
            line = printable(f"{place}: {text}" if place else text)
            if len(line) > _LONGEST_LINE:
                line = f"{line[: _LONGEST_LINE - _LONGEST_REMEDY]} ... {line[-_LONGEST_REMEDY:]}"
            self._lines[line] = None

    def __bool__(self) -> bool:
        return bool(self._lines)

    @property
    def enough(self) -> bool:
        """Whether there are more than one error lists: no need to look for others."""
        return len(self._lines) > MOST_PROBLEMS

    def raise_any(self) -> None:
        """Raise all of them as one error.

        Raises:
            ConfigError: one problem per line; of very many, the first ones.
        """
        if self._lines:
            more = [f"... and more than {MOST_PROBLEMS} problems in all. Correct these first."] if self.enough else []
            raise ConfigError("\n".join([*list(self._lines)[:MOST_PROBLEMS], *more]))


def printable(text: str) -> str:
    """Text that any terminal and file can hold: what is not printable, and half characters (surrogates), are escaped."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape", "backslashreplace").decode() for char in text)


def shown(value: Any) -> str:
    """`repr` of a value, shortened for a message."""
    try:
        text = repr(value)
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; lists in lists in lists
        return f"{type(value).__name__} ({error})"
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}..."


def unknown_key(key: str, known: Iterable[str], hint: str = "") -> str:
    """The message about a key that nothing reads, with the nearest known one.

    Args:
        hint: a further sentence.
    """
    names = sorted(known)
    close = difflib.get_close_matches(key[:_LONGEST_VALUE], names, n=1, cutoff=0.5)
    meant = f" Did you mean {close[0]!r}?" if close else ""
    return f"unknown key {shown(key)}.{meant}{hint and f' {hint}'} Known keys here: {names}."


def collect(error: ValidationError, problems: Problems, place_of: Callable[[tuple[str, ...]], str], model: type[BaseModel]) -> None:
    """Add what pydantic found in data for `model` to `problems`.

    Args:
        place_of: path of a field (empty for the whole) -> place in the definition.
    """
    for detail in error.errors(include_url=False):
        if problems.enough:
            return
        path = tuple(str(part) for part in detail["loc"])
        if detail["type"] == "value_error":
            message = str(detail["ctx"]["error"])
            # House messages name the field they are about first, in backticks.
            named = re.match(r"`(\w+)`", message)
            problems.add(place_of(path or ((named.group(1),) if named else ())), message)
        elif detail["type"] == "extra_forbidden":
            problems.add(place_of(path[:-1]), unknown_key(path[-1], _fields_at(model, path[:-1])))
        else:
            place = place_of(path)
            problems.add(place, _message(detail, place.rpartition(".")[2]))


def model_in(annotation: Any) -> type[BaseModel] | None:
    """The config class that an annotation is, or is a union with."""
    candidates = (annotation, *typing.get_args(annotation))
    return next((part for part in candidates if isinstance(part, type) and issubclass(part, BaseModel)), None)


def _fields_at(model: type[BaseModel], path: tuple[str, ...]) -> list[str]:
    for name in path:
        model = model_in(model.model_fields[name].annotation) or model
    return list(model.model_fields)


def _message(detail: ErrorDetails, name: str) -> str:
    if detail["type"] == "missing":
        return f"`{name}` must be given, but is missing. Add it."
    rule = detail["msg"].partition(" or instance of ")[0].replace("Input should ", "must ").replace("dictionary", "mapping")
    rule = rule if rule.startswith("must ") else f"must hold: {rule[0].lower()}{rule[1:]}"
    return f"`{name}` {rule}, but got {name}={shown(detail['input'])}. {_remedy(detail)}"


def _remedy(detail: ErrorDetails) -> str:
    kind, value = detail["type"], detail["input"]
    if kind == "literal_error":
        choices = re.findall(r"'([^']*)'", str(detail["ctx"]["expected"]))
        close = difflib.get_close_matches(str(value)[:_LONGEST_VALUE], choices, n=1)
        return f"Did you mean {close[0]!r}?" if close else "Choose one of them."
    if kind == "int_type" and isinstance(value, float) and value.is_integer():
        return f"Write {int(value)}."
    return next((remedy for prefix, remedy in _REMEDIES.items() if kind.startswith(prefix)), "Correct it.")


_REMEDIES = {
    "greater_than": "Raise it.",
    "less_than": "Lower it.",
    "int": "Give a whole number.",
    "float": "Give a number.",
    "finite_number": "Give a number.",
    "string": "Give text; put it in quotes if it looks like a number.",
    "bool": "Write true or false.",
    "list": "Write it in brackets, e.g. [0].",
    "tuple": "Write it in brackets, e.g. [64, 256].",
    "dict": "Write `{key: value, ...}`.",
    "model": "Write `{key: value, ...}`.",
}
"""Start of the type of a pydantic error -> what to do."""
