"""What SAELens' own loaders make of folders of dictionary_learning and Gemma Scope on the Hub, and what we make of the same ones.

Runs as test_saelens_roundtrip.py does. Its loader of sparsify does not read what sparsify 1.3.3 writes.
"""

import json
import subprocess
from pathlib import Path

import pytest
import torch
from foreign_folders import D, M, dictionary_learning, jumprelu, random, write_dictionary_learning, write_gemma_scope
from hub_stand_in import HubStandIn, hub_stand_in
from safetensors.torch import load_file, save_file
from test_saelens_roundtrip import SAELENS_PYTHON

from sae_core.sae.base import SparseAutoencoder
from sae_core.sae.hub import located

pytestmark = pytest.mark.skipif(SAELENS_PYTHON is None, reason="sae-lens is not installed, and SAELENS_PYTHON is not set")

# AutoEncoderNew has a bias of another name, without which SAELens loads it.
CLASSES = ("AutoEncoder", "GatedAutoEncoder", "JumpReluAutoEncoder", "AutoEncoderTopK", "BatchTopKSAE", "MatryoshkaBatchTopKSAE")
ROUNDED = {"JumpReluAutoEncoder", "GatedAutoEncoder", "layer_3/width_4k/res", "resid_post/layer_9_x"}
"""A b_dec that is not subtracted is folded into b_enc, and SAELens multiplies exp(r_mag) into W_enc: the same sums in another order."""
SIZES = {"d_in": D, "d_sae": M}
Loaders = dict[str, tuple[str, str, dict[str, int]]]


def publish(hub: HubStandIn, directory: Path) -> Loaders:
    """Folders on the stand-in for the Hub: folder -> SAELens' loader, repository, and what names would say of real ones."""
    loaders: Loaders = {}
    for kind in CLASSES:
        trainer = {"lm_name": "EleutherAI/pythia-70m", "submodule_name": "resid_post_layer_3", "k": 5}
        folder = write_dictionary_learning(directory / kind, kind, dictionary_learning(kind)[0], **trainer)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"buffer": {"io": "out", "ctx_len": 128}}))
        hub.add("user/saes", folder, kind)
        loaders[kind] = "dictionary_learning_sae_huggingface_loader_1", "user/saes", {}
    for site, loader, sizes in (
        ("res", "gemma_2_sae_huggingface_loader", SIZES),
        ("transcoders", "gemma_2_transcoder_huggingface_loader", {**SIZES, "d_out": D}),
    ):
        repo, inside = f"google/gemma-scope-2b-pt-{site}", f"layer_3/width_4k/{site}"
        hub.add(repo, write_gemma_scope(directory / site, 1, jumprelu()), inside)
        loaders[inside] = loader, repo, sizes
    second = {
        "resid_post/layer_9_x": {},
        "transcoder/layer_9_x": {"hf_hook_point_out": "model.layers.9.mlp.output", "affine_connection": True},
    }
    for inside, config in second.items():
        tensors = jumprelu() | ({"affine_skip_connection": random(D, D)} if config else {})
        folder = write_gemma_scope(directory / inside, 2, tensors, model_name="gemma-v3-1b-pt", **config)
        hub.add("google/gemma-scope-2-1b-pt", folder, inside)
        loaders[inside] = "gemma_3_sae_huggingface_loader", "google/gemma-scope-2-1b-pt", {}
    return loaders


def test_we_compute_what_saelens_computes_of_folders_on_the_hub(tmp_path: Path) -> None:
    assert SAELENS_PYTHON is not None
    x = torch.randn(512, D)
    save_file({"x": x}, tmp_path / "x.safetensors")
    with hub_stand_in(tmp_path / "cache") as hub:
        loaders = publish(hub, tmp_path)
        (tmp_path / "loaders.json").write_text(json.dumps(loaders))
        script = Path(__file__).with_name("saelens_foreign_outputs.py")
        environment = hub.environment(tmp_path / "theirs")
        done = subprocess.run([SAELENS_PYTHON, script, tmp_path], env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        ours = {inside: SparseAutoencoder.from_pretrained(located(f"hub:{repo}/{inside}")) for inside, (_, repo, _) in loaders.items()}
    theirs = load_file(tmp_path / "outputs.safetensors")
    same_torch = json.loads((tmp_path / "versions.json").read_text())["torch"] == torch.__version__
    for inside, sae in ours.items():
        exact = same_torch and inside not in ROUNDED
        tolerance = {"rtol": 0.0, "atol": 0.0} if exact else {"rtol": 1e-5, "atol": 1e-4}
        with torch.no_grad():
            for name, tensor in zip(("latents", "x_hat"), sae.reconstruct(x), strict=True):
                torch.testing.assert_close(
                    tensor, theirs[f"{inside}/{name}"], **tolerance, msg=lambda text, inside=inside: f"{inside}: {text}"
                )
