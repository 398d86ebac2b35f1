"""What Ray, records, progress and scheduling take, beside the same training steps in bare processes.

    python benchmarks/overhead.py                                      # two and a half minutes on two cores

A sweep of SAEs of the demo's sizes on synthetic activations is run as `sae-sweep run` in a process of its own, at two numbers of tokens.
Then its groups, as the launch makes them, are trained by `train_group` in one bare process a slot, which take the next group when they
are free: "pure training" is from the moment all are ready, everything imported, to the end of the last. Overhead is all the launch
takes beside that, the stages harvest, evaluate and report excepted, which do other work: Python, imports, the start and end of Ray,
trial processes, groups handed out, histories, exports, records, progress. Part of it is the same for any sweep and part grows with
training. Both are found from the two sizes, and make the fraction of a sweep of five minutes. A very small sweep comes first and is not
counted: it compiles what is not compiled yet.
"""

import multiprocessing
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measuring import console, parser, run_sweep, write_result

from sae_core.activations.stream import Stream
from sae_core.config import RunConfig
from sae_core.training import train_group
from sweeps import provenance
from sweeps.definition import Sweep
from sweeps.grouping import group_runs
from sweeps.store import Store

D_IN = 128
SWEEP_SECONDS = 300.0
WARM_UP_TOKENS = 20_480
TARGET = 0.05


@dataclass(frozen=True, slots=True)
class Size:
    """What a sweep of `tokens` took, in seconds."""

    tokens: int
    launch: float
    stages: dict[str, float]
    """By name; what the launch notes, and the report."""
    pure: float
    """Its groups in bare processes."""

    @property
    def train(self) -> float:
        """What the training stage takes beside pure training."""
        return self.stages["train"] - self.pure

    @property
    def outside(self) -> float:
        """What the launch takes outside its stages."""
        return self.launch - sum(self.stages.values())


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--tokens", type=int, nargs=2, default=[100_000, 500_000], help="training tokens of the two sweeps")
    options.add_argument("--targets", type=int, nargs="+", default=[16, 64], help="L0s, at each of which there are six SAEs")
    arguments = options.parse_args()
    told = console()
    measure(WARM_UP_TOKENS, arguments.targets)
    sizes = [measure(tokens, arguments.targets) for tokens in sorted(arguments.tokens)]
    for size in sizes:
        stages = ", ".join(f"{name} {seconds:.1f}" for name, seconds in size.stages.items())
        told.print(f"{size.tokens:,} tokens: launch {size.launch:.1f} s ({stages}), pure training {size.pure:.1f} s")
        told.print(f"  overhead of the training stage {size.train:.2f} s, outside the stages {size.outside:.2f} s")
    small, large = sizes
    growth = (large.train - small.train) / (large.pure - small.pure)
    fixed = small.train - growth * small.pure + (small.outside + large.outside) / 2
    fraction = growth + fixed / SWEEP_SECONDS
    told.print(f"fixed: {fixed:.1f} s a launch; growing: {growth:+.1%} of pure training")
    told.print(f"a sweep of {SWEEP_SECONDS:.0f} s of pure training: {fraction:.1%} (target: below {TARGET:.0%})")
    results = {"fixed_s": fixed, "growing_fraction": growth, "fraction_of_five_minutes": fraction, "sizes": sizes}
    write_result(arguments.out, "overhead", results)


def measure(tokens: int, targets: list[int]) -> Size:
    directory = Path(tempfile.mkdtemp(prefix="overhead-"))
    try:
        sweep = sweep_of(tokens, targets)
        definition = directory / "definition.yaml"
        definition.write_text(sweep.to_yaml(), encoding="utf-8")
        seconds, told = run_sweep(str(definition), "--results", str(directory))
        store = Store(directory / sweep.name)
        stages = {stage["stage"]: stage["seconds"] for stage in store.facts()["stages"]}
        # Noted to the second only, as it is told on the terminal.
        stages["report"] = next(_seconds(line) for line in told.splitlines() if line.startswith("report: ") and " in " in line)
        (cache,) = store.activations.iterdir()
        return Size(tokens, seconds, stages, pure_training(sweep.runs(), cache))
    finally:
        shutil.rmtree(directory)


def _seconds(line: str) -> float:
    minutes, seconds = line.rpartition(" in ")[2].split(":")
    return 60.0 * int(minutes) + float(seconds)


def sweep_of(tokens: int, targets: list[int]) -> Sweep:
    """Six architectures at some L0s, of the demo's sizes."""
    fields: dict[str, Any] = Sweep.from_yaml("demo", []).model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    fields |= {"name": "overhead", "target_l0": targets}
    fields["activations"] = {"source": "synthetic", "d_in": D_IN, "n_features": 512, "n_active": 16.0}
    fields["activations"] |= {"train_tokens": tokens, "eval_tokens": 4_096}
    return Sweep.model_validate({name: value for name, value in fields.items() if name not in ("model", "data")})


def pure_training(runs: list[RunConfig], cache: Path) -> float:
    """Seconds in which bare processes, one a slot, train the groups of a launch."""
    n_slots = provenance.n_cores()
    groups = group_runs(runs, n_slots=n_slots, d_in=lambda run: D_IN, memory_bytes=provenance.slot_memory_bytes(n_slots))
    spawn = multiprocessing.get_context("spawn")
    ready, waiting = spawn.Barrier(n_slots + 1), spawn.SimpleQueue()
    for group in [*groups, *[None] * n_slots]:
        waiting.put(group and [run.model_dump(mode="json") for run in group])
    slots = [spawn.Process(target=slot, args=(waiting, ready, str(cache))) for _ in range(n_slots)]
    for process in slots:
        process.start()
    ready.wait()
    started = time.perf_counter()
    ready.wait()
    seconds = time.perf_counter() - started
    for process in slots:
        process.join()
    return seconds


def slot(waiting: Any, ready: Any, cache: str) -> None:
    """Train groups, one after another, until there are no more."""
    import torch

    torch.set_num_threads(1)
    ready.wait()
    while (group := waiting.get()) is not None:
        runs = [RunConfig.model_validate(run) for run in group]
        train, seed = runs[0].train, runs[0].data_seed
        stream = Stream(Path(cache), batch_size=train.batch_size, data_seed=seed, normalize_activations=train.normalize_activations)
        train_group(runs, stream)
    ready.wait()


if __name__ == "__main__":
    main()
