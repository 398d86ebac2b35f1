"""SAELens itself loads what `sae-sweep export` writes, from a directory and from a stand-in for the Hub, with no difference at all.

Runs where sae-lens is installed beside us, or in the Python that SAELENS_PYTHON names.
"""

import json
import subprocess
from pathlib import Path

import pytest
import torch
from exported import write_exported
from hub_stand_in import hub_stand_in
from safetensors.torch import load_file, save_file
from small_runs import D_IN
from test_saelens_roundtrip import SAELENS_PYTHON, outputs_of_saelens

from sae_core.sae.base import SparseAutoencoder
from sweeps.exporting import export

pytestmark = [
    pytest.mark.skipif(SAELENS_PYTHON is None, reason="sae-lens is not installed, and SAELENS_PYTHON is not set"),
    pytest.mark.slow,
]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A run of every architecture that SAELens knows."""
    return write_exported(tmp_path_factory.mktemp("results") / "sweep", n_documents=0)


def check(outputs: dict[str, torch.Tensor], saes: dict[str, Path], x: torch.Tensor, versions: Path) -> None:
    """No difference, where both multiply with the same PyTorch."""
    same_torch = json.loads(versions.read_text())["torch"] == torch.__version__
    tolerance = {"rtol": 0.0, "atol": 0.0} if same_torch else {"rtol": 1e-5, "atol": 1e-6}
    for name, folder in saes.items():
        with torch.no_grad():
            latents, x_hat = SparseAutoencoder.from_pretrained(folder).reconstruct(x)
        torch.testing.assert_close(outputs[f"{name}/latents"], latents, **tolerance, msg=lambda text, name=name: f"{name}: {text}")
        torch.testing.assert_close(outputs[f"{name}/x_hat"], x_hat, **tolerance, msg=lambda text, name=name: f"{name}: {text}")


def test_exported_folders(results: Path, tmp_path: Path) -> None:
    runs, folders = export(results, tmp_path / "saes", front=True)
    x = torch.randn(512, D_IN)
    outputs = outputs_of_saelens(tmp_path / "saes", x)
    check(outputs, {run.run_id: Path(folder) for run, folder in zip(runs, folders, strict=True)}, x, tmp_path / "saes" / "versions.json")


def test_published_folders_and_their_sparsity(results: Path, tmp_path: Path) -> None:
    x = torch.randn(512, D_IN)
    save_file({"x": x}, tmp_path / "x.safetensors")
    with hub_stand_in(tmp_path / "ours") as hub:
        runs, _ = export(results, "hub:user/saes", front=True)
        script = Path(__file__).with_name("saelens_from_hub.py")
        command = [str(SAELENS_PYTHON), script, tmp_path, "user/saes", *(run.run_id for run in runs)]
        environment = {name: value for name, value in hub.environment(tmp_path / "theirs").items() if name != "PYTHONPATH"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    outputs = load_file(tmp_path / "outputs.safetensors")
    check(outputs, {run.run_id: run.directory for run in runs}, x, tmp_path / "versions.json")
    for run in runs:
        times = load_file(run.run.paths.latents)["times_active"]
        torch.testing.assert_close(outputs[f"{run.run_id}/sparsity"], torch.log10(times / 100_352 + 1e-10))
