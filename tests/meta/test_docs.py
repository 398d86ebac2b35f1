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
    """README's and the plugins of extending.md are; whoever adds Python to another page adds a test."""
    assert {page.name for page in PAGES if blocks(page, "python")} == {"README.md", "extending.md"}
