"""SAELens itself loads what we export, and computes the same; so do we with what it and other programs wrote.

Runs where sae-lens is installed beside us (`pip install sae-sweep sae-lens`), or in the Python that SAELENS_PYTHON names.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import saelens_folders
import torch
from safetensors.torch import load_file, save_file
from small_runs import D_IN, D_SAE, pairs_of, run_of, stream_of, tokens

from sae_core.config.run import ARCHITECTURES, NORMALIZATIONS
from sae_core.sae.base import SparseAutoencoder
from sae_core.training.loop import train_group

SAELENS_PYTHON = os.environ.get("SAELENS_PYTHON") or (sys.executable if importlib.util.find_spec("sae_lens") else None)

pytestmark = pytest.mark.skipif(SAELENS_PYTHON is None, reason="sae-lens is not installed, and SAELENS_PYTHON is not set")


def export(directory: Path, normalize_activations: str) -> list[str]:
    """Train and export every architecture that SAELens knows and that can be trained in these units; names of the folders."""
    known = [name for name, cls in ARCHITECTURES.items() if cls.saelens_architecture is not None]
    known = [name for name in known if normalize_activations != "whitening" or not ARCHITECTURES[name].Config.is_tied]
    runs = [run_of(name, n_steps=60, batch_size=128, normalize_activations=normalize_activations) for name in known]
    names = [f"{name}-{normalize_activations}" for name in known]
    for name, result in zip(names, train_group(runs, stream_of(runs[0])), strict=True):
        inference = result.exported()
        inference.save_pretrained(directory / name, {"model_name": "synthetic", "hook_name": "x"})
    return names


def export_transcoders(directory: Path, normalize_activations: str) -> list[str]:
    """The same of transcoders, each with and without a skip connection."""
    known = [(name, skip) for name, cls in ARCHITECTURES.items() for skip in (False, True) if cls.transcodes]
    examples = {name: ARCHITECTURES[name].Config.example(D_IN, D_SAE) for name, _ in known}
    configs = [examples[name].model_copy(update={"skip_connection": skip, **examples[name].transcoder_start}) for name, skip in known]
    runs = [run_of(config, n_steps=60, batch_size=128, normalize_activations=normalize_activations) for config in configs]
    names = [f"{name}-transcoder{'-skip' * skip}-{normalize_activations}" for name, skip in known]
    for name, result in zip(names, train_group(runs, pairs_of(runs[0])), strict=True):
        result.exported().save_pretrained(directory / name, {"model_name": "synthetic", "hook_name": "x", "hook_name_out": "y"})
    return names


def outputs_of_saelens(directory: Path, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """What SAELens makes of the folders in `directory`: "<folder>/latents", "<folder>/x_hat"."""
    assert SAELENS_PYTHON is not None
    save_file({"x": x}, directory / "x.safetensors")
    script = Path(__file__).with_name("saelens_outputs.py")
    done = subprocess.run([SAELENS_PYTHON, script, directory], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads((directory / "versions.json").read_text())["sae_lens"].startswith("6.")
    return load_file(directory / "outputs.safetensors")


def tolerance_in(directory: Path) -> dict[str, float]:
    """No difference at all, where SAELens ran on the same version of PyTorch."""
    same_torch = json.loads((directory / "versions.json").read_text())["torch"] == torch.__version__
    return {"rtol": 0.0, "atol": 0.0} if same_torch else {"rtol": 1e-5, "atol": 1e-6}


def assert_saelens_agrees(directory: Path, names: list[str]) -> None:
    """To the last bit, where it runs on the same version of PyTorch."""
    x = tokens(512)
    theirs = outputs_of_saelens(directory, x)
    for name in names:
        with torch.no_grad():
            latents, x_hat = SparseAutoencoder.from_pretrained(directory / name).reconstruct(x)
        for what, ours in (("latents", latents), ("x_hat", x_hat)):
            expected = theirs[f"{name}/{what}"]
            torch.testing.assert_close(expected, ours, **tolerance_in(directory), msg=lambda text, name=name: f"{name}: {text}")


def test_saelens_computes_what_we_compute_to_the_last_bit(tmp_path: Path) -> None:
    assert_saelens_agrees(tmp_path, [name for units in NORMALIZATIONS for name in export(tmp_path, units)])


def test_saelens_computes_what_our_transcoders_compute_to_the_last_bit(tmp_path: Path) -> None:
    assert_saelens_agrees(tmp_path, [name for units in ("expected_norm", "whitening") for name in export_transcoders(tmp_path, units)])


def test_we_compute_what_saelens_computes_of_other_programs_files(tmp_path: Path) -> None:
    for name, (cfg, tensors) in saelens_folders.foreign().items():
        saelens_folders.write(tmp_path / name, cfg, tensors)
    x = torch.randn(512, saelens_folders.D_IN)
    theirs = outputs_of_saelens(tmp_path, x)
    for name in saelens_folders.foreign():
        # What is folded as it is read, b_dec or decoder norms, rounds in another order.
        exact = name.startswith(("matching_pursuit", "abstopk-plain"))
        tolerance = tolerance_in(tmp_path) if exact else {"rtol": 1e-4, "atol": 1e-4}
        with torch.no_grad():
            latents, x_hat = SparseAutoencoder.from_pretrained(tmp_path / name).reconstruct(x)
        torch.testing.assert_close(latents, theirs[f"{name}/latents"], **tolerance, msg=lambda text, name=name: f"{name}: {text}")
        torch.testing.assert_close(x_hat, theirs[f"{name}/x_hat"], **tolerance, msg=lambda text, name=name: f"{name}: {text}")
