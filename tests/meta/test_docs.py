"""What README and docs show exists: commands and their options, YAML that loads, files that are linked. Their code runs in tests/docs."""

import re
import shlex

import pytest
import typer.main
import yaml
from documents import PAGES, ROOT, blocks

from sweeps.cli import app

LINK = re.compile(r"\]\((?!https?://|#)([^)#]+)")


def commands(program):
    """Command lines in the shell blocks that start with `program`, without comments."""
    lines = [line for page in PAGES for text in blocks(page, "bash") for line in text.splitlines()]
    return [words[1:] for line in lines if (words := shlex.split(line, comments=True))[:1] == [program]]


@pytest.mark.parametrize("arguments", commands("sae-sweep"), ids=" ".join)
@pytest.mark.slow
def test_sae_sweep_has_these_commands_and_options(arguments):
    name, *rest = arguments
    group = typer.main.get_command(app)
    assert name in group.commands
    group.commands[name].make_context(name, rest)


@pytest.mark.parametrize("arguments", commands("make"), ids=" ".join)
def test_make_has_these_targets(arguments):
    targets = re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(arguments) <= set(targets)


@pytest.mark.parametrize("text", [text for page in PAGES for text in blocks(page, "yaml")])
def test_yaml_loads(text):
    yaml.safe_load(text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    missing = [link for link in LINK.findall(page.read_text()) if not (page.parent / link).exists()]
    assert missing == []


def test_every_python_block_is_run_by_a_test():
    """README's, the plugins of extending.md and features.md are; whoever adds Python to another page adds a test."""
    assert {page.name for page in PAGES if blocks(page, "python")} == {
        "README.md",
        "analysis.md",
        "crosscoders.md",
        "extending.md",
        "features.md",
        "own-activations.md",
        "transcoders.md",
    }


def test_the_map_names_every_file():
    rooms = (ROOT / "docs" / "architecture.md").read_text().partition("## Who imports whom")[0]
    files = {path.name for package in ("sae_core", "sweeps", "analysis") for path in (ROOT / package).rglob("*.py")}
    assert set(re.findall(r"\w+\.py", rooms)) == files - {"__init__.py"}


def test_the_tests_of_invariants_exist():
    table = (ROOT / "docs" / "architecture.md").read_text().partition("## Invariants")[2]
    file = ROOT
    for name in re.findall(r"`(\w+/\w+\.py(?:::\w+)?|::\w+)`", table):
        path, _, test = name.partition("::")
        file = ROOT / "tests" / path if path else file
        assert file.is_file(), name
        assert f"def {test}" in file.read_text(), name
