"""Worker of steps.py: SAELens' training steps, in its own Python. Run by it, not by hand.

A step is what `MultiSAETrainer.fit` does with each SAE and batch: `SAETrainer.step`, which holds the forward pass, its statistics, the
backward pass, clipping, Adam, zero_grad and schedulers, and the counter. Settings not named here are SAELens' defaults. No logging.
"""

import itertools
import os
import time
from importlib.metadata import version
from typing import Any

import torch
from sae_lens.config import SAETrainerConfig
from sae_lens.registry import get_sae_training_class
from sae_lens.training.sae_trainer import SAETrainer
from safetensors.torch import load_file
from worker import load_parameters, serve

N_STEPS = 10_000


class Steps:
    """Trainers of one architecture, one for each precision."""

    def open(
        self,
        architecture: str,
        fields: dict[str, Any],
        batch_size: int,
        lr: float,
        x: str,
        state: str,
        precisions: list[str],
        device: str = "cpu",
    ) -> None:
        batches = load_file(x)["x"].to(device).split(batch_size)
        self.batches = itertools.cycle(batches)
        sae_class, config_class = get_sae_training_class(architecture)
        weights = load_file(state)
        self.trainers = {}
        for precision in precisions:
            sae = sae_class(config_class(d_in=batches[0].shape[1], device=device, **fields))
            load_parameters(sae, weights)
            config = SAETrainerConfig(
                total_training_samples=N_STEPS * batch_size,
                train_batch_size_samples=batch_size,
                lr=lr,
                lr_end=lr / 10,
                device=device,
                autocast=precision == "bfloat16",
            )
            self.trainers[precision] = SAETrainer(cfg=config, sae=sae, data_provider=iter(()))

    def measure(self, precision: str, n_steps: int) -> list[float]:
        """Seconds of each of the next steps."""
        trainer, seconds = self.trainers[precision], []
        for x in itertools.islice(self.batches, n_steps):
            started = time.perf_counter()
            trainer.maybe_reset_sparsity()
            trainer.step(x)
            trainer.n_training_steps += 1
            seconds.append(time.perf_counter() - started)
        return seconds

    def measure_block(self, precision: str, n_steps: int) -> float:
        """Mean seconds of the next steps, on a GPU, which works on while Python is ahead of it."""
        started = time.perf_counter()
        self.measure(precision, n_steps)
        torch.cuda.synchronize()
        return (time.perf_counter() - started) / n_steps

    def l0(self, precision: str) -> float:
        """Of a batch, in the state that training has reached."""
        with torch.no_grad():
            return float((self.trainers[precision].sae.encode(next(self.batches)) != 0).sum(dim=-1).float().mean())


def versions() -> dict[str, str]:
    """Of SAELens and what it stands on."""
    return {name: version(name) for name in ("sae-lens", "torch", "transformer-lens")}


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ["BENCHMARK_THREADS"]))
    steps = Steps()
    serve({"open": steps.open, "measure": steps.measure, "measure_block": steps.measure_block, "l0": steps.l0, "versions": versions})
