"""Loading runs no code: nothing of ours unpickles, evaluates text, or reads YAML that may name Python objects."""

import ast
import os
import pickle
from pathlib import Path

import pytest
from inline import launch
from small_sweep import small_sweep

from sae_core.errors import ConfigError
from sweeps.definition.sweep import Sweep

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(path for package in ("sae_core", "sweeps", "analysis") for path in (ROOT / package).rglob("*.py"))
MODULES = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
CALLS = {"eval", "exec", "torch.load", "np.load", "numpy.load", "pickle.load", "pickle.loads", "yaml.unsafe_load", "yaml.full_load"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_loads_what_may_run(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {alias.name.split(".")[0] for alias in node.names} | {(getattr(node, "module", None) or "").split(".")[0]}
            assert not names & MODULES, f"line {node.lineno}: {names & MODULES}"
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name == "torch.load" and "weights_only=True" in [ast.unparse(keyword) for keyword in node.keywords]:
                continue  # makes tensors and plain containers of them only
            assert name not in CALLS and not name.endswith("cloudpickle.loads"), f"line {node.lineno}: {name}"
            if name == "yaml.load":
                loaders = [ast.unparse(keyword.value) for keyword in node.keywords if keyword.arg == "Loader"]
                assert loaders and ("SafeLoader" in loaders[0] or loaders == ["_Loader"]), f"line {node.lineno}: {loaders}"


class Payload:
    """Runs a command when it is unpickled."""

    def __init__(self, proof):
        self.proof = proof

    def __reduce__(self):
        return os.system, (f"touch {self.proof}",)


@pytest.mark.slow
def test_a_pickle_in_the_place_of_any_file_is_not_run(tmp_path, monkeypatch):
    monkeypatch.setattr("analysis.report.write_report", lambda *_: None)
    sweep = small_sweep(architectures={"topk": {"k": [2, 4]}})
    results, proof = tmp_path / "results", tmp_path / "proof"
    assert launch(sweep, results=results).finished == 2
    content = pickle.dumps(Payload(proof))
    for file in [path for path in results.rglob("*") if path.is_file() and path.name != ".lock"]:
        file.unlink()  # it may be mapped into memory
        file.write_bytes(content)
        if file.name == "record.json":
            (file.parent / "checkpoint.safetensors").write_bytes(content)
            (file.parent / "checkpoint.pt").write_bytes(content)
    assert launch(sweep, results=results).finished == 2
    assert not proof.exists()


def test_a_definition_names_no_python_objects(tmp_path):
    proof = tmp_path / "proof"
    file = tmp_path / "sweep.yaml"
    file.write_text(f"name: !!python/object/apply:os.system ['touch {proof}']\n")
    with pytest.raises(ConfigError):
        Sweep.from_yaml(str(file))
    assert not proof.exists()
