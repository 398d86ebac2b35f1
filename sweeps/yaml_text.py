"""YAML as definitions use it, and `--set key=value`.

PyYAML reads YAML 1.1, where `1e-3` is a string, `off` is False and a repeated key silently wins. Here scalars follow YAML
1.2 (`1e-3`, `1_000_000` are numbers, `off` is a word), `1e6` is a whole number, and a repeated key is an error.
"""

import copy
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import yaml

from sae_core.errors import ConfigError

_SCALARS = (
    ("tag:yaml.org,2002:null", re.compile(r"^(?:~|null|)$"), ["~", "n", ""]),
    ("tag:yaml.org,2002:bool", re.compile(r"^(?:true|false|True|False)$"), list("tfTF")),
    ("tag:yaml.org,2002:int", re.compile(r"^[-+]?(?:0|[1-9][0-9_]*)$"), list("-+0123456789")),
    (
        "tag:yaml.org,2002:float",
        re.compile(r"^(?:[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+|[-+]?\.inf|\.nan)$"),
        list("-+0123456789."),
    ),
    ("tag:yaml.org,2002:merge", re.compile(r"^<<$"), ["<"]),
)
_LARGEST_EXACT = 2**53


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}  # none of PyYAML's own

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode) and key_node.tag != "tag:yaml.org,2002:merge":
                if key_node.value in seen:
                    line = key_node.start_mark.line + 1
                    raise ConfigError(f"line {line}: a key must be given once, but got {key_node.value!r} twice. Remove one.")
                seen.add(key_node.value)
        return super().construct_mapping(node, deep)


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


_Loader.add_constructor("tag:yaml.org,2002:float", _number)


def load_yaml(text: str, where: str) -> Any:
    """Read YAML.

    Args:
        where: what is being read, for messages, e.g. a file name.

    Raises:
        ConfigError: the text is not YAML, or a key is repeated.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}: " if mark else ""
        problem = getattr(error, "problem", None) or str(error)
        raise ConfigError(f"{where}: {line}a definition must be valid YAML, but got: {problem}. Correct it.") from None
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


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
            raise ConfigError(f"`--set` must be given as key=value, but got {override!r}. Write e.g. `--set train.lr=1e-3`.")
        node = result
        for depth, section in enumerate(sections):
            child = node.setdefault(section, {})
            if child is None:
                child = node[section] = {}
            if not isinstance(child, dict):
                path = ".".join(sections[: depth + 1])
                raise ConfigError(f"`--set` must name a field of a section, but got {key!r} where `{path}` is {child!r}. Set `{path}`.")
            node = child
        node[name] = load_yaml(value, f"--set {override}")
    return result
