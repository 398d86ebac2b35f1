"""How the cost of training grows: with the number of SAEs on a stream, d_sae, k, d_in, tokens and workers. Writes a CSV and a figure.

    python benchmarks/growth.py
    python benchmarks/growth.py --draw          # only the figure, from the CSV that is there

d_sae, k and d_in: one step of a TopK SAE on `--threads` cores, ours beside SAELens', both under bfloat16 autocast, from the same weights
on the same batches; what is not varied is d_in 768, d_sae 6144, k 32, batch 2048. SAEs, tokens and workers: ours alone, as a slot of a
sweep trains them, one core per process, d_in 128, d_sae 1024, k 32, batch 1024. A point is the median of a few steps, or of a few
trainings, after one that is not counted. Where a point would need more memory than there is, or more seconds than `--patience`, it is
not measured but computed: the last point measured, times how much more d_in * d_sae there is. The CSV says which, and the figure
draws those dashed.
"""

import csv
import itertools
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import step_inputs
from growth_figure import Point, draw
from measuring import Spread, console, parser, write_result
from our_growth import BATCH_SIZE
from worker import MISSING_PEER, Worker, peers_python

from sae_core import provenance
from sweeps.execution.cluster import WORKER_ENVIRONMENT

BASE = {"d_in": 768, "d_sae": 6144, "k": 32}
STEP_BATCH, STEPS = 2048, 3
VARIED = {"d_sae": [1024, 2048, 4096, 16_384, 32_768, 65_536], "k": [8, 16, 32, 64, 128, 256], "d_in": [128, 256, 512, 1024, 2048]}
SAES = [1, 2, 4, 8, 24, 64]
GROUP_STEPS = 6
TOKENS = [32 * 1024 * 2**i for i in range(6)]
WORKER_SAES, WORKER_STEPS, WORKER_ROUNDS = 16, 20, 3
MEMORY_SHARE = 0.7
N_FEATURES = 4096
"""Of the activations of steps."""


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--panels", nargs="+", choices=["saes", *VARIED, "tokens", "workers"], default=["saes", *VARIED, "tokens", "workers"])
    made.add_argument("--patience", type=float, default=20.0, help="most seconds that a point may take")
    made.add_argument("--draw", action="store_true", help="only the figure, from the CSV")
    options = made.parse_args()
    screen = console()
    if not options.draw:
        points = list(_shown(_points(options.panels, options.threads, options.patience), screen.print))
        write_csv(options.out / "growth.csv", points)
        write_result(options.out, "growth", points)
        if peers_python() is None:
            screen.print(MISSING_PEER)
    for path in draw(read_csv(options.out / "growth.csv"), options.out):
        screen.print(f"written: {path}")


def _points(panels: Sequence[str], threads: int, patience: float) -> Iterator[Point]:
    for name, measured in {"saes": _saes, "tokens": _tokens, "workers": _workers}.items():
        if name in panels:
            yield from measured()
    if varied := [name for name in VARIED if name in panels]:
        yield from _steps(varied, threads, patience)


def _shown(points: Iterator[Point], show: Callable[[str], None]) -> Iterator[Point]:
    for point in points:
        spread = Spread(point.median, point.low, point.high).text("ms", digits=1, scale=1e3)
        show(f"{point.panel:<8}{point.program:<9}{point.x:>10}  {spread}")
        yield point


def _steps(panels: Sequence[str], threads: int, patience: float) -> Iterator[Point]:
    """One step of a TopK SAE, for each value of each of these sizes, by each program that there is."""
    python = peers_python()
    programs = {"ours": (sys.executable, "our_steps.py")} | ({"saelens": (python, "peers/saelens_steps.py")} if python else {})
    with ExitStack() as running:
        workers = {name: running.enter_context(Worker(*program, threads=threads)) for name, program in programs.items()}
        # Until all have loaded, which would slow down the first to be measured.
        with _inputs(Size(**BASE | {panels[0]: VARIED[panels[0]][0]})) as inputs:
            for worker in workers.values():
                _step_seconds(inputs, worker)
        for varied in panels:
            yield from _steps_of(varied, workers, patience)


def _steps_of(varied: str, workers: Mapping[str, Worker], patience: float) -> Iterator[Point]:
    last: dict[str, tuple[Size, float]] = {}
    for value in VARIED[varied]:
        size = Size(**BASE | {varied: value})
        with _inputs(size) as inputs:
            for program, worker in workers.items():
                expected = last[program][1] * size.weights / last[program][0].weights if program in last else 0.0
                if size.memory_bytes > MEMORY_SHARE * provenance.memory_bytes() or expected * (STEPS + 1) > patience:
                    yield Point(varied, program, value, expected, expected, expected, measured=False)
                    continue
                found = Spread.of(_step_seconds(inputs, worker))
                last[program] = (size, found.median)
                yield Point(varied, program, value, found.median, found.low, found.high, measured=True)


