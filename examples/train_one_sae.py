"""One SAE on activations of your own, without a sweep and without Ray: train, measure, save, load. Seconds on one core.

Any tensor [tokens, d_in] will do. Here it is made of 128 sparse directions, so that there is something to find.
"""

from pathlib import Path

import torch
from rich import print

from sae_core import RunConfig, SparseAutoencoder, TensorStream, TrainConfig, measure, train_run
from sae_core.architectures.batchtopk import BatchTopKConfig
from sae_core.config.run import ActivationsConfig

TRAIN_TOKENS, EVAL_TOKENS, D_IN, N_DIRECTIONS = 200_000, 20_000, 64, 128

generator = torch.Generator().manual_seed(0)
directions = torch.nn.functional.normalize(torch.randn(N_DIRECTIONS, D_IN, generator=generator))
chance = torch.rand(TRAIN_TOKENS + EVAL_TOKENS, N_DIRECTIONS, generator=generator)
activations = (chance > 0.97).float() @ directions  # 3.8 directions active per token
x, held_out = activations[:TRAIN_TOKENS], activations[TRAIN_TOKENS:]

run = RunConfig(
    activations=ActivationsConfig(source="my tensor", train_tokens=TRAIN_TOKENS, eval_tokens=EVAL_TOKENS),
    sae=BatchTopKConfig(d_sae=256, k=4),  # twice as many latents as directions: about half of them stay unused
    train=TrainConfig(lr=8e-3, batch_size=512, dead_after_tokens=20_000),
)
stream = TensorStream(x, batch_size=run.train.batch_size, data_seed=run.data_seed)
result = train_run(run, stream)
# Training works in normalized units, where E||x|| = sqrt(d_in); the SAE to keep is the inference form, in the units of x.
sae = result.exported()
values = measure(sae, held_out)
print(f"{len(held_out)} held-out tokens: L0 {values['l0']:.2f}, FVU {values['fvu']:.4f}, dead {values['dead_fraction']:.1%}")

directory = Path("results/one-sae")
sae.save_pretrained(directory, {"hook_name": "my tensor"})
loaded = SparseAutoencoder.from_pretrained(directory)
print(f"Saved to {directory}. The loaded SAE gives the same x_hat: {torch.equal(loaded(held_out), sae(held_out))}")
