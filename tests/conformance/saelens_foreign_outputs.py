"""Run by test_saelens_foreign.py with a Python that has sae-lens: what SAELens makes of other programs' folders on the Hub.

Usage: saelens_foreign_outputs.py DIRECTORY, which holds x.safetensors and loaders.json: folder of the repository -> name of the loader, its
repository, and what replaces values that it takes from names. Writes outputs.safetensors and versions.json there.
"""

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import sae_lens
import torch
from sae_lens import SAE
from sae_lens.loading import pretrained_sae_loaders
from safetensors.torch import load_file, save_file


def _without_overrides(read: Callable[..., Any]) -> Callable[..., Any]:
    """SAELens passes overrides of its own list, which has none for these repositories."""
    return lambda *args, cfg_overrides=None, **given: read(*args, **given)


def main(directory: Path) -> None:
    x = load_file(directory / "x.safetensors")["x"]
    outputs = {}
    for folder, (loader, repo, overrides) in json.loads((directory / "loaders.json").read_text()).items():
        read = partial(getattr(pretrained_sae_loaders, loader), cfg_overrides=overrides)
        sae = SAE.from_pretrained(repo, folder, converter=_without_overrides(read))
        with torch.no_grad():
            outputs |= {f"{folder}/latents": sae.encode(x).contiguous(), f"{folder}/x_hat": sae(x).contiguous()}
    save_file(outputs, directory / "outputs.safetensors")
    (directory / "versions.json").write_text(json.dumps({"sae_lens": sae_lens.__version__, "torch": torch.__version__}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
