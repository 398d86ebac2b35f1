import sys
from pathlib import Path

import pytest

from sae_core.errors import UnknownNameError
from sae_core.registry import Registry


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry[type]:
    """A registry whose package has a module each for "square" and "circle"."""
    package = tmp_path / "shapes_under_test"
    package.mkdir()
    (package / "__init__.py").write_text("from sae_core.registry import Registry\nSHAPES = Registry('shape', 'shapes_under_test')\n")
    for name in ("square", "circle"):
        source = f"from shapes_under_test import SHAPES\n@SHAPES.register({name!r})\nclass {name.title()}: pass\n"
        (package / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    for module in ("", ".square", ".circle"):
        monkeypatch.delitem(sys.modules, f"shapes_under_test{module}", raising=False)
    from shapes_under_test import SHAPES  # type: ignore[import-not-found]

    return SHAPES


def test_modules_of_the_package_are_found_on_first_use(plugins: Registry[type]) -> None:
    assert plugins["square"].__name__ == "Square"
    assert list(plugins) == ["circle", "square"]
    assert len(plugins) == 2
    assert "circle" in plugins and "sphere" not in plugins


def test_an_unknown_name_says_how_to_add_one(plugins: Registry[type]) -> None:
    with pytest.raises(UnknownNameError, match=r"shape must be one of .*, but got 'sqare'\. Did you mean 'square'\? .* under `plugins`"):
        plugins["sqare"]


def test_a_name_is_registered_once(plugins: Registry[type]) -> None:
    assert "square" in plugins
    with pytest.raises(ValueError, match="shape names must be unique, but 'square' is registered twice"):
        plugins.register("square")(int)
