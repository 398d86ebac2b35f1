"""What docs/coming-from.md names on our side exists: fields, commands and their options, names of parts, Python, files."""

import importlib
import re
import tomllib

import pytest
import typer.main
import yaml
from documents import ROOT, blocks

from analysis.plots import PLOTS
from sae_core.config import ARCHITECTURES, NORMALIZATIONS, SOURCES
from sae_core.config.run import TrainConfig
from sae_core.metrics import METRICS
from sweeps.cli import app
from sweeps.definition.grid import fields_of
from sweeps.definition.problems import model_in
from sweeps.definition.sections import Definition
from sweeps.definition.sweep import Sweep
from sweeps.execution.loggers import LOGGERS

PAGE = ROOT / "docs" / "coming-from.md"
COMMANDS = typer.main.get_command(app).commands
NAMES = {*ARCHITECTURES, *NORMALIZATIONS, *SOURCES, *METRICS, *LOGGERS, *PLOTS}


def rows():
    """The cells of every row of the page's tables, but heads and lines."""
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if not re.match(r"\|\s*(there|-)", line)]


def here():
    return sorted({span for row in rows() for span in re.findall(r"`([^`]+)`", row[1])})


def places():
    """Every field that a definition may give, as `--set` names it."""
    found = set(Definition.model_fields)
    language_model = SOURCES["language_model"]
    for path, _ in fields_of(language_model.Config, ()).values():
        found.add(f"data.{path[-1]}")  # counts of tokens
    for section in language_model.sections:
        model = model_in(language_model.Config.model_fields[section].annotation)
        found |= {f"{section}.{field}" for field in fields_of(model, ())}
    for source in SOURCES.values():
        found |= {f"activations.{field}" for field in source.Config.model_fields}
    found |= {f"train.{field}" for field in TrainConfig.model_fields}
    for name, kind in ARCHITECTURES.items():
        found |= {f"architectures.{name}.{field}" for field in kind.Config.model_fields}
    common = set.intersection(*(set(kind.Config.model_fields) for kind in ARCHITECTURES.values()))
    found |= {f"sae.{field}" for field in common}
    for name, kind in LOGGERS.items():
        options = kind.Options.model_fields if kind.Options else ()
        found |= {f"loggers.{name}", *(f"{name}.{field}" for field in options)}
    return found


def options(*words):
    return {option for word in words for parameter in COMMANDS[word].params for option in parameter.opts}


def exists(span):
    if span.startswith("sae-sweep "):
        command, *given = span.removeprefix("sae-sweep ").split()
        return command in COMMANDS and set(given) <= options(command)
    if span.startswith("--"):
        return span in options("run")
    if "/" in span:
        return (ROOT / span).is_file()
    if span.startswith(("sae_core.", "sweeps.", "analysis.")):
        return resolves(span)
    return span in NAMES or span.partition(":")[0] in places()


def resolves(dotted):
    """Whether modules and then attributes of this name exist."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for name in parts[length:]:
            if not hasattr(found, name):
                return False
            found = getattr(found, name)
        return True
    return False


def test_every_row_says_what_is_here_or_why_not():
    assert len(rows()) > 100
    for row in rows():
        assert len(row) == 3, row
        assert row[1] != "–" or row[2], f"why not? {row}"


@pytest.mark.parametrize("span", here())
def test_what_is_named_exists(span):
    assert exists(span), span


@pytest.mark.parametrize(
    "span", ["train.lrr", "architectures.topk.kk", "sae-sweep runn", "sae-sweep run --addres", "sae_core.train", "examples/no.py"]
)
def test_what_does_not_exist_is_noticed(span):
    assert not exists(span)


@pytest.mark.slow
@pytest.mark.parametrize(("language", "load"), [("yaml", yaml.safe_load), ("toml", tomllib.loads)])
def test_its_definitions_are_valid(language, load, tmp_path):
    (text,) = blocks(PAGE, language)
    (tmp_path / f"a.{language}").write_text(text)
    sweep = Sweep.from_yaml(tmp_path / f"a.{language}")
    assert sweep.name == load(text)["name"]
    assert len(sweep.runs()) == {"yaml": 18, "toml": 3}[language]
