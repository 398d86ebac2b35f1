"""JSON-like content, broken: what fuzz tests of definitions, records and cfg.jsons read.

    @given(mutated(valid_definition))

A few nodes of the tree are deleted, renamed, repeated, swapped with another or replaced by a value that nobody expects there.
"""

import copy
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

Path = tuple[str | int, ...]
"""Keys and indices that lead from the root to a node."""

MOST_MUTATIONS = 3


def nested(depth: int) -> Any:
    """Lists and dicts in one another."""
    content: Any = 0
    for level in range(depth):
        content = [content] if level % 2 else {"a": content}
    return content


ODD_VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 7, 10**6, 2**63, 10**30, -(10**30), 10**400),
    *(0.0, -0.0, 0.5, -1.5, 4.0, 1e-320, 1e300, float("nan"), float("inf"), float("-inf")),
    *(
        "",
        " ",
        "a",
        "0",
        "1e400",
        "nan",
        "none",
        "None",
        "float32",
        "~nosuchuser",
        "../..",
        "a\x00b",
        "\n",
        "x" * 5_000,
        "é",
        "[",
        "{}",
        "*",
        "%s",
    ),
    *("\ud800", "a\udfffb"),
    *([], [[]], {}, [0], [None, 1, "a"], {"a": 1}, {"": None}, {"\ud800": 0}, [0] * 1_000),
    *(nested(20), nested(200)),
]
"""Put in place of a value. Lone surrogates (U+D800) are text that no file can hold as UTF-8; JSON spells them out."""

ODD_KEYS = ["", " ", "a", "architecture", "x" * 300, "\ud800", "a.b", "__class__", "*"]


@st.composite
def mutated(draw: DrawFn, content: Any, *, at_most: int = MOST_MUTATIONS) -> Any:
    """A copy of `content`, which is dicts, lists and scalars, after one to `at_most` mutations."""
    root = [copy.deepcopy(content)]  # so that the root has a place, too
    for _ in range(draw(st.integers(1, at_most))):
        path = draw(st.sampled_from(list(_paths(root[0], (0,)))))
        draw(st.sampled_from([_replace, _replace, _replace, _nudge, _delete, _rename, _repeat, _swap, _wrap]))(draw, root, path)
    return root[0]


def odd_values() -> SearchStrategy[Any]:
    """A value that nobody expects, or a scalar of any kind."""
    scalars = st.integers() | st.floats() | st.text(max_size=8)
    return st.sampled_from(ODD_VALUES).map(copy.deepcopy) | scalars


def _paths(node: Any, path: Path) -> Iterator[Path]:
    yield path
    if len(path) > 12:  # what a mutation nested
        return
    items = node.items() if isinstance(node, dict) else enumerate(node[:20]) if isinstance(node, list) else ()
    for key, value in items:
        yield from _paths(value, (*path, key))


def _at(root: list[Any], path: Path) -> Any:
    node: Any = root
    for key in path:
        node = node[key]
    return node


def _replace(draw: DrawFn, root: list[Any], path: Path) -> None:
    _at(root, path[:-1])[path[-1]] = draw(odd_values())


def _nudge(draw: DrawFn, root: list[Any], path: Path) -> None:
    """A value close to what was there: another type, sign, size or spelling."""
    value = _at(root, path)
    near: list[Any] = [value, [value], {"value": value}, str(value)[:100]]
    if isinstance(value, int | float):
        near = [-value, value * 2, value + 1, value - 1, float(min(max(value, -1e300), 1e300)), str(value), bool(value)]
    elif isinstance(value, str):
        near = (
            [value + "x", value[:-1], value.upper(), f" {value}", value[::-1], [value], value.encode().hex()] if value.isascii() else [""]
        )
    _at(root, path[:-1])[path[-1]] = draw(st.sampled_from(near))


def _delete(draw: DrawFn, root: list[Any], path: Path) -> None:
    if len(path) > 1:
        del _at(root, path[:-1])[path[-1]]


def _rename(draw: DrawFn, root: list[Any], path: Path) -> None:
    parent = _at(root, path[:-1])
    if isinstance(parent, dict):
        old = str(path[-1])
        parent[draw(st.sampled_from([*ODD_KEYS, f"{old}s", old[:-1], old.upper()]))] = parent.pop(path[-1])


def _repeat(draw: DrawFn, root: list[Any], path: Path) -> None:
    """The node again: beside itself in a list, under another key in a dict."""
    parent, value = _at(root, path[:-1]), copy.deepcopy(_at(root, path))
    if isinstance(parent, dict):
        parent[draw(st.sampled_from([*ODD_KEYS, f"{path[-1]}_2"]))] = value
    elif len(path) > 1:
        parent.insert(0, value)


def _swap(draw: DrawFn, root: list[Any], path: Path) -> None:
    """The values of two nodes that do not hold one another, exchanged."""
    others = [other for other in _paths(root[0], (0,)) if other != path[: len(other)] and path != other[: len(path)]]
    if others:
        other = draw(st.sampled_from(others))
        here, there = _at(root, path), _at(root, other)
        _at(root, path[:-1])[path[-1]], _at(root, other[:-1])[other[-1]] = there, here


def _wrap(draw: DrawFn, root: list[Any], path: Path) -> None:
    """The node inside lists and dicts."""
    value = _at(root, path)
    _at(root, path[:-1])[path[-1]] = draw(st.sampled_from([[value], {"value": value}, [[value]], [value, value]]))
