"""plugins.py: modules and files of the user's, imported once, told apart by their contents."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sae_core import plugins
from sae_core.errors import ConfigError
from sae_core.registry import Registry
from sweeps.samplers import SAMPLERS


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "_loaded", {})
    monkeypatch.setattr(sys, "path", [*sys.path])


def write(file: Path, text: str) -> str:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return str(file)


def checksum(location: str) -> str:
    return next(plugin.checksum for plugin in plugins.load([location]) if plugin.location == location)


def test_a_file_is_imported_with_the_files_beside_it(tmp_path: Path) -> None:
    write(tmp_path / "beside_it.py", "VALUE = 3")
    location = write(tmp_path / "my_sae.py", "from beside_it import VALUE\nclass Thing: value = VALUE")
    (plugin,) = plugins.load([location])
    assert (plugin.name, plugin.location) == ("my_sae.py", location)
    assert {Path(file).name for file in plugin.files} == {"my_sae.py", "beside_it.py"}


def test_a_module_is_imported_with_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    write(tmp_path / "my_package_1" / "__init__.py", "")
    write(tmp_path / "my_package_1" / "helpers.py", "")
    write(tmp_path / "my_package_1" / "unused.py", "")
    write(tmp_path / "my_package_1" / "my_sae.py", "from . import helpers\nimport json")
    (plugin,) = plugins.load(["my_package_1.my_sae"])
    assert {Path(file).name for file in plugin.files} == {"my_sae.py", "helpers.py", "__init__.py"}
    assert plugin.name == "my_package_1.my_sae"


def test_the_checksum_is_of_contents(tmp_path: Path) -> None:
    one, other = (write(tmp_path / name / "a.py", "import b") for name in ("one", "other"))
    write(tmp_path / "one" / "b.py", "X = 1")
    helper = write(tmp_path / "other" / "b.py", "X = 1")
    before = checksum(one)
    plugins._loaded.clear()
    assert checksum(other) == before, "the directory does not matter"
    write(Path(helper), "X = 2")
    assert checksum(other) != before, "a file that it imports does"


def test_an_edited_plugin_is_imported_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    write(tmp_path / "no_shapes_yet" / "__init__.py", "")
    registry: Registry[Any] = Registry("shape", "no_shapes_yet")
    sys.modules["shapes_of_a_test"] = type(sys)("shapes_of_a_test")
    sys.modules["shapes_of_a_test"].SHAPES = registry  # type: ignore[attr-defined]
    text = "from shapes_of_a_test import SHAPES\n@SHAPES.register('circle')\nclass Circle: version = {}"
    location = write(tmp_path / "circle.py", text.format(1))
    plugins.load([location])
    write(tmp_path / "circle.py", text.format(2))
    plugins.load([location])
    assert registry["circle"].version == 2
    assert list(plugins.checksums_of([registry["circle"]])) == ["circle.py"]
    assert plugins.checksums_of([Path, subprocess.run]) == {}


def test_an_edited_plugin_keeps_no_name_that_it_gave_up(tmp_path: Path) -> None:
    text = "from sweeps.samplers import SAMPLERS\n@SAMPLERS.register({!r})\ndef sampler(seed, n_trials): pass"
    location = write(tmp_path / "mine.py", text.format("first"))
    plugins.load([location])
    write(tmp_path / "mine.py", text.format("second"))
    plugins.load([location])
    assert "second" in SAMPLERS and "first" not in SAMPLERS
    plugins.unload(location)
    assert "second" not in SAMPLERS and "tpe" in SAMPLERS


def test_another_process_must_have_the_same(tmp_path: Path) -> None:
    location = write(tmp_path / "a.py", "")
    plugins.load_same({location: checksum(location)})
    with pytest.raises(ConfigError, match=r"must be the same in every process, but .*a\.py' has checksum \w+ here and 123 where"):
        plugins.load_same({location: "123"})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("1 / 0", "ZeroDivisionError"),
        ("def", "SyntaxError"),
        ("import no_such_module", "no_such_module"),
        ("raise SystemExit(3)", "ends the program"),
    ],
)
def test_a_broken_plugin_is_named_with_its_reason(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=rf"a plugin must be importable, but got '.*broken\.py': .*{reason}"):
        plugins.load([write(tmp_path / "broken.py", text)])


def test_all_that_are_missing_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"(?s)got 'no_such_package.x'.*\n.*missing\.py"):
        plugins.load(["no_such_package.x", str(tmp_path / "missing.py")])


def test_names_of_plugins_must_differ(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"plugins must have different names, but got .*one/a\.py' and .*two/a\.py'"):
        plugins.load([write(tmp_path / name / "a.py", "") for name in ("one", "two")])


def test_paths_are_relative_to_a_directory(tmp_path: Path) -> None:
    assert plugins.absolute("./a.py", tmp_path) == str(tmp_path / "a.py")
    assert plugins.absolute("package.module", tmp_path) == "package.module"
    assert plugins.absolute("a.py", tmp_path) == str(tmp_path / "a.py")


def test_installed_packages_offer_plugins(tmp_path: Path) -> None:
    write(tmp_path / "offered_plugin.py", "")
    write(tmp_path / "offers-1.0.dist-info" / "METADATA", "Metadata-Version: 2.1\nName: offers\nVersion: 1.0\n")
    write(tmp_path / "offers-1.0.dist-info" / "entry_points.txt", f"[{plugins.GROUP}]\nx = offered_plugin\n")
    sys.path.append(str(tmp_path))
    assert [plugin.name for plugin in plugins.load()] == ["offered_plugin"]


def test_a_name_of_ours_cannot_be_taken(tmp_path: Path) -> None:
    text = "from sae_core.config import ARCHITECTURES\n@ARCHITECTURES.register('topk')\nclass TopK: pass"
    with pytest.raises(ConfigError, match=r"architecture names must be unique, but 'topk' is registered twice"):
        plugins.load([write(tmp_path / "mine.py", text)])


def test_a_plugin_whose_import_fails_registers_nothing(tmp_path: Path) -> None:
    lines = ["from sweeps.samplers import SAMPLERS", "@SAMPLERS.register('half')", "def half(*_): ...", "1 / 0"]
    with pytest.raises(ConfigError, match="ZeroDivisionError"):
        plugins.load([write(tmp_path / "half.py", "\n".join(lines))])
    assert "half" not in SAMPLERS
