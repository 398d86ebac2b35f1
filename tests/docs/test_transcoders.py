"""docs/transcoders.md runs, in order and in one directory; with fewer tokens. Its part for circuit-tracer runs in the Python that
CIRCUIT_TRACER_PYTHON names, where there is one: tests/conformance/test_circuit_tracer.py says what that needs."""

import contextlib
import os
import re
import subprocess
import sys

import pytest
from documents import ROOT, blocks
from tiny_model import write_text
from typer.testing import CliRunner

from sweeps.cli import app

PAGE = ROOT / "docs" / "transcoders.md"
CIRCUIT_TRACER_PYTHON = os.environ.get("CIRCUIT_TRACER_PYTHON")

pytestmark = pytest.mark.slow


def run(command, directory, **environment):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """Where the page's definition was run and exported."""
    directory = tmp_path_factory.mktemp("transcoders")
    (definition,) = blocks(PAGE, "yaml")
    smaller = {"train_tokens: 1_000_000": "train_tokens: 40_960", "eval_tokens: 100_000": "eval_tokens: 4_000", "d_sae: 1024": "d_sae: 256"}
    smaller |= {"dataset: demo": f"dataset: {write_text(directory / 'text.jsonl', n_train=120, n_heldout=20)}"}
    smaller |= {"target_l0: [16, 32]": "target_l0: 32", "batch_size: 1024": "batch_size: 256"}
    for old, new in smaller.items():
        assert old in definition
        definition = definition.replace(old, new)
    (directory / "circuits.yaml").write_text(definition)
    for line in (line for text in blocks(PAGE, "bash") for line in text.splitlines()):
        program, *arguments = line.split()
        assert program == "sae-sweep"
        inline = ["--executor", "inline"] if arguments[0] == "run" else []
        with contextlib.chdir(directory):
            done = CliRunner().invoke(app, [*arguments, *inline])
        assert done.exit_code == 0, f"{line}\n{done.output}"
    return directory


def test_the_set_and_the_folders_are_there(directory):
    assert {file.name for file in (directory / "set").iterdir()} == {"config.yaml", *(f"layer_{layer}.safetensors" for layer in range(4))}
    assert len(list((directory / "saelens").glob("topk-*/sae_weights.safetensors"))) == 4


def test_one_transcoder_in_python(tmp_path):
    (code,) = [text for text in blocks(PAGE, "python") if "circuit_tracer" not in text]
    said = run([sys.executable, "-c", code], tmp_path)
    fvu, l0 = map(float, re.match(r"FVU (\S+) L0 (\S+)", said).groups())
    assert fvu < 0.5 and 7 < l0 < 9


@pytest.mark.skipif(CIRCUIT_TRACER_PYTHON is None, reason="CIRCUIT_TRACER_PYTHON is not set")
def test_the_graph(directory):
    (code,) = [text for text in blocks(PAGE, "python") if "circuit_tracer" in text]
    said = run([CIRCUIT_TRACER_PYTHON, "-c", code], directory, PYTHONPATH="", HF_HUB_OFFLINE="1")
    assert "' y'" in said
    assert (directory / "graphs" / "add.json").is_file()
