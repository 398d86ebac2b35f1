"""The commands and the Python of docs/features.md, on a small sweep of the embedded model."""

import shlex
import subprocess
import sys

import pytest
import yaml
from documents import ROOT, blocks
from typer.testing import CliRunner

from sweeps.cli import app

PAGE = ROOT / "docs" / "features.md"


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A directory with results/demo, and a file of labeled texts."""
    directory = tmp_path_factory.mktemp("features")
    content = yaml.safe_load((ROOT / "sweeps" / "definitions" / "demo.yaml").read_text())
    content["data"] |= {"train_tokens": 20_000, "eval_tokens": 2_000}
    content["model"]["context_size"] = 48
    content["sae"]["d_sae"] = 144
    small = content | {"target_l0": [8], "architectures": {"topk": {}}, "seeds": [0, 1]}
    (directory / "demo.yaml").write_text(yaml.safe_dump(small))
    done = CliRunner().invoke(app, ["run", str(directory / "demo.yaml"), "--results", str(directory / "results"), "--executor", "inline"])
    assert done.exit_code == 0, done.output
    stars = "\n".join(f'"It is item {row} of the list, and it is {"good" if row % 2 else "bad"}",{row % 2}' for row in range(80))
    (directory / "reviews.csv").write_text(f"review,stars\n{stars}\n")
    return directory


def lines(program):
    return [line for text in blocks(PAGE, "bash") for line in text.splitlines() if line.startswith(program)]


@pytest.mark.parametrize("line", lines("sae-sweep"))
def test_the_commands_run(directory, line, monkeypatch):
    if "probe" in line:
        pytest.importorskip("sklearn")
    monkeypatch.chdir(directory)
    first, second = sorted(path.name for path in (directory / "results" / "demo" / "runs").iterdir())
    names = {"topk-0123456789ab": first, "topk-ba9876543210": second, "path/to/sae": f"results/demo/runs/{second}/sae"}
    words = [names.get(word, word) for word in shlex.split(line, comments=True)[1:]]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output


def test_the_python_runs(directory):
    (code,) = blocks(PAGE, "python")
    done = subprocess.run([sys.executable, "-c", code], cwd=directory, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "mean cosine" in done.stdout and "->" in done.stdout
