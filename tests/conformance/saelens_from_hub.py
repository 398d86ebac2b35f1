"""Run by test_saelens_exports.py with a Python that has sae-lens: SAEs of a repository on the Hub that HF_ENDPOINT names.

Usage: saelens_from_hub.py DIRECTORY REPO FOLDER...; DIRECTORY holds x.safetensors. Writes outputs.safetensors there: latents, output and
log10 of the share of tokens that each latent is active on, as SAELens has them; and versions.json.
"""

import json
import sys
from pathlib import Path

import torch
from sae_lens import SAE
from safetensors.torch import load_file, save_file


@torch.no_grad()
def main(directory: Path, repo: str, folders: list[str]) -> None:
    x = load_file(directory / "x.safetensors")["x"]
    outputs = {}
    for folder in folders:
        sae, _, sparsity = SAE.from_pretrained_with_cfg_and_sparsity(repo, folder)
        assert sparsity is not None
        made = {"latents": sae.encode(x), "x_hat": sae(x), "sparsity": sparsity}
        outputs |= {f"{folder}/{name}": value.contiguous() for name, value in made.items()}
    save_file(outputs, directory / "outputs.safetensors")
    (directory / "versions.json").write_text(json.dumps({"torch": torch.__version__}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
