"""On a GPU: one TopK step beside its floor and SAELens, and 24 mixed SAEs on one stream beside 24 times one. Needs CUDA.

    python benchmarks/gpu_steps.py          # d_in 768, d_sae 16384, batch 4096, k 32, bfloat16 autocast

Not yet run: no GPU could be had while it was written.

The floor of a TopK step is what it cannot do without, each part measured in the same rounds: one dense encoder product in bfloat16, one
pass of Adam over the parameters, and the bytes of the pre-activations, written once and read once. Ours is `Learner.train_step`, with
plain PyTorch, as by default, and with the kernels in Triton; theirs is `SAETrainer.step`, in a process of its own, in float32 and under
bfloat16 autocast. A block of steps is timed from before its first to when the device is done with its last; told are medians
over rounds, with the smallest and the largest, and ratios of paired rounds. 24 mixed SAEs are every architecture at L0 16, 32, 64 and
128; 24 times one is the sum of the same learners' times, each alone on the stream. Profiles count what made Python wait for the
device.
"""

import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import step_inputs
import torch
from gpu_work import FLOOR, LR, Inputs, Sizes, floor, floor_parts, pass_of, profiled, seconds_per_call, step_of
from measuring import Spread, console, parser, ratio, write_result
from rich.table import Table
from worker import MISSING_PEER, Worker, peers_python

from sae_core.sparse.kernels.choice import Choice

MIXED_L0S = (16, 32, 64, 128)
N_BATCHES = 4
PRECISIONS = ("float32", "bfloat16")
OURS: dict[str, Choice] = {"PyTorch": "fast", "Triton": "triton"}
"""What a column says -> the kernels of its step."""
NO_GPU = (
    "this benchmark must run on a GPU, but got torch.cuda.is_available()=False. "
    "Run it on a machine with an NVIDIA GPU and a PyTorch that is built for CUDA."
)

Rounds = dict[str, list[float]]
"""What is measured -> seconds in each round."""


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--d-in", type=int, default=768)
    made.add_argument("--d-sae", type=int, default=16_384)
    made.add_argument("--batch-size", type=int, default=4096)
    made.add_argument("--k", type=int, default=32)
    made.add_argument("--rounds", type=int, default=5)
    made.add_argument("--steps", type=int, default=20, help="in a block")
    options = made.parse_args()
    if not torch.cuda.is_available():
        sys.exit(NO_GPU)
    screen, peer = console(), peers_python()
    inputs = Inputs(Sizes(options.d_in, options.d_sae, options.batch_size), options.k, N_BATCHES, "cuda")
    with saelens(peer, inputs, options.k, options.threads, options.steps) as (theirs, versions):
        step = step_rounds(inputs, options.k, theirs, options.rounds, options.steps)
    if peer is None:
        screen.print(MISSING_PEER)
    screen.print(step_table(step["seconds"], torch.cuda.get_device_name()))
    group = group_rounds(inputs, MIXED_L0S, options.rounds, options.steps)
    screen.print(told(step, group))
    results = {"device": torch.cuda.get_device_name(), "step": step, "group": group}
    screen.print(f"written: {write_result(options.out, 'gpu_steps', results, peer=versions)}")


@contextmanager
def saelens(
    python: Path | None, inputs: Inputs, k: int, threads: int, n_steps: int
) -> Iterator[tuple[dict[str, Callable[[], float]], dict[str, str] | None]]:
    """What times a block of SAELens' TopK steps in each precision, and its versions; nothing without a Python that has it."""
    if python is None:
        yield {}, None
        return
    with tempfile.TemporaryDirectory() as scratch, Worker(python, "peers/saelens_steps.py", threads=threads) as worker:
        x, state = Path(scratch) / "x.safetensors", Path(scratch) / "state.safetensors"
        step_inputs.save(x, {"x": inputs.x})
        step_inputs.save(state, inputs.weights("topk", k))
        fields = {"d_sae": inputs.sizes.d_sae, "k": k}
        paths = {"x": str(x), "state": str(state), "device": inputs.device}
        worker.call(
            "open", architecture="topk", fields=fields, batch_size=inputs.sizes.batch_size, lr=LR, precisions=list(PRECISIONS), **paths
        )

        def block(precision: str) -> Callable[[], float]:
            return lambda: worker.call("measure_block", precision=precision, n_steps=n_steps)

        yield {f"SAELens {precision}": block(precision) for precision in PRECISIONS}, worker.call("versions")


