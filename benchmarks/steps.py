"""One training step of every architecture, ours beside SAELens', on the same activations and from the same weights.

    python benchmarks/steps.py              # d_in 768, d_sae 6144, batch 2048, L0 32

Each program is a process of its own with the same number of threads, and only one works at a time. A round holds a few steps of each
program in float32 and under bfloat16 autocast; its value is their median. Told are medians over the rounds, with the smallest and the
largest, and the ratios of paired rounds: SAELens' default (float32), and the better of its settings, against the better of ours.
Activations and the two states of the weights: step_inputs.py. A step of a standard, gated or JumpReLU SAE can cost less when few latents
are active, as they are in nearly all of a run; `initial` is how it begins. Ours is `Learner.train_step`, theirs `SAETrainer.step`: from
the batch to the updated weights, with clipping, Adam, schedules and statistics of dead latents.
"""

import statistics
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import step_inputs
from measuring import Spread, console, fastest, parser, ratio, write_result
from rich.console import Console
from rich.table import Table
from worker import MISSING_PEER, Worker, peers_python

from sweeps.execution.cluster import WORKER_ENVIRONMENT

ARCHITECTURES = ("topk", "batchtopk", "matryoshka_batchtopk", "standard", "gated", "jumprelu")
PRECISIONS = ["float32", "bfloat16"]
LR = 1e-6
N_BATCHES = 8

Rounds = dict[str, dict[str, list[float]]]
"""Program -> precision -> seconds of a step in each round."""


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--architectures", nargs="+", choices=ARCHITECTURES, default=ARCHITECTURES)
    made.add_argument("--states", nargs="+", choices=["sparse", "initial"], default=["sparse", "initial"])
    made.add_argument("--d-in", type=int, default=768)
    made.add_argument("--d-sae", type=int, default=6144)
    made.add_argument("--batch-size", type=int, default=2048)
    made.add_argument("--l0", type=int, default=32, help="k, or the L0 of the sparse state")
    made.add_argument("--rounds", type=int, default=4)
    made.add_argument("--steps", type=int, default=1, help="of each program and precision in a round")
    options = made.parse_args()
    screen, peer = console(), peers_python()
    with tempfile.TemporaryDirectory() as scratch:
        inputs = Inputs(Path(scratch), options.d_in, options.d_sae, options.batch_size, options.l0)
        workers = {"ours": Worker(sys.executable, "our_steps.py", threads=options.threads, settings=WORKER_ENVIRONMENT)}
        if peer:
            workers["saelens"] = Worker(peer, "peers/saelens_steps.py", threads=options.threads)
        else:
            screen.print(MISSING_PEER)
        cases = [
            (name, state) for state in options.states for name in options.architectures if state == "sparse" or name in step_inputs.SHIFTED
        ]
        measured = [_measured(workers, inputs, name, state, options.rounds, options.steps, screen) for name, state in cases]
        versions = workers["saelens"].call("versions") if peer else None
        for worker in workers.values():
            worker.close()
    screen.print(table(measured, options.threads))
    screen.print(f"written: {write_result(options.out, 'steps', measured, peer=versions)}")


class Inputs:
    """Files that every program reads."""

    def __init__(self, directory: Path, d_in: int, d_sae: int, batch_size: int, l0: int) -> None:
        self.d_in, self.d_sae, self.batch_size, self.l0 = d_in, d_sae, batch_size, l0
        self.x, self.state = directory / "x.safetensors", directory / "state.safetensors"
        self._x, self._features = step_inputs.activations(d_in, d_sae, l0=l0, n_tokens=N_BATCHES * batch_size)
        step_inputs.save(self.x, {"x": self._x})

    def write_state(self, architecture: str, state: str) -> None:
        if state == "initial":
            weights = step_inputs.initial_state(architecture, self.d_in, self.d_sae)
        else:
            weights = step_inputs.sparse_state(architecture, self._features, self._x[: self.batch_size], l0=self.l0)
        step_inputs.save(self.state, weights)

    def fields(self, architecture: str) -> dict[str, Any]:
        """Of the architecture's config, alike in both programs; the rest are each one's defaults."""
        fields: dict[str, Any] = {"d_sae": self.d_sae}
        if architecture not in step_inputs.SHIFTED:
            fields["k"] = self.l0
        if architecture == "matryoshka_batchtopk":
            fields["matryoshka_widths"] = [self.d_sae // 4, self.d_sae // 2]
        return fields


def _measured(
    workers: Mapping[str, Worker], inputs: Inputs, name: str, state: str, n_rounds: int, n_steps: int, screen: Console
) -> dict[str, Any]:
    """Rounds of one architecture in one state, after a step that is not counted."""
    inputs.write_state(name, state)
    rounds: Rounds = {program: {precision: [] for precision in PRECISIONS} for program in workers}
    for worker in workers.values():
        paths = {"x": str(inputs.x), "state": str(inputs.state)}
        worker.call(
            "open", architecture=name, fields=inputs.fields(name), batch_size=inputs.batch_size, lr=LR, precisions=PRECISIONS, **paths
        )
        for precision in PRECISIONS:
            worker.call("measure", precision=precision, n_steps=1)
    for _ in range(n_rounds):
        for precision in PRECISIONS:
            for program, worker in workers.items():
                rounds[program][precision].append(statistics.median(worker.call("measure", precision=precision, n_steps=n_steps)))
    l0 = {program: worker.call("l0", precision="float32") for program, worker in workers.items()}
    told = ", ".join(f"{program} {1e3 * min(map(statistics.median, found.values())):.0f} ms" for program, found in rounds.items())
    screen.print(f"{name}, {state}: {told}")
    return {"architecture": name, "state": state, "l0": l0, "seconds": rounds, "ratios": ratios(rounds)}


def ratios(rounds: Rounds) -> dict[str, Spread]:
    """SAELens' time over ours, in our faster precision: of its default, and of its faster one; empty without SAELens."""
    if "saelens" not in rounds:
        return {}
    ours, theirs = rounds["ours"], rounds["saelens"]
    best = ours[fastest(ours)]
    return {"default": ratio(theirs["float32"], best), "best": ratio(theirs[fastest(theirs)], best)}


def table(measured: list[dict[str, Any]], threads: int) -> Table:
    """One row per architecture and state; milliseconds."""
    made = Table(title=f"A training step: ms, median over rounds (smallest–largest), {threads} threads")
    for column in ("architecture", "weights", "L0"):
        made.add_column(column, no_wrap=True)
    for column in ("ours fp32", "ours bf16", "SAELens fp32", "SAELens bf16", "default / ours", "best / ours"):
        made.add_column(column, justify="right")
    for row in measured:
        times = [
            Spread.of(row["seconds"][program][precision]).text(scale=1e3) if program in row["seconds"] else "–"
            for program in ("ours", "saelens")
            for precision in PRECISIONS
        ]
        compared = [row["ratios"][name].text(digits=2) if row["ratios"] else "–" for name in ("default", "best")]
        made.add_row(row["architecture"], row["state"], f"{row['l0']['ours']:.0f}", *times, *compared)
    return made


if __name__ == "__main__":
    main()
