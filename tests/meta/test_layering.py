"""The rules of the house, read off the source: who may import whom, and how long things may be. See docs/architecture.md."""

import ast
import graphlib
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("sae_core", "sweeps", "analysis")
FILES = [path.relative_to(ROOT) for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
TESTS = [path.relative_to(ROOT) for path in sorted((ROOT / "tests").rglob("*.py"))]

HEAVY = {"transformer_lens", "transformers", "datasets", "wandb"}
"""Slow to import and not needed by a training worker."""
ANALYSIS_MAY_IMPORT = {
    f"sae_core.{name}"
    for name in ("records", "documents", "sparsity_file", "costs", "registry", "errors", "files", "validation", "layout", "plugins")
}
PRIVATE = {"torch._subclasses.fake_tensor": "tensors without memory for a model's shapes: PyTorch has no public name for their mode"}
"""Private modules of libraries, and why there is no public way."""
MAX_FILE_LINES, MAX_FUNCTION_LINES = 400, 60


class Import(NamedTuple):
    """One imported module."""

    module: str
    at_import: bool
    """Whether importing the file imports it: not inside a function, not for type checkers only."""


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text())


@cache
def modules() -> dict[str, Path]:
    """Our modules by name."""
    return {".".join(path.with_suffix("").parts).removesuffix(".__init__"): path for path in FILES}


def imports(path: Path) -> list[Import]:
    return list(_imports(tree(path), at_import=True))


def _imports(node: ast.AST, *, at_import: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, at_import) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "imports are absolute"
            for alias in (
                child.names
            ):  # `from sae_core import records` imports sae_core.records; `from sae_core.errors import border` sae_core.errors
                inner = f"{child.module}.{alias.name}"
                yield Import(inner if inner in modules() else str(child.module), at_import)
        else:
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) or _is_type_checking(child)
            yield from _imports(child, at_import=at_import and not inside)


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def top(module: str) -> str:
    return module.partition(".")[0]


def ids(path: Path) -> str:
    return path.as_posix()


def test_imports_are_told_apart() -> None:
    source = """
import a.b
from sae_core.sae import base
from sae_core.errors import ConfigError
if TYPE_CHECKING:
    import only_checked
try:
    import at_top
except ImportError:
    pass
class C:
    def method(self):
        import inside
"""
    found = list(_imports(ast.parse(source), at_import=True))
    assert [module.module for module in found if module.at_import] == ["a.b", "sae_core.sae.base", "sae_core.errors", "at_top"]
    assert [module.module for module in found if not module.at_import] == ["only_checked", "inside"]


def test_the_files_are_found() -> None:
    assert {path.parts[0] for path in FILES} == set(PACKAGES)


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_imports_stay_in_their_room(path: Path) -> None:
    found = imports(path)
    ours = {module.module for module in found if top(module.module) in PACKAGES}
    if path.parts[0] == "sae_core":
        assert not {module for module in ours if top(module) != "sae_core"}
        assert path.name == "trainable.py" or "ray" not in {top(module.module) for module in found}, "only trainable.py imports ray"
    if path.parts[0] == "analysis" and "features" not in path.parts:
        foreign = {module for module in ours if top(module) != "analysis"}
        assert foreign <= ANALYSIS_MAY_IMPORT
        assert not {top(module.module) for module in found} & {"torch", "ray"}


def test_no_circle_of_imports() -> None:
    """Also none that is hidden inside functions or made for type checkers alone."""
    graph = graphlib.TopologicalSorter(
        {name: {found.module for found in imports(path)} & modules().keys() for name, path in modules().items()}
    )
    try:
        graph.prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"a circle of imports: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize("path", FILES, ids=ids)
@pytest.mark.slow
def test_only_public_modules_of_libraries(path: Path) -> None:
    private = {module.module for module in imports(path) if any(re.match(r"_[a-z]", part) for part in module.module.split("."))}
    assert private <= PRIVATE.keys()


@pytest.mark.parametrize("path", FILES, ids=ids)
@pytest.mark.slow
def test_heavy_libraries_are_imported_inside_functions(path: Path) -> None:
    assert not {top(module.module) for module in imports(path) if module.at_import} & HEAVY


@pytest.mark.parametrize("path", FILES + TESTS, ids=ids)
def test_files_and_functions_are_short(path: Path) -> None:
    lines = len((ROOT / path).read_text().splitlines())
    assert lines <= MAX_FILE_LINES, f"a file must have at most {MAX_FILE_LINES} lines, but got {lines}. Split it."
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            assert lines <= MAX_FUNCTION_LINES, f"a function must have at most {MAX_FUNCTION_LINES} lines, but got {lines} in {node.name}."


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_nothing_prints(path: Path) -> None:
    calls = [node.func.id for node in ast.walk(tree(path)) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    assert "print" not in calls
