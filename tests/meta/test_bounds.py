"""constraints-oldest.txt holds the lower bound of every requirement."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_oldest_versions_are_the_lower_bounds() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    bounds = dict(match.groups() for one in requirements if (match := re.match(r"([\w-]+)[^>]*>=([\d.]+)", one)))
    pins = dict(line.split("==") for line in (ROOT / "constraints-oldest.txt").read_text().splitlines() if "==" in line)
    tools = {"ruff", "mypy"}  # change nothing that a test could see
    assert {name.lower() for name in pins} == {name.lower() for name in bounds} - tools
    for name, version in pins.items():
        bound = next(bound for other, bound in bounds.items() if other.lower() == name.lower())
        assert f"{version}.".startswith(f"{bound}."), f"{name}=={version} is not the lower bound {bound}"
