"""The plugins of docs/extending.md pass the contract tests of the parts that come with the package, and train on two workers."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
import yaml
from documents import ROOT, blocks

from analysis.table import load_table

CONTRACTS = [f"tests/contract/test_{parts}.py" for parts in ("architectures", "metrics", "sources", "plots")]


@pytest.fixture(scope="module")
def plugins(tmp_path_factory):
    """The page's plugins as files: registered name -> path."""
    directory = tmp_path_factory.mktemp("plugins")
    files = {}
    for text in blocks(ROOT / "docs" / "extending.md", "python"):
        name = re.search(r'\.register\("(\w+)"\)', text)[1]
        files[name] = directory / f"my_{name}.py"
        files[name].write_text(text)
    return files


def test_they_pass_the_contract_tests(plugins):
    names = " or ".join(plugins)
    environment = {**os.environ, "SAE_SWEEP_TEST_PLUGINS": os.pathsep.join(map(str, plugins.values()))}
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-m", "", "-p", "no:cacheprovider", *CONTRACTS, "-k", names]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
    n_passed = int(re.search(r"(\d+) passed", done.stdout)[1])
    assert n_passed > 40, "each of them has its tests"


@pytest.mark.ray
def test_they_train_on_two_workers(plugins, tmp_path):
    generator = np.random.default_rng(0)
    directions = generator.standard_normal((24, 16)).astype(np.float32)
    rows = (generator.random((70_000, 24)) > 0.9).astype(np.float32) @ directions
    (tmp_path / "activations").mkdir()
    for number, part in enumerate(np.array_split(rows, 3)):
        np.save(tmp_path / "activations" / f"{number}.npy", part)
    definition = {
        "name": "mine",
        "plugins": [str(file) for file in plugins.values()],
        "activations": {"source": "array", "path": "./activations", "train_tokens": 66_000, "eval_tokens": 4_000},
        "sae": {"d_sae": 32},
        "train": {"lr": 4e-3, "batch_size": 256},
        "architectures": {"log_penalty": {"log_coefficient": [0.3, 1.0]}, "topk": {"k": 2, "normalize_activations": "centered"}},
        "loggers": {"csv": {"file": "progress.csv"}},
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(definition))
    command = [sys.executable, "-m", "sweeps", "run", "mine.yaml"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    table = load_table(tmp_path / "results" / "mine").set_index("architecture")
    assert (table.status == "finished").all()
    assert table.norm_ratio.between(0.3, 1.2).all()
    assert len((tmp_path / "results" / "mine" / "progress.csv").read_text().splitlines()) == 3
    losses = [line.split(",") for line in (tmp_path / "results" / "mine" / "losses.csv").read_text().splitlines()]
    assert {run_id for run_id, *_ in losses} == set(table.run_id)
    assert len({(run_id, step) for run_id, step, _ in losses}) == len(losses) >= 9
