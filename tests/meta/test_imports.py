"""What importing costs, in a fresh Python: a training worker loads torch, pydantic and safetensors, and nothing slow beside them."""

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow  # starts other processes

HEAVY = ["ray", "transformer_lens", "transformers", "datasets", "wandb", "pandas", "matplotlib"]


def after(code: str, watched: list[str]) -> list[list[str]]:
    """Run `code`, which appends to the list `seen`, and return that list."""
    start = f"import json, sys\nseen = []\ndef loaded(): return sorted(sys.modules.keys() & set({watched!r}))"
    script = f"{start}\n{code}\nsys.stdout.write(json.dumps(seen))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    found: list[list[str]] = json.loads(done.stdout)
    return found


def test_training_loads_nothing_heavy() -> None:
    code = """
import sae_core
seen.append(loaded())
import sae_core.training.loop, sae_core.evaluation
from sae_core.config.run import ARCHITECTURES, SOURCES
from sae_core.metrics import METRICS
assert len(ARCHITECTURES) and len(METRICS) and len(SOURCES)
seen.append(loaded())
"""
    assert after(code, ["torch", *HEAVY]) == [[], ["torch"]]


def test_analysis_loads_neither_torch_nor_ray() -> None:
    code = """
import analysis, analysis.report
from analysis.plots import PLOTS
assert len(PLOTS)
seen.append(loaded())
"""
    assert after(code, ["torch", "ray"]) == [[]]
