"""What the README and the docs show must exist: commands and their options, YAML that loads, Python that parses, files that are there."""

import ast
import re
import shlex
from pathlib import Path

import pytest
import typer.main
import yaml

from sweeps.cli import app

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?://|#)([^)#]+)")


def blocks(language):
    return [text for page in PAGES for found, text in BLOCK.findall(page.read_text()) if found == language]


def commands(program):
    """Command lines in the shell blocks that start with `program`, without comments."""
    lines = [line for text in blocks("bash") for line in text.splitlines()]
    return [words[1:] for line in lines if (words := shlex.split(line, comments=True))[:1] == [program]]


@pytest.mark.parametrize("arguments", commands("sae-sweep"), ids=" ".join)
def test_sae_sweep_has_these_commands_and_options(arguments):
    name, *rest = arguments
    group = typer.main.get_command(app)
    assert name in group.commands
    group.commands[name].make_context(name, rest)


@pytest.mark.parametrize("arguments", commands("make"), ids=" ".join)
def test_make_has_these_targets(arguments):
    targets = re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(arguments) <= set(targets)


@pytest.mark.parametrize("text", blocks("python"))
def test_python_parses(text):
    ast.parse(text)


@pytest.mark.parametrize("text", blocks("yaml"))
def test_yaml_loads(text):
    yaml.safe_load(text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    missing = [link for link in LINK.findall(page.read_text()) if not (page.parent / link).exists()]
    assert missing == []
