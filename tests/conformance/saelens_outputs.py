"""Run by test_saelens_roundtrip.py with a Python that has sae-lens: loads exported SAEs and writes what SAELens makes of them.

Usage: saelens_outputs.py DIRECTORY, which holds x.safetensors and a folder a SAE; writes outputs.safetensors and versions.json there.
"""

import json
import sys
from pathlib import Path

import sae_lens
import torch
from sae_lens import SAE
from safetensors.torch import load_file, save_file


def main(directory: Path) -> None:
    x = load_file(directory / "x.safetensors")["x"]
    outputs = {}
    for folder in sorted(path.parent for path in directory.glob("*/cfg.json")):
        sae = SAE.load_from_disk(str(folder))
        with torch.no_grad():
            latents = sae.encode(x)
            outputs |= {f"{folder.name}/latents": latents.contiguous(), f"{folder.name}/x_hat": sae(x).contiguous()}
    save_file(outputs, directory / "outputs.safetensors")
    (directory / "versions.json").write_text(json.dumps({"sae_lens": sae_lens.__version__, "torch": torch.__version__}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
