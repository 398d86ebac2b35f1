"""Whether what a record or sweep.json holds is what this package writes there: types, sizes, and text that tables can hold. No torch.

A file with a checksum that matches is as it was written. One without, of an earlier version or edited by hand, may hold anything. Keys that
a reader can do without may be missing: earlier versions did not write them.
"""

import math
import reprlib
from collections.abc import Callable, Mapping
from typing import Any

LARGEST = 1e100
"""No number of a run is larger: squares of float32 numbers, summed, are not."""
LARGEST_WHOLE = 2**63 - 1
"""Tables have no larger whole numbers."""
MOST_NESTED = 30
LONGEST_NAME = 255
"""Bytes that a file system allows for a name."""

Test = Callable[[Any], bool]
Tests = Mapping[str, Test]
"""Key, or path of keys such as "train.lr" -> whether a value can be its."""


def is_text(value: Any) -> bool:
    return isinstance(value, str)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def or_none(test: Test) -> Test:
    return lambda value: value is None or test(value)


def dict_of(test: Test) -> Test:
    return lambda value: isinstance(value, dict) and all(test(item) for item in value.values())


def list_of(test: Test) -> Test:
    return lambda value: isinstance(value, list) and all(test(item) for item in value)


def _is_positive(value: Any) -> bool:
    return is_number(value) and value > 0


def _is_dict(value: Any) -> bool:
    return isinstance(value, dict)


def _names_a_directory(value: Any) -> bool:
    is_name = isinstance(value, str) and value not in ("", ".", "..") and not {"/", "\0"} & set(value)
    return is_name and len(value.encode("utf-8", "surrogatepass")) <= LONGEST_NAME


_CONFIG: Tests = {
    **dict.fromkeys(("activations", "sae", "train"), or_none(_is_dict)),
    **dict.fromkeys(("train.lr", "sae.target_l0"), or_none(_is_positive)),
    **dict.fromkeys(("sae.d_sae", "train.batch_size"), or_none(lambda value: is_whole(value) and value > 0)),
    **dict.fromkeys(("activations.model.context_size", "activations.train_tokens", "seed", "data_seed"), or_none(is_whole)),
    **dict.fromkeys(("activations.model.name", "activations.model.hook_point", "activations.data.dataset"), or_none(is_text)),
    "train.normalize_activations": or_none(is_text),
}
"""Fields of a config that tables and reports read."""
_PLANNED: Tests = {
    "run_id": _names_a_directory,
    **dict.fromkeys(("architecture", "sparsity_parameter"), or_none(is_text)),
    "sparsity_value": or_none(is_number),
    "seed": or_none(is_whole),
    "config": or_none(_is_dict),
}
_STAGE: Tests = {"stage": is_text, "seconds": or_none(is_number)}
_LAUNCH: Tests = dict.fromkeys(("started_at", "ended_at", "definition", "definition_checksum"), or_none(is_text))
_SWEEP: Tests = {
    **dict.fromkeys(("name", "hardware"), or_none(is_text)),
    **dict.fromkeys(("runs", "stages", "launches"), or_none(list_of(_is_dict))),
}


def at(content: Any, path: str) -> Any:
    """The value of a field by its path, e.g. "train.lr"; None where there is none."""
    value = content
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def wrong(content: Mapping[str, Any], tests: Tests, prefix: str = "") -> str:
    """What is wrong with the first field of `content` that cannot be; empty where nothing is. A missing one has the value None."""
    bad = next((path for path, test in tests.items() if not test(at(content, path))), None)
    return "" if bad is None else f"`{prefix}{bad}` cannot be {printable(reprlib.repr(at(content, bad)))}"


def wrong_config(config: Mapping[str, Any]) -> str:
    """What is wrong with a config as a record or sweep.json has it: a learning rate may be as large as somebody asks for."""
    return wrong(config, _CONFIG, "config.") or strange(config, largest=math.inf)


def wrong_in_sweep(facts: Mapping[str, Any]) -> str:
    """What is wrong with the content of sweep.json; empty where nothing is."""
    found = wrong(facts, _SWEEP)
    for name, tests in (("runs", _PLANNED), ("stages", _STAGE), ("launches", _LAUNCH)):
        for entry in () if found else facts.get(name) or ():
            rest = {key: value for key, value in entry.items() if key != "config"}
            if problem := wrong(entry, tests) or strange(rest) or wrong_config(entry.get("config") or {}):
                return f"in `{name}`, {problem}"
    return found or strange({name: value for name, value in facts.items() if name != "runs"})


def strange(content: Any, largest: float = LARGEST) -> str:
    """What in a tree of JSON no table can hold: numbers out of range, text that is not Unicode, nesting without end."""
    level, depth = [content], 0
    while level:
        if (depth := depth + 1) > MOST_NESTED:
            return f"it is nested more than {MOST_NESTED} levels deep"
        deeper: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                deeper += [*value.keys(), *value.values()]
            elif isinstance(value, list):
                deeper += value
            elif isinstance(value, str):
                if not value.isascii() and value != value.encode("utf-8", "replace").decode():
                    return f"{value[:40]!r} is no text"
            elif is_number(value) and not _is_sensible(value, largest):
                return f"a number is {str(value)[:20]}"
        level = deeper
    return ""


def printable(text: str) -> str:
    """`text` in one line, with what no file can hold as UTF-8 spelled out."""
    return " ".join(text.encode("utf-8", "backslashreplace").decode().split())


def _is_sensible(value: int | float, largest: float) -> bool:
    return abs(value) <= LARGEST_WHOLE if isinstance(value, int) else math.isfinite(value) and abs(value) <= largest
