"""What one SAE more costs a sweep of 23, beside its own training steps.

    python benchmarks/one_more.py                                      # a minute and a half on one core

Two groups of the demo's SAEs, 23 of them and all 24, are trained by `train_group` on the same stream in this process, and take turns
after every step. What the 24th adds is its own steps (`train_step`); its own start and calibration, once; and the difference between
the two groups in what is no SAE's own, of every step (batches, bookkeeping) and once, before the first step and after the last one.
The ratio is of this sum to its own steps, in a run of `--tokens`; its spread is over tenths of the steps. Times are of the processor, so
that other programs disturb little. The plain difference of whole steps is told too: it is the same but for how much the times of the 23
SAEs in both groups differ by chance, which is more than one SAE adds. Target: at most 1.05.
"""

import threading
import time
from collections.abc import Callable, Sequence
from functools import wraps
from itertools import pairwise
from statistics import median
from typing import Any

import torch
from measuring import Spread, console, parser, write_result

from sae_core.activations.stream import TensorStream
from sae_core.config.run import RunConfig
from sae_core.training.loop import Learner, train_group
from sweeps.definition.sweep import Sweep

D_IN = 128
N_FEATURES = 512
N_PARTS = 10
TARGET = 1.05


class Timed:
    """A group that trains on a thread of its own, one step whenever it is its turn.

    Args:
        turn: shared by all groups; its `holder` is the group that may go on.
    """

    def __init__(self, runs: Sequence[RunConfig], stream: TensorStream, turn: "Turn") -> None:
        self.runs, self.stream, self.turn = runs, stream, turn
        self.steps: list[float] = []
        """Seconds of each step, of all SAEs together."""
        self.own: list[list[float]] = []
        """Seconds of each SAE's own part of each step."""
        self.own_once: list[float] = []
        """Seconds of each SAE's own start, calibration, and first step beyond what one takes."""
        self.shared_once = 0.0
        """Seconds before the first step and after the last one that are no SAE's own."""
        self.thread = threading.Thread(target=self._train)

    def _train(self) -> None:
        self.turn.take(self)
        try:
            self._train_in_turn()
        finally:  # whatever happened: the other group would wait for ever
            self.turn.give(self)

    def _train_in_turn(self) -> None:
        self.since = time.thread_time()
        train_group(self.runs, self.stream, on_step=self._on_step)
        ends = TIMES.pop(threading.get_ident())
        once = self.steps.pop(0) - median(self.steps) + time.thread_time() - self.since
        first = self.own.pop(0)
        starts, first = first[: len(self.runs)], first[len(self.runs) :]
        usual = [median(times) for times in zip(*self.own, strict=True)]
        self.own_once = [start + step - one + end for start, step, one, end in zip(starts, first, usual, ends, strict=True)]
        self.shared_once = once - sum(self.own_once)

    def _on_step(self, learners: Sequence[Learner]) -> None:
        self.steps.append(time.thread_time() - self.since)
        self.own.append(TIMES.pop(threading.get_ident()))
        self.turn.give(self)
        self.turn.take(self)
        self.since = time.thread_time()


class Turn:
    """Whose turn it is."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.waiting: list[Timed] = []

    def take(self, group: Timed) -> None:
        with self.changed:
            self.changed.wait_for(lambda: self.waiting[0] is group)

    def give(self, group: Timed) -> None:
        with self.changed:
            self.waiting.append(self.waiting.pop(0))
            self.changed.notify_all()


TIMES: dict[int, list[float]] = {}
"""Thread -> seconds that SAEs took for themselves since it last looked, in the order of the group."""


def time_saes() -> None:
    """Note how long each SAE's start, each of its steps, and its calibration take."""
    Learner.start = timed(Learner.start)  # type: ignore[method-assign]
    Learner.train_step = timed(Learner.train_step)  # type: ignore[method-assign]
    Learner.calibrate = timed(Learner.calibrate)  # type: ignore[method-assign]


def timed(work: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(work)
    def noted(*arguments: Any) -> Any:
        started = time.thread_time()
        result = work(*arguments)
        TIMES.setdefault(threading.get_ident(), []).append(time.thread_time() - started)
        return result

    return noted


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--steps", type=int, default=60, help="of every SAE")
    options.add_argument("--tokens", type=int, default=1_000_000, help="of a run for which the ratio is told")
    arguments = options.parse_args()
    torch.set_num_threads(1)
    runs = runs_of(arguments.steps)
    stream = TensorStream(activations(arguments.steps * runs[0].train.batch_size), batch_size=runs[0].train.batch_size)
    train_group(runs_of(2), stream)  # compiles
    time_saes()
    few, all_ = train_in_turn([runs[:-1], runs], stream)
    n_steps = arguments.tokens // runs[0].train.batch_size
    own = [times[-1] for times in all_.own]
    shared = [[step - sum(times) for step, times in zip(group.steps, group.own, strict=True)] for group in (few, all_)]
    once = all_.own_once[-1] + all_.shared_once - few.shared_once
    bounds = [round(part * len(own) / N_PARTS) for part in range(N_PARTS + 1)]
    parts = [slice(start, end) for start, end in pairwise(bounds)]
    ratios = [
        1 + (median(shared[1][part]) - median(shared[0][part]) + once / n_steps) / median(own[part]) for part in (slice(None), *parts)
    ]
    ratio = Spread(ratios[0], min(ratios[1:]), max(ratios[1:]))
    plain = median(after - before for before, after in zip(few.steps, all_.steps, strict=True))
    without, with_ = (1e3 * median(times) for times in shared)
    told = console()
    told.print(f"a step of the {len(runs)}th SAE: {1e3 * median(own):.2f} ms; a step of the group grows by {1e3 * plain:.2f} ms")
    told.print(f"no SAE's own: {without:.2f} ms of a step of {len(runs) - 1}, {with_:.2f} ms of {len(runs)}; once {once:.2f} s more")
    told.print(f"one more in {arguments.tokens:,} tokens: {ratio.text(digits=3)} of its own steps (target: at most {TARGET})")
    results = {"ratio": ratio, "shared_ms": [without, with_], "own_ms": 1e3 * median(own), "plain_ms": 1e3 * plain, "once_s": once}
    write_result(arguments.out, "one_more", results)


def train_in_turn(groups: Sequence[Sequence[RunConfig]], stream: TensorStream) -> list[Timed]:
    turn = Turn()
    timed = [Timed(runs, stream, turn) for runs in groups]
    turn.waiting = list(timed)
    for group in timed:
        group.thread.start()
    for group in timed:
        group.thread.join()
    return timed


def runs_of(n_steps: int) -> list[RunConfig]:
    """The demo's 24 SAEs, for so many steps; a BatchTopK one, which is calibrated at its end, comes last."""
    runs = [with_steps(run, n_steps) for run in Sweep.from_yaml("demo", []).runs()]
    return sorted(runs, key=lambda run: run.sae.architecture == "batchtopk")


def with_steps(run: RunConfig, n_steps: int) -> RunConfig:
    return run.model_copy(update={"activations": run.activations.model_copy(update={"train_tokens": n_steps * run.train.batch_size})})


def activations(n_tokens: int) -> torch.Tensor:
    """Sparse combinations of random features, with noise."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(N_FEATURES, D_IN, generator=generator)
    active = torch.rand(n_tokens, N_FEATURES, generator=generator) < 16 / N_FEATURES
    return active.float() @ features + 0.1 * torch.randn(n_tokens, D_IN, generator=generator)


if __name__ == "__main__":
    main()
