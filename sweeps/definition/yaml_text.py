"""YAML as definitions use it, and `--set key=value`.

PyYAML reads YAML 1.1, where `1e-3` is a string, `off` is False and a repeated key silently wins. Here scalars follow YAML
1.2 (`1e-3`, `1_000_000` are numbers, `off` is a word), `1e6` is a whole number, and a repeated key is an error. Tags (`!!binary`) are
errors, and depth and size are bounded while the text is read, before anything is made of it.
"""

import copy
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import yaml

from sae_core.errors import ConfigError, reason_of
from sweeps.definition.plain import DEEPEST, MOST_VALUES
from sweeps.definition.problems import Problems, printable, shown

MOST_CHARACTERS = 1_000_000
"""Of a definition."""
_TAGS = "tag:yaml.org,2002:"
_MERGE = "tag:yaml.org,2002:merge"
_SCALARS = (
    ("tag:yaml.org,2002:null", re.compile(r"^(?:~|null|)$"), ["~", "n", ""]),
    ("tag:yaml.org,2002:bool", re.compile(r"^(?:true|false|True|False)$"), list("tfTF")),
    ("tag:yaml.org,2002:int", re.compile(r"^[-+]?(?:0|[1-9][0-9_]*)$"), list("-+0123456789")),
    (
        "tag:yaml.org,2002:float",
        re.compile(r"^(?:[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+|[-+]?\.inf|\.nan)$"),
        list("-+0123456789."),
    ),
    (_MERGE, re.compile(r"^<<$"), ["<"]),
)
_LARGEST_EXACT = 2**53
_LONGEST_WHERE = 200
_MOST_DIGITS = 1_000


_Pairs = list[tuple[yaml.Node, yaml.Node]]


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}  # none of PyYAML's own

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = self._n_values = 0
        self._merging: set[int] = set()

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        line = event.start_mark.line + 1
        self._depth, self._n_values = self._depth + 1, self._n_values + 1
        if self._depth > DEEPEST:
            raise ConfigError(f"line {line}: sections and lists must be at most {DEEPEST} deep, but got more. Write it flat.")
        if self._n_values > MOST_VALUES:
            raise ConfigError(f"line {line}: a definition must hold at most {MOST_VALUES:,} values, but got more. Shorten it.")
        if (tag := getattr(event, "tag", None)) is not None:
            raise ConfigError(
                f"line {line}: values must be written without tags, but got the tag {shown(tag.replace(_TAGS, '!!'))}. Remove it."
            )
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Put what `<<` stands for in its place. Each key is there once then, so that merges of merges do not multiply."""
        if id(node) in self._merging or len(self._merging) > DEEPEST:
            line = node.start_mark.line + 1
            raise ConfigError(f"line {line}: `<<` must not merge a section into itself, nor more than {DEEPEST} times over. Write it out.")
        self._merging.add(id(node))
        own = _without_repetition(node.value)
        merged: dict[Any, tuple[yaml.Node, yaml.Node]] = {}
        for sources in (value for key, value in own if key.tag == _MERGE):
            for source in reversed(sources.value if isinstance(sources, yaml.SequenceNode) else [sources]):
                if not isinstance(source, yaml.MappingNode):
                    line = source.start_mark.line + 1
                    raise ConfigError(f"line {line}: `<<` must be given a section or a list of sections, but got {shown(source.value)}.")
                self.flatten_mapping(source)
                merged |= {_identity(key): (key, value) for key, value in source.value}
        merged |= {_identity(key): (key, value) for key, value in own if key.tag != _MERGE}
        node.value = list(merged.values())
        self._merging.remove(id(node))


def _identity(key: yaml.Node) -> Any:
    return (key.tag, key.value) if isinstance(key, yaml.ScalarNode) else id(key)


def _without_repetition(pairs: _Pairs) -> _Pairs:
    """The pairs of a mapping.

    Raises:
        ConfigError: a key is given twice.
    """
    seen = set()
    for key, _ in pairs:
        if isinstance(key, yaml.ScalarNode):
            if key.value in seen:
                line = key.start_mark.line + 1
                raise ConfigError(f"line {line}: a key must be given once, but got {shown(key.value)} twice. Remove one.")
            seen.add(key.value)
    return pairs


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}  # none of PyYAML's own

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _tag, _pattern, _first in _SCALARS:
    _Loader.add_implicit_resolver(_tag, _pattern, _first)
    _Dumper.add_implicit_resolver(_tag, _pattern, _first)


def _number(loader: _Loader, node: yaml.ScalarNode) -> int | float:
    value = loader.construct_yaml_float(node)
    # `train_tokens: 1e6` means a count; fields that take fractions accept whole numbers as well.
    whole = "e" in node.value.lower() and value.is_integer() and abs(value) <= _LARGEST_EXACT
    return int(value) if whole else value


def _whole_number(loader: _Loader, node: yaml.ScalarNode) -> int:
    if len(node.value) > _MOST_DIGITS:  # Python refuses thousands of digits with words about itself
        line = node.start_mark.line + 1
        raise ConfigError(f"line {line}: a number must be at most 2^63 - 1 in size, but got {shown(node.value)}. Lower it.")
    return loader.construct_yaml_int(node)


_Loader.add_constructor("tag:yaml.org,2002:float", _number)
_Loader.add_constructor("tag:yaml.org,2002:int", _whole_number)


def load_yaml(text: str, where: str) -> Any:
    """Read YAML.

    Args:
        where: what is being read, for messages, e.g. a file name.

    Raises:
        ConfigError: the text is not YAML, or not that of a definition: a key is repeated, it is too deep or too long, it has tags.
    """
    where = printable(where if len(where) <= _LONGEST_WHERE else f"{where[:_LONGEST_WHERE]}...")
    if len(text) > MOST_CHARACTERS:
        raise ConfigError(f"{where}: a definition must have at most {MOST_CHARACTERS:,} characters, but got {len(text):,}. Shorten it.")
    try:
        return yaml.load(text, Loader=_Loader)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    except Exception as error:  # of PyYAML: YAMLError, but also what int() or a recursion raises
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}: " if mark else ""
        problem = getattr(error, "problem", None) or reason_of(error)
        problems = Problems()
        problems.add("", f"{where}: {line}a definition must be valid YAML, but got: {problem}. Correct it.")
        raise problems.error() from None


def dump_yaml(content: Any) -> str:
    """Write YAML that `load_yaml` reads back as it was: keys in their order, short lists on one line."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=120, allow_unicode=True)


def with_overrides(definition: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of `definition` with `key=value` settings applied, in order; the value is YAML and the key a dotted path.

    Whether a path's last names exist is checked with the rest of the definition.

    Raises:
        ConfigError: an override without `=`, with an empty name, or through something that is not a section.
    """
    result = copy.deepcopy(dict(definition))
    for override in overrides:
        key, equals, value = override.partition("=")
        *sections, name = [part.strip() for part in key.split(".")]
        if not equals or not all([*sections, name]):
            raise ConfigError(f"`--set` must be given as key=value, but got {shown(override)}. Write e.g. `--set train.lr=1e-3`.")
        node = result
        for depth, section in enumerate(sections):
            child = node.setdefault(section, {})
            if child is None:
                child = node[section] = {}
            if not isinstance(child, dict):
                path = ".".join(sections[: depth + 1])
                problems = Problems()
                rule = f"but got {shown(key)} where `{path}` is {shown(child)}"
                problems.add("", f"`--set` must name a field of a section, {rule}. Set `{path}`.")
                raise problems.error()
            node = child
        node[name] = load_yaml(value, f"--set {override}")
    return result
