"""Definitions as text (YAML, TOML or JSON, with the same content), and `--set key=value`.

PyYAML reads YAML 1.1, where `1e-3` is a string, `off` is False and a repeated key silently wins. Here scalars follow YAML 1.2 (`1e-3` and
`1_000_000` are numbers, `off` is a word). In all three, `1e6` is a whole number, and a repeated key is an error.
"""

import json
import re
import tomllib
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import yaml

from sae_core.errors import ConfigError, reason_of
from sweeps.definition.plain import plain
from sweeps.definition.problems import printable, shown

MOST_CHARACTERS = 1_000_000
"""Of a definition."""
_LONGEST_SOURCE = 200
_LONGEST_PROBLEM = 300
_MOST_NESTED = 100
"""Brackets inside one another, of each of which PyYAML looks at all others. What nests less, but too deep, `plain` refuses."""
_LARGEST_EXACT = 2**53
_SCALARS = {
    "null": (r"~|null|", ["~", "n", ""]),
    "bool": (r"true|false|True|False", list("tfTF")),
    "int": (r"[-+]?(?:0|[1-9][0-9_]*)", list("-+0123456789")),
    "float": (
        r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+|[-+]?\.inf|\.nan",
        list("-+0123456789."),
    ),
}
"""Type -> how its values are written, and the characters they start with."""


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}  # none of PyYAML's own

    def fetch_flow_collection_start(self, TokenClass: type[yaml.Token]) -> None:
        if self.flow_level >= _MOST_NESTED:
            raise RecursionError
        super().fetch_flow_collection_start(TokenClass)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(problem=f"{shown(key.value)} twice in one section", problem_mark=key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Nothing: `<<` is merged by `plain`, which bounds what merges of merges come to."""

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        return _number(node.value, self.construct_yaml_float(node))


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}  # none of PyYAML's own

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _type, (_pattern, _starts) in _SCALARS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_type}", re.compile(f"^(?:{_pattern})$"), _starts)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_number)


def _number(text: str, value: float) -> int | float:
    """A number with a point or an exponent. `train_tokens: 1e6` is a count; fields that take fractions accept whole numbers as well."""
    whole = "e" in text.lower() and value.is_integer() and abs(value) <= _LARGEST_EXACT
    return int(value) if whole else value


def _from_yaml(text: str) -> Any:
    return yaml.load(text, Loader=_Loader)


def _from_toml(text: str) -> Any:
    return tomllib.loads(text, parse_float=lambda number: _number(number, float(number)))


def _from_json(text: str) -> Any:
    def section(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(pairs)
        if len(content) < len(pairs):
            names = [name for name, _ in pairs]
            repeated = shown(next(name for name in names if names.count(name) > 1))
            raise ConfigError(f"a definition must be valid JSON, but got: {repeated} twice in one section. Correct it.")
        return content

    def no_number(name: str) -> float:
        raise ConfigError(f"a definition must be valid JSON, but got: {name}, which is no number. Correct it.")

    def number(text: str) -> int | float:
        return _number(text, float(text))

    return json.loads(text, object_pairs_hook=section, parse_float=number, parse_constant=no_number)


_LANGUAGES: dict[str, tuple[str, Callable[[str], Any]]] = {".toml": ("TOML", _from_toml), ".json": ("JSON", _from_json)}
"""Ending of a file -> its language and the reader of that."""


def load_text(text: str, source: str, ending: str = "") -> Any:
    """Read a definition as dicts, lists and scalars.

    Args:
        source: what is being read, for messages, e.g. a file name.
        ending: ".toml" and ".json" mean these languages, any other ending YAML.

    Raises:
        ConfigError: the text is not of that language, too long, or holds what no definition can: a key twice, other types, too many values.
    """
    source = printable(source if len(source) <= _LONGEST_SOURCE else f"{source[:_LONGEST_SOURCE]}...")
    if len(text) > MOST_CHARACTERS:
        raise ConfigError(f"{source}: a definition must have at most {MOST_CHARACTERS:,} characters, but got more. Shorten it.")
    language, read = _LANGUAGES.get(ending, ("YAML", _from_yaml))
    try:
        return plain(read(text))
    except ConfigError as error:
        raise ConfigError("\n".join(f"{source}: {line}" for line in str(error).splitlines())) from None
    except RecursionError:
        raise ConfigError(f"{source}: a definition must be valid {language}, but got sections nested too deep. Correct it.") from None
    except Exception as error:  # of PyYAML: YAMLError, but also what int() raises
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}:" if mark else ""
        problem = printable((getattr(error, "problem", None) or reason_of(error))[:_LONGEST_PROBLEM])
        raise ConfigError(f"{source}:{line} a definition must be valid {language}, but got: {problem}. Correct it.") from None


def dump_yaml(content: Any) -> str:
    """Write YAML that `load_text` reads back as it was: keys in their order, short lists on one line."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=120, allow_unicode=True)


def apply_overrides(content: dict[str, Any], overrides: Sequence[str]) -> None:
    """Apply `key=value` settings to a definition, in order; the value is YAML and the key a dotted path.

    Raises:
        ConfigError: an override without `=`, with an empty name, or through something that is not a section.
    """
    for override in overrides:
        key, equals, value = override.partition("=")
        *sections, name = (part.strip() for part in key.split("."))
        if not equals or not all([*sections, name]):
            raise ConfigError(f"`--set` must be given as key=value, but got {shown(override)}. Write e.g. `--set train.lr=1e-3`.")
        node = content
        for section in sections:
            if node.get(section) is None:
                node[section] = {}
            node = node[section]
            if not isinstance(node, dict):
                rule = f"but got {shown(key)} where {shown(section)} is {shown(node)}"
                raise ConfigError(f"`--set` must name a field of a section, {rule}. Set `{printable(section)}`.")
        node[name] = load_text(value, f"--set {override}")
