"""SAEs on the patches of a vision transformer: a sweep over sparsity at several layers, which one pass over the images harvests.

    python examples/vit.py google/vit-base-patch16-224 ./train-images ./test-images

The images are files in two directories (.png, .jpg, ...). This file is the plugin, too: it registers the source `vit`.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from rich import print

from analysis import load_table, pareto_front
from sae_core.activations.module import ModuleActivations, ModuleSource
from sae_core.config import SOURCES
from sweeps import Sweep, launch


class ViTActivations(ModuleActivations):
    """Patches of the images in two directories."""

    source: Literal["vit"] = "vit"
    model: str
    """A ViT on the Hugging Face Hub, or its directory."""
    train_images: str
    heldout_images: str


class Images(Sequence[torch.Tensor]):
    """The images of a directory, read when they are asked for: float32 [3, size, size], as the model wants them."""

    def __init__(self, directory: str, size: int) -> None:
        self.files, self.size = sorted(file for file in Path(directory).iterdir() if file.is_file()), size

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> torch.Tensor:
        import numpy as np
        from PIL import Image

        with Image.open(self.files[index]) as image:
            pixels = np.asarray(image.convert("RGB").resize((self.size, self.size)), dtype=np.float32)
        return torch.from_numpy(pixels / 127.5 - 1).permute(2, 0, 1)  # ViT's processor: mean 0.5, standard deviation 0.5


@SOURCES.register("vit")
class ViTSource(ModuleSource):
    """Activations of a vision transformer; the class token is a position, as the patches are."""

    Config = ViTActivations
    path_fields = (("model",), ("train_images",), ("heldout_images",))
    hub_fields = ("model",)

    def load(self) -> torch.nn.Module:
        from transformers import ViTModel

        return ViTModel.from_pretrained(self.config.model, add_pooling_layer=False)

    def examples(self, part: str) -> Images:
        return Images(self.config.train_images if part == "train" else self.config.heldout_images, self.model.config.image_size)


def sweep_of(
    model: str,
    train_images: str,
    heldout_images: str,
    *,
    layers: Sequence[int] = (5, 8),
    train_tokens: int = 5_000_000,
    eval_tokens: int = 100_000,
    **sections: Any,
) -> Sweep:
    hook_points = [f"layers.{layer}" for layer in layers]  # `model.named_modules()` shows such paths
    data = {"train_images": train_images, "heldout_images": heldout_images, "train_tokens": train_tokens, "eval_tokens": eval_tokens}
    defaults = {
        "sae": {"d_sae": 4096},
        "train": {"lr": 4e-3, "batch_size": 1024},
        "target_l0": [16, 32, 64],
        "architectures": {"batchtopk": {}},
    }
    activations = {"source": "vit", "model": model, "hook_point": hook_points, **data}
    return Sweep(name="vit", plugins=[__file__], activations=activations, **(defaults | sections))


def main(
    model: str, train_images: str, heldout_images: str, *, results: str | Path = "results", executor: str = "ray", **changes: Any
) -> Path:
    done = launch(sweep_of(model, train_images, heldout_images, **changes), results=results, executor=executor)
    table = load_table(done.directory)
    for hook_point, rows in table.groupby("hook_point"):
        print(hook_point, rows.loc[pareto_front(rows, "l0", "fvu"), ["target_l0", "l0", "fvu", "dead_fraction"]], sep="\n")
    return done.directory


if __name__ == "__main__":
    main(*sys.argv[1:])