def step_rounds(inputs: Inputs, k: int, theirs: dict[str, Callable[[], float]], n_rounds: int, n_steps: int) -> dict[str, Any]:
    """One TopK step: rounds of the floor's parts, of ours with both kernels, and of theirs; and a profile of ours."""
    batches = inputs.batches()
    steps = {name: step_of(inputs.learner("topk", k), batches, choice) for name, choice in OURS.items()}
    calls = floor_parts(inputs.sizes, inputs.device) | steps

    def block(call: Callable[[], object]) -> Callable[[], float]:
        return lambda: seconds_per_call(call, n_steps)

    blocks = {name: block(call) for name, call in calls.items()} | theirs
    rounds = in_rounds(blocks, n_rounds)
    return {"seconds": rounds, "ratios": ratios(rounds), "profile": profiled(steps["PyTorch"], n_steps)}


def in_rounds(blocks: dict[str, Callable[[], float]], n_rounds: int) -> Rounds:
    """Every block once in each round, after one that is not counted: it compiles, and allocates."""
    rounds: Rounds = {name: [] for name in blocks}
    for number in range(n_rounds + 1):
        for name, block in blocks.items():
            seconds = block()
            if number:
                rounds[name].append(seconds)
    return rounds


def ratios(rounds: Rounds) -> dict[str, Spread]:
    """Ours by default over the floor; the others' times over ours."""
    ours = rounds["PyTorch"]
    others = {name: ratio(seconds, ours) for name, seconds in rounds.items() if name not in (*FLOOR, "PyTorch")}
    return {"PyTorch / floor": ratio(ours, floor(rounds))} | {f"{name} / PyTorch": spread for name, spread in others.items()}


def group_rounds(inputs: Inputs, l0s: tuple[int, ...], n_rounds: int, n_steps: int) -> dict[str, Any]:
    """Mixed SAEs on one stream beside the sum of each alone: seconds of a batch; and a profile of the group."""
    learners, stream = inputs.mixed(l0s), inputs.stream()
    together = pass_of(learners, stream)
    alone = [pass_of([learner], stream) for learner in learners]
    blocks = {
        "together": lambda: seconds_per_call(together, n_steps),
        "alone": lambda: sum(seconds_per_call(call, n_steps) for call in alone),
    }
    rounds = in_rounds(blocks, n_rounds)
    return {
        "n_saes": len(learners),
        "seconds": rounds,
        "ratio": ratio(rounds["together"], rounds["alone"]),
        "profile": profiled(together, n_steps),
        "waits": {
            learner.run.sae.architecture: profiled(pass_of([learner], stream), n_steps)["waits"] for learner in learners[:: len(l0s)]
        },
    }


def step_table(rounds: Rounds, device: str) -> Table:
    """A row for each thing measured; milliseconds, and how many times the floor."""
    made = Table(title=f"A TopK step on {device}: median over rounds (smallest–largest)")
    made.add_column("what")
    made.add_column("ms", justify="right")
    made.add_column("/ floor", justify="right")
    bottom = floor(rounds)
    for name, seconds in {**{name: rounds[name] for name in FLOOR}, "floor": bottom, **rounds}.items():
        made.add_row(name, Spread.of(seconds).text(digits=3, scale=1e3), ratio(seconds, bottom).text(digits=2))
    return made


def told(step: dict[str, Any], group: dict[str, Any]) -> str:
    """The ratios and the waits, in words."""
    lines = [f"{name}: {spread.text(digits=2)}" for name, spread in step["ratios"].items()]
    profile, median = step["profile"], statistics.median(step["seconds"]["PyTorch"])
    lines.append(f"the GPU was busy for {profile['busy_ms']:.3f} of {1e3 * median:.3f} ms of a TopK step")
    lines.append(f"{group['n_saes']} mixed SAEs on one stream / {group['n_saes']} times one: {group['ratio'].text(digits=3)}")
    for name, waits in group["waits"].items():
        counts = ", ".join(f"{kind} {count:g}" for kind, count in waits.items())
        lines.append(f"waits for the device in a step of {name}: {counts or 'none'}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