@dataclass(frozen=True, slots=True)
class Size:
    """Of a TopK SAE."""

    d_in: int
    d_sae: int
    k: int

    @property
    def weights(self) -> int:
        """What the cost of a step is proportional to, where it is large."""
        return self.d_in * self.d_sae

    @property
    def memory_bytes(self) -> int:
        """Of its training, about: weights, gradients and moments, and eight dense matrices of latents, as SAELens has them."""
        return 4 * (8 * self.weights + 8 * STEP_BATCH * self.d_sae)


@contextmanager
def _inputs(size: Size) -> Iterator[dict[str, Any]]:
    """What every program is told of its SAE, its weights and its batches, which lie in files meanwhile."""
    with tempfile.TemporaryDirectory() as scratch:
        x, state = Path(scratch) / "x.safetensors", Path(scratch) / "state.safetensors"
        step_inputs.save(x, {"x": step_inputs.activations(size.d_in, N_FEATURES, l0=BASE["k"], n_tokens=2 * STEP_BATCH)[0]})
        step_inputs.save(state, step_inputs.initial_state("topk", size.d_in, size.d_sae))
        yield {"fields": {"d_sae": size.d_sae, "k": size.k}, "x": str(x), "state": str(state)}


def _step_seconds(inputs: dict[str, Any], worker: Worker) -> list[float]:
    worker.call("open", architecture="topk", batch_size=STEP_BATCH, lr=1e-6, precisions=["bfloat16"], **inputs)
    worker.call("measure", precision="bfloat16", n_steps=1)
    return list(worker.call("measure", precision="bfloat16", n_steps=STEPS))


def _saes() -> Iterator[Point]:
    """One batch for a whole group."""
    with Worker(sys.executable, "our_growth.py", threads=1, settings=WORKER_ENVIRONMENT) as worker:
        worker.call("open")
        for n_saes in SAES:
            moments = worker.call("train", n_saes=n_saes, n_steps=GROUP_STEPS)
            found = Spread.of([after - before for before, after in itertools.pairwise(moments)])
            yield Point("saes", "ours", n_saes, found.median, found.low, found.high, measured=True)


def _tokens() -> Iterator[Point]:
    """One SAE, from its first step to its last."""
    with Worker(sys.executable, "our_growth.py", threads=1, settings=WORKER_ENVIRONMENT) as worker:
        worker.call("open")
        for n_tokens in TOKENS:
            seconds = worker.call("train", n_saes=1, n_steps=n_tokens // BATCH_SIZE)[-1]
            yield Point("tokens", "ours", n_tokens, seconds, seconds, seconds, measured=True)


def _workers() -> Iterator[Point]:
    """The same SAEs shared out over more and more processes, until every core has one."""
    counts = [n for n in (1, 2, 4, 8, 16) if n <= provenance.n_cores()]
    for n_workers in counts:
        found = Spread.of(_shared_out(n_workers))
        yield Point("workers", "ours", n_workers, found.median, found.low, found.high, measured=True)


def _shared_out(n_workers: int) -> list[float]:
    """Seconds until the last of the processes has trained its share, in each round."""
    workers = [Worker(sys.executable, "our_growth.py", threads=1, settings=WORKER_ENVIRONMENT) for _ in range(n_workers)]
    seconds = []
    with ThreadPoolExecutor(n_workers) as pool:
        list(pool.map(lambda worker: worker.call("open"), workers))
        for _ in range(WORKER_ROUNDS):
            started = time.perf_counter()
            list(pool.map(lambda worker: worker.call("train", n_saes=WORKER_SAES // n_workers, n_steps=WORKER_STEPS), workers))
            seconds.append(time.perf_counter() - started)
    for worker in workers:
        worker.close()
    return seconds


def write_csv(path: Path, points: Sequence[Point]) -> None:
    """One row per point; seconds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["panel", "program", "x", "seconds", "low", "high", "measured"])
        for p in points:
            how = "yes" if p.measured else "computed"
            writer.writerow([p.panel, p.program, p.x, f"{p.median:.6g}", f"{p.low:.6g}", f"{p.high:.6g}", how])


def read_csv(path: Path) -> list[Point]:
    """What `write_csv` wrote."""
    with path.open(newline="", encoding="utf-8") as file:
        return [
            Point(
                row["panel"], row["program"], int(row["x"]), float(row["seconds"]), float(row["low"]), float(row["high"]),
                measured=row["measured"] == "yes",
            )
            for row in csv.DictReader(file)
        ]  # fmt: skip


if __name__ == "__main__":
    main()
