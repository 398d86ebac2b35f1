"""Worker of steps.py: our training steps. Run by it, not by hand."""

import itertools
import os
import time
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from worker import load_parameters, serve

from sae_core.activations.synthetic import SyntheticActivations
from sae_core.config.run import ARCHITECTURES, RunConfig, TrainConfig
from sae_core.training.loop import Learner

N_STEPS = 10_000
"""Of the run whose steps these are: schedules and rows of history are spread over it."""


def started(
    architecture: str,
    fields: dict[str, Any],
    weights: dict[str, Tensor],
    *,
    d_in: int,
    batch_size: int,
    lr: float,
    precision: str,
    device: str = "cpu",
) -> Learner:
    """A learner at its first step, with these weights."""
    config = ARCHITECTURES[architecture].Config.model_validate(fields)
    train = TrainConfig(lr=lr, batch_size=batch_size, autocast="bfloat16" if precision == "bfloat16" else "off")
    activations = SyntheticActivations(d_in=d_in, train_tokens=N_STEPS * batch_size, eval_tokens=1)
    learner = Learner.start(RunConfig(activations=activations, sae=config, train=train), d_in, torch.device(device))
    load_parameters(learner.sae, weights)
    return learner


class Steps:
    """Learners of one architecture, one for each precision."""

    def open(
        self, architecture: str, fields: dict[str, Any], batch_size: int, lr: float, x: str, state: str, precisions: list[str]
    ) -> None:
        batches = load_file(x)["x"].split(batch_size)
        self.batches = itertools.cycle(batches)
        weights, d_in = load_file(state), batches[0].shape[1]
        self.learners = {
            precision: started(architecture, fields, weights, d_in=d_in, batch_size=batch_size, lr=lr, precision=precision)
            for precision in precisions
        }

    def measure(self, precision: str, n_steps: int) -> list[float]:
        """Seconds of each of the next steps."""
        learner, seconds = self.learners[precision], []
        for x in itertools.islice(self.batches, n_steps):
            started = time.perf_counter()
            learner.train_step(x)
            seconds.append(time.perf_counter() - started)
        return seconds

    def l0(self, precision: str) -> float:
        """Of a batch, in the state that training has reached."""
        sae = self.learners[precision].sae
        with torch.no_grad():
            return float((sae.encode(next(self.batches)) != 0).sum(dim=-1).float().mean())


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ["BENCHMARK_THREADS"]))
    steps = Steps()
    serve({"open": steps.open, "measure": steps.measure, "l0": steps.l0})
