"""Golden losses: three tiny runs an architecture, recorded once, so that a change of numerics is seen and explained.

`make golden` rewrites the files of losses/; say why in CHANGELOG.md. A new architecture gets its file the same way.
"""

import json
import logging
from pathlib import Path

import torch

from sae_core.activations.stream import TensorStream
from sae_core.activations.synthetic import SyntheticActivations, SyntheticSource
from sae_core.config.run import ARCHITECTURES, RunConfig, TrainConfig
from sae_core.training.loop import train_run

D_IN, D_SAE, N_STEPS, BATCH_SIZE = 16, 64, 20, 64
DIRECTORY = Path(__file__).with_name("losses")

SCHEDULES: dict[str, TrainConfig] = {
    "defaults": TrainConfig(batch_size=BATCH_SIZE),
    # A few latents count as dead at every step, so the auxiliary losses have something to do.
    "dead_latents": TrainConfig(batch_size=BATCH_SIZE, dead_after_tokens=2 * BATCH_SIZE, lr=3e-3),
    "cosine_unclipped": TrainConfig(
        batch_size=BATCH_SIZE, lr_schedule="cosine_restarts", lr_warm_up=0.2, lr_decay=0.2, sparsity_warm_up=0.5, max_grad_norm=None
    ),
}


def path_of(architecture: str) -> Path:
    """Where the losses of an architecture are."""
    return DIRECTORY / f"{architecture}.json"


def losses(architecture: str) -> dict[str, list[float | None]]:
    """The loss of every step, for each of the three runs."""
    activations = SyntheticActivations(train_tokens=N_STEPS * BATCH_SIZE, eval_tokens=64, d_in=D_IN, n_features=32, n_active=3.0)
    x = SyntheticSource(activations).shard(Path(), 0)
    found = {}
    for seed, (name, train) in enumerate(SCHEDULES.items()):
        run = RunConfig(activations=activations, sae=ARCHITECTURES[architecture].Config.example(D_IN, D_SAE), train=train, seed=seed)
        history = train_run(run, TensorStream(x, batch_size=BATCH_SIZE)).history
        found[name] = [row["loss"] for row in history]
    return found


def main() -> None:
    """Rewrite every file."""
    torch.set_num_threads(1)
    DIRECTORY.mkdir(exist_ok=True)
    for architecture in ARCHITECTURES:
        path_of(architecture).write_text(json.dumps(losses(architecture), indent=1) + "\n")
        logging.info("wrote %s", path_of(architecture))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main()
