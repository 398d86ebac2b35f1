"""What gpu_steps.py times and profiles: the three parts of the floor, our steps, and groups of SAEs on one stream.

Nothing here needs a GPU; only there do the numbers mean anything.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import step_inputs
import torch
from our_steps import started
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from sae_core.activations.stream import TensorStream
from sae_core.config.run import ARCHITECTURES
from sae_core.sparse.kernels.choice import Choice, using_kernels
from sae_core.training.loop import Learner

LR = 1e-6
FLOOR = ("encoder product", "Adam", "pre-activations")
"""What no TopK step can do without; each is measured on its own."""
WAITS = ("cudaDeviceSynchronize", "cudaStreamSynchronize", "cudaEventSynchronize", "cudaMemcpy", "Memcpy DtoH")
"""How the names begin of what makes Python wait for the device, in a profile."""
STEPS = "steps that are profiled"


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of every SAE."""

    d_in: int
    d_sae: int
    batch_size: int


class Inputs:
    """Activations, and weights that know their features; see step_inputs.py."""

    def __init__(self, sizes: Sizes, l0: int, n_batches: int, device: str) -> None:
        self.sizes, self.device = sizes, device
        self.x, self._features = step_inputs.activations(sizes.d_in, sizes.d_sae, l0=l0, n_tokens=n_batches * sizes.batch_size)

    def weights(self, architecture: str, l0: int) -> dict[str, Tensor]:
        return step_inputs.sparse_state(architecture, self._features, self.x[: self.sizes.batch_size], l0=l0)

    def learner(self, architecture: str, l0: int) -> Learner:
        """At its first step, under bfloat16 autocast, with `l0` latents active."""
        fields: dict[str, Any] = {"d_sae": self.sizes.d_sae}
        fields |= {} if architecture in step_inputs.SHIFTED else {"k": l0}
        sizes = {"d_in": self.sizes.d_in, "batch_size": self.sizes.batch_size}
        return started(architecture, fields, self.weights(architecture, l0), **sizes, lr=LR, precision="bfloat16", device=self.device)

    def mixed(self, l0s: Sequence[int]) -> list[Learner]:
        """Every architecture at every L0."""
        return [self.learner(name, l0) for name in ARCHITECTURES for l0 in l0s]

    def batches(self) -> Iterator[Tensor]:
        """On the device already, without end."""
        return cycle(self.x.to(self.device).split(self.sizes.batch_size))

    def stream(self) -> Iterator[Tensor]:
        """As training gets them: from memory, sent ahead."""
        return TensorStream(self.x, batch_size=self.sizes.batch_size, device=self.device).batches()


def seconds_per_call(call: Callable[[], object], n: int) -> float:
    """Mean over a block of n calls, until the device is done with the last. What it did before is not counted."""
    _wait()
    before = time.perf_counter()
    for _ in range(n):
        call()
    _wait()
    return (time.perf_counter() - before) / n


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def floor_parts(sizes: Sizes, device: str) -> dict[str, Callable[[], object]]:
    """The parts of `FLOOR`: a dense product in bfloat16, one pass of Adam, and as many bytes as pre-activations written and read."""
    x = torch.randn(sizes.batch_size, sizes.d_in, device=device, dtype=torch.bfloat16)
    W_enc = torch.randn(sizes.d_sae, sizes.d_in, device=device, dtype=torch.bfloat16)
    pre_acts = x @ W_enc.T
    copy = torch.empty_like(pre_acts)
    shapes = (sizes.d_sae, sizes.d_in), (sizes.d_sae, sizes.d_in), (sizes.d_sae,), (sizes.d_in,)
    parameters = [torch.nn.Parameter(torch.randn(shape, device=device)) for shape in shapes]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    adam = torch.optim.Adam(parameters, lr=LR, fused=True)
    return dict(zip(FLOOR, (lambda: torch.mm(x, W_enc.T, out=pre_acts), adam.step, lambda: copy.copy_(pre_acts)), strict=True))


def floor(rounds: Mapping[str, Sequence[float]]) -> list[float]:
    """Seconds of its parts together, in each round."""
    return [sum(parts) for parts in zip(*(rounds[name] for name in FLOOR), strict=True)]


def step_of(learner: Learner, batches: Iterator[Tensor], choice: Choice) -> Callable[[], None]:
    """One training step with these kernels."""

    def step() -> None:
        with using_kernels(choice):
            learner.train_step(next(batches))

    return step


def pass_of(learners: Sequence[Learner], stream: Iterator[Tensor]) -> Callable[[], None]:
    """One batch for all of a group, as `train_group` hands it out."""

    def step_all() -> None:
        x = next(stream)
        for learner in learners:
            learner.train_step(x)

    return step_all


def profiled(call: Callable[[], object], n: int) -> dict[str, Any]:
    """What n calls made Python wait for, per call, and what the device was busy with."""
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])
    _wait()
    with profile(activities=activities) as recorded, record_function(STEPS):
        for _ in range(n):
            call()
    return summary(recorded.events(), n)


def summary(events: Sequence[Any], n: int) -> dict[str, Any]:
    """Of the events of a profile of n calls: waits per call, the device's busy milliseconds, and its longest work, per call.

    A wait counts if it began within the calls: leaving the profile waits too.
    """
    calls = next(event.time_range for event in events if event.name == STEPS and event.device_type == DeviceType.CPU)
    within = [event for event in events if calls.start <= event.time_range.start <= calls.end]
    waits = Counter(event.name for event in within if event.name.startswith(WAITS) and not event.name.startswith("cudaMemcpyAsync"))
    work: Counter[str] = Counter()
    for event in events:
        if event.device_type == DeviceType.CUDA and event.name != STEPS:
            work[event.name] += event.time_range.elapsed_us() / 1e3 / n
    return {
        "waits": {name: count / n for name, count in sorted(waits.items())},
        "busy_ms": sum(work.values()),
        "longest_ms": dict(work.most_common(15)),
    }
