"""Whether what a record or sweep.json holds is what this package writes there: types, sizes and text that tables and reports can hold.

A file with a checksum that matches is as it was written. One without, of an earlier version or edited by hand, may hold anything.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from analysis.columns import NOT_METRICS
from sae_core.records import RunRecord

LARGEST = 1e100
"""No number of a run is larger: squares of float32 numbers, summed, are not."""
LARGEST_WHOLE = 2**62
MOST_NESTED = 30
LONGEST_NAME = 255
"""Bytes that a file system allows for a name."""

Test = Callable[[Any], bool]


def is_text(value: Any) -> bool:
    return isinstance(value, str)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _or_none(test: Test) -> Test:
    return lambda value: value is None or test(value)


def _is_positive(value: Any) -> bool:
    return is_number(value) and value > 0


_CONFIG: dict[str, Test] = {
    **dict.fromkeys(("train.lr", "sae.target_l0"), _or_none(_is_positive)),
    **dict.fromkeys(("sae.d_sae", "train.batch_size"), _or_none(lambda value: is_whole(value) and value > 0)),
    **dict.fromkeys(("activations.model.context_size", "activations.train_tokens", "seed", "data_seed"), _or_none(is_whole)),
    **dict.fromkeys(("activations.model.name", "activations.model.hook_point", "activations.data.dataset"), _or_none(is_text)),
    "train.normalize_activations": _or_none(is_text),
}
"""Fields of a config that tables and reports read -> whether a value can be one."""
_PLANNED: dict[str, Test] = {
    **dict.fromkeys(("architecture", "sparsity_parameter"), _or_none(is_text)),
    "sparsity_value": _or_none(is_number),
    "seed": _or_none(is_whole),
    "config": _or_none(lambda value: isinstance(value, dict)),
}
_STAGE: dict[str, Test] = {"stage": is_text, "seconds": _or_none(is_number)}
_LAUNCH: dict[str, Test] = {"definition": _or_none(is_text)}


def at(config: Any, path: str) -> Any:
    """The value of a field of a config by its path, e.g. "train.lr"; None where there is none."""
    value = config
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def wrong_in_record(record: RunRecord, name: str) -> str:
    """What is wrong with the record of the run directory `name`, beyond its types; empty where nothing is."""
    if record.run_id != name:
        return f"it is of the run {record.run_id!r}, and lies in the directory of {name!r}"
    taken = [metric for metric in record.metrics if metric in NOT_METRICS or metric.startswith("version_")]
    if taken:
        return f"`metrics` holds {taken[0]!r}, which is no metric"
    numbers = [record.sparsity_value, record.train_seconds, record.tokens_per_second, record.d_in, record.train_tokens, record.eval_tokens]
    texts = [record.architecture, record.sparsity_parameter, record.activations_hash, record.eval_hash, record.hardware]
    content = [numbers, texts, record.eval_hardware, record.finished_at, record.seed, record.launch, record.versions, record.metrics]
    return _strange([*content, record.activation_facts, record.metric_specs, record.config]) or _wrong_config(record.config)


def wrong_in_sweep(facts: Mapping[str, Any]) -> str:
    """What is wrong with the content of sweep.json; empty where nothing is."""
    for key, test in (("name", is_text), ("hardware", is_text)):
        if not _or_none(test)(facts.get(key)):
            return f"`{key}` is of the wrong type"
    for key, entry_test in (("runs", _wrong_planned), ("stages", _wrong_stage), ("launches", _wrong_launch)):
        entries = facts.get(key)
        if not _or_none(lambda value: isinstance(value, list) and all(isinstance(entry, dict) for entry in value))(entries):
            return f"`{key}` is of the wrong type"
        for entry in entries or []:
            if wrong := entry_test(entry):
                return f"`{key}`: {wrong}"
    return _strange(facts)


def printable(text: str) -> str:
    """`text` in one line, with what no file can hold as UTF-8 spelled out."""
    return " ".join(text.encode("utf-8", "backslashreplace").decode().split())


def _wrong_planned(entry: Mapping[str, Any]) -> str:
    name = entry.get("run_id")
    if not isinstance(name, str) or not name or name in (".", "..") or "/" in name or "\0" in name:
        return f"`run_id` must be the name of a directory, but got {name!r}"
    if len(name.encode("utf-8", "surrogatepass")) > LONGEST_NAME:
        return f"`run_id` is longer than {LONGEST_NAME} bytes"
    return _wrong_type(entry, _PLANNED) or _wrong_config(entry.get("config") or {})


def _wrong_stage(entry: Mapping[str, Any]) -> str:
    return _wrong_type({"stage": None, **entry}, _STAGE)


def _wrong_launch(entry: Mapping[str, Any]) -> str:
    return _wrong_type(entry, _LAUNCH)


def _wrong_type(entry: Mapping[str, Any], tests: Mapping[str, Test]) -> str:
    wrong = [key for key, test in tests.items() if key in entry and not test(entry[key])]
    return f"`{wrong[0]}` is of the wrong type" if wrong else ""


def _wrong_config(config: Mapping[str, Any]) -> str:
    sections = [name for name in ("activations", "sae", "train") if not isinstance(config.get(name, {}), dict)]
    wrong = [*sections, *(path for path, test in _CONFIG.items() if not test(at(config, path)))]
    return f"`config.{wrong[0]}` is of the wrong type or size" if wrong else ""


def _strange(content: Any) -> str:
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
            elif is_number(value) and not _is_sensible(value):
                return f"a number is {str(value)[:20]}"
        level = deeper
    return ""


def _is_sensible(value: int | float) -> bool:
    return abs(value) <= LARGEST_WHOLE if isinstance(value, int) else math.isfinite(value) and abs(value) <= LARGEST
