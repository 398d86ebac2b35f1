"""Worker of growth.py: groups of TopK SAEs on one stream, as a slot of a sweep trains them. Run by it, not by hand."""

import os
import time

import step_inputs
import torch
from worker import serve

from sae_core.activations.stream import TensorStream
from sae_core.activations.synthetic import SyntheticActivations
from sae_core.architectures.topk import TopKConfig
from sae_core.config.run import RunConfig, TrainConfig
from sae_core.training.loop import train_group

D_IN, D_SAE, K, BATCH_SIZE = 128, 1024, 32, 1024
STREAM_TOKENS = 65_536
"""Of the stream; longer runs go through it again."""


class Groups:
    """Times trainings on one stream of synthetic activations."""

    def open(self) -> None:
        """Make the activations, and train a little: what is done once is done then."""
        x, _ = step_inputs.activations(D_IN, D_SAE, l0=K, n_tokens=STREAM_TOKENS)
        self.stream = TensorStream(x, batch_size=BATCH_SIZE)
        self.train(1, 4)

    def train(self, n_saes: int, n_steps: int) -> list[float]:
        """Seconds from the start of training to the end of each batch."""
        activations = SyntheticActivations(d_in=D_IN, train_tokens=n_steps * BATCH_SIZE, eval_tokens=1)
        train = TrainConfig(batch_size=BATCH_SIZE, autocast="bfloat16")
        runs = [RunConfig(activations=activations, sae=TopKConfig(d_sae=D_SAE, k=K), train=train, seed=seed) for seed in range(n_saes)]
        moments, started = [], time.perf_counter()
        train_group(runs, self.stream, on_step=lambda _: moments.append(time.perf_counter() - started))
        return moments


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ["BENCHMARK_THREADS"]))
    groups = Groups()
    serve({"open": groups.open, "train": groups.train})
